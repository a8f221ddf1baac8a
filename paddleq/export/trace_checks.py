"""Checks of a traced program against the model: missing scales, lost layers, added layers."""

import contextlib
import logging
from functools import partial

import numpy as np
import paddle

from .._layer_state import read_state, state_of
from .._paddle_compat import dtype_name
from ..engine.calibration import map_leaves
from ..engine.hooks import eager_evaluation
from ..engine.state import (
    fake_quantizers,
    is_left_float,
    quantization_off,
    quantized_layers,
)
from ..engine.summary import layers_added_later
from ..errors import ExportError
from ..fake_quant.fake_quantize import State
from ..nn.input_slots import is_float_tensor
from ..nn.layer_types import kind_of
from ..nn.quantized_layer import QuantizedLayer
from .traced_call import TracedCall

_logger = logging.getLogger("paddleq")

# Tried in turn for the dimensions of an input that neither the specification nor a call has given.
_SIZES = (8, 32, 64, 224)


class Refusals:
    """Quantizers and layers that cannot be exported: an error if the traced program has them.

    A cause is an ExportError, or the name of a quantizer or layer without a scale.
    """

    def __init__(self):
        self._causes = {}  # (id of a layer, attribute of a quantizer) -> cause
        self._met = []  # (cause, number of its marker in the trace, None if it has none)

    def add(self, layer, attribute, cause):
        """Register the cause for which a part of a layer cannot be exported."""
        self._causes[id(layer), attribute] = cause

    def attempt(self, layer, attribute, make, *args):
        """Return ``make(*args)``, or None if that raises an ExportError, which is kept."""
        try:
            return make(*args)
        except ExportError as error:
            self.add(layer, attribute, error)
            return None

    def cause(self, layer, attribute):
        """Return the cause that was registered for a part of a layer, or None."""
        return self._causes.get((id(layer), attribute))

    def meet(self, cause, number=None):
        """Record that the trace met a part with this cause, if it is not None."""
        if cause is not None:
            self._met.append((cause, number))

    def check(self, numbers=None):
        """Raise if the program contains a part that was met.

        Args:
            numbers: of the markers in the program; None: it contains all parts.
        """
        causes = dict.fromkeys(cause for cause, number in self._met
                               if None in (number, numbers) or number in numbers)
        for cause in causes:
            if isinstance(cause, ExportError):
                raise cause
        if causes:
            raise ExportError(
                f"the exported graph contains {len(causes)} quantizers or layers that have no "
                f"scale yet: {', '.join(causes)}; run training steps (QAT) or calibration (PTQ) "
                "that reach these layers, or leave them out (skip, skip_quant)")


def check_ready(model):
    """Raise ExportError for float64 parameters and unfinished folding."""
    double = [name for name, parameter in model.named_parameters()
              if parameter.dtype == paddle.float64]
    training = [name for name, layer in quantized_layers(model)
                if getattr(layer, "norm_folding", None) is not None]
    for names, problem, advice in (
            (double, "parameters are float64, which runtimes do not take",
             "call model.to(dtype='float32') before the model is quantized"),
            (training, "layers are still trained with a folded batch norm",
             "export what convert() returns")):
        if names:
            raise ExportError(f"{len(names)} {problem}: {', '.join(names)}; {advice}")


@contextlib.contextmanager
def left_layers_recorded(model, recorder):
    """Let a recorder meet layers that calibration never called or that were added later."""
    with contextlib.ExitStack() as stack:
        for name, layer in layers_added_later(model):
            kind = kind_of(layer)
            if kind is not None and kind.weights:
                hook = layer.register_forward_pre_hook(
                    lambda layer, args, name=name: recorder.meet_added(name))
                stack.callback(hook.remove)
        for name, layer in model.named_sublayers(include_self=True):
            if not is_left_float(layer):
                continue
            if not isinstance(layer, QuantizedLayer):  # converted since
                hook = layer.register_forward_pre_hook(
                    lambda layer, args, name=name: _meet(recorder, name, layer, args))
                stack.callback(hook.remove)
            elif layer._paddleq.compute_float:
                layer._paddleq.compute_float = False
                stack.callback(setattr, layer._paddleq, "compute_float", True)
        yield


def _meet(recorder, name, layer, args):
    if not args or not is_float_tensor(args[0]):
        recorder.refusals.meet(name or "(model)")
        return None
    return (recorder.mark_refused(args[0], layer, name or "(model)"), *args[1:])


def warn_added(names):
    """Warn of layers that were added or replaced after quantization and are exported as float."""
    if names:
        _logger.warning(
            "%d layers were added or replaced after the model was quantized and are exported as "
            "float: %s. To quantize them, change the float model first, then quantize it",
            len(names), ", ".join(names))


def warn_observing(model):
    """Warn that a model that was just exported is in the state that observes in float."""
    if any(quantizer.state is State.CALIBRATION for _, quantizer in fake_quantizers(model)):
        _logger.warning(
            "the exported file is quantized, but the model in memory still computes in float and "
            "observes each batch: it was calibrated by calling it. To evaluate the quantized "
            "model, call PTQ.convert(model), or run the file with paddleq.deploy.Predictor")


def check_lost(model, recorder, numbers, parameters, input_spec):
    """Raise ExportError if quantized layers ran during the trace but are missing in the program.

    Paddle removes operators on which no output depends. The output of an operator that writes to a
    tensor in place (``index_add_``, ``paddle.assign(..., output=)``) is lost in a trace, and so are
    the layers before it. Layers on which the outputs of the model do not depend are removed
    correctly; running the model with changed outputs of these layers tells the two apart.

    Args:
        numbers: of the markers in the program.
        parameters: names of the parameters in the program.
    """
    lost = recorder.lost_layers(numbers, parameters)
    if not lost:
        return
    whole = len(lost) == len(recorder.called)
    needed = _needed_layers(model, lost, input_spec)
    if needed is None and not whole:
        _logger.warning(
            "%d quantized layers ran in the trace but are not in the traced program: %s. They are "
            "missing in the file if the outputs of the model depend on them; compare the outputs "
            "of both (paddleq.deploy.verify)", len(lost), ", ".join(lost))
        return
    names = list(lost) if needed is None or whole else needed
    if names:
        raise ExportError(
            f"the trace lost {len(names)} quantized layers on which the outputs depend: "
            f"{', '.join(names)}. Paddle {paddle.__version__} traces no operator that changes a "
            "tensor in place (index_add_, scatter_, paddle.assign with output=): use its result, "
            "such as y = paddle.index_add(y, ...), or compute all experts and add the products "
            "with their weights")


def _needed_layers(model, lost, input_spec):
    """Return the names of the layers on which the outputs of ``model`` depend.

    A layer that the example inputs do not reach counts. Returns None if the model does not run on
    example inputs of the specification.
    """
    names = {id(layer): name for name, layer in lost.items()}
    call = TracedCall.of(model, input_spec)
    if call is None:
        return None
    with _undisturbed(model):
        for size in _SIZES:
            try:
                arguments = _example_inputs(model, call, size)
                run = partial(model, *arguments[0], **arguments[1])
                expected = run()
            except Exception:  # another size may fit
                continue
            return [name for layer, name in names.items()
                    if _changes_output(run, expected, lost[name])]
    return None


def _changes_output(run, expected, layer):
    """Return True unless the layer runs in ``run()`` and no output depends on its output."""
    ran = []

    def change(layer, args, y):
        ran.append(True)
        return map_leaves(lambda x: x + 1.0 if _is_float(x) else x, y)

    hook = layer.register_forward_post_hook(change)
    try:
        found = run()
    except Exception:  # the changed output was read
        return True
    finally:
        hook.remove()
    return not ran or not all(map(_equal, _tensors(found), _tensors(expected)))


def _example_inputs(model, call, size):
    """Return random (args, kwargs) that fit a call; ``size`` replaces unknown dimensions."""
    seen = []
    map_leaves(lambda x: seen.append(x) if isinstance(x, paddle.static.InputSpec) else None,
               read_state(model).example_call or [])
    called = iter(seen)
    random = np.random.RandomState(0)

    def example(spec):
        if not isinstance(spec, paddle.static.InputSpec):
            return spec
        known = getattr(next(called, None), "shape", ())
        known = known if len(known) == len(spec.shape) else [None] * len(spec.shape)
        defaults = [2] + [size] * len(spec.shape)
        dims = [next(int(each) for each in sizes if each not in (None, -1))
                for sizes in zip(spec.shape, known, defaults)]
        name = dtype_name(spec.dtype)
        values = (random.uniform(-1.0, 1.0, dims).astype("float32") if "float" in name else
                  random.randint(0, 2, dims))
        return paddle.to_tensor(values).astype(name)

    return map_leaves(example, [call.args, call.kwargs])


@contextlib.contextmanager
def _undisturbed(model):
    """Run forward passes in float without effect on the model and the random state."""
    random, call = paddle.get_rng_state(), read_state(model).example_call
    with eager_evaluation(model), quantization_off(model):
        try:
            yield
        finally:
            paddle.set_rng_state(random)
            if read_state(model).example_call is not call:
                state_of(model).example_call = call


def _is_float(x):
    return isinstance(x, paddle.Tensor) and paddle.is_floating_point(x)


def _tensors(structure):
    found = []
    map_leaves(lambda x: found.append(x) if isinstance(x, paddle.Tensor) else None, structure)
    return found


def _equal(first, second):
    return first.shape == second.shape and bool(
        (first.astype("float32") == second.astype("float32")).all())
