"""AdaRound and block reconstruction of a calibrated model."""

import logging
import re
import time
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple

import numpy as np
import paddle
from paddle import nn

from ..._checks import wrong_value
from ..._distributed import check_one_process
from ..._layer_state import Note, NoteKind, state_of
from ...engine import eager_evaluation, iter_batches, quantized_layers, quantizing_only
from ...engine.state import check_quantized, is_left_float
from ...errors import CalibrationError, ModelError, NonFiniteError
from ...fake_quant.fake_quantize import FakeQuantize, State
from ...graph.activations import find_activations
from ...graph.calls import capture_calls, capture_inputs
from ...nn.class_swap import rollback_on_error
from ...nn.weight_parts import replace_weight_parts
from .blocks import BlockUnit, Reached, capture, find_blocks
from .patches import product_of
from .rounding import SoftRounding
from .settings import BRECQ, ROUND_TYPES, AdaRound, ReconstructionReport, parse_round_type
from .units import LayerSamples, LayerUnit

_logger = logging.getLogger("paddleq")


def reconstruct(model: nn.Layer, data: Iterable, method: Any = "adaround",
                num_batches: Optional[int] = None) -> ReconstructionReport:
    """Learn the rounding of the weights of a calibrated model, in place.

    Each learned rounding is kept if its error on samples that were not optimized on is below that
    of rounding to nearest. The float weights are kept beside it, so that a layer can be restored to
    float and analyses compare with the float model. :class:`QDrop` also learns the scales of
    activations.

    Args:
        model: a calibrated model, of :class:`paddleq.PTQ` or a quantized
            :class:`paddleq.SavedModel`.
        data: iterable of batches, as for :func:`paddleq.calibrate`. They are kept in memory.
        method: an instance of :class:`AdaRound` or of another registered class, or its name.
        num_batches: number of batches to use. Default: all.

    Returns:
        A :class:`ReconstructionReport`: errors before and after, and layers without learned
        rounding. It is logged too.

    Raises:
        ModelError: the model is not quantized.
        CalibrationError: the model is not calibrated, or there is no batch.
        DistributedError: ``paddle.distributed`` connects several processes, outside of
            :func:`paddleq.local_statistics`.
        NonFiniteError: NaN or infinity in the output of a layer.
        ConfigError, ConfigTypeError: an unknown method, or a batch that does not fit.

    Examples:
        >>> import paddle, paddleq
        >>> from paddleq.algorithms import AdaRound, reconstruct
        >>> _ = paddle.seed(0)
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(16, 16), paddle.nn.ReLU())
        >>> x = paddle.rand([256, 16])
        >>> quantized = paddleq.PTQ(
        ...     weight_quantizer=paddleq.paddleslim.PerChannelAbsmaxQuantizer(3)).quantize(net)
        >>> _ = paddleq.calibrate(quantized, [x])
        >>> report = reconstruct(quantized, [x], AdaRound(iterations=100))
        >>> nearest, learned = report.errors["0"]
        >>> learned < nearest
        True
    """
    settings = parse_round_type("method", method)
    if settings is None:
        raise wrong_value("method", method, f"one of {', '.join(map(repr, ROUND_TYPES))}")
    check_quantized(model)
    return reconstruct_on(model, list(iter_batches(model, data, num_batches)), settings)


def reconstruct_on(model: nn.Layer, batches: Sequence[Tuple[Any, Any]],
                   settings: AdaRound) -> ReconstructionReport:
    """:func:`reconstruct` on batches that are (args, kwargs) of the model."""
    check_one_process("learned rounding")
    _check_calibrated(model)
    begin = time.perf_counter()
    report = ReconstructionReport()
    with rollback_on_error(model), eager_evaluation(model), _constant_parameters(model):
        _Reconstruction(model, batches, settings.for_batches(len(batches)), report).run()
    report.seconds = time.perf_counter() - begin
    _logger.info("%s", report)
    return report


@contextmanager
def _constant_parameters(model):
    """Compute no gradients of the parameters of ``model`` while open, and keep its random state."""
    parameters = [(each, each.stop_gradient) for each in model.parameters()]
    state = paddle.get_rng_state()
    try:
        for each, _ in parameters:
            each.stop_gradient = True
        yield
    finally:
        paddle.set_rng_state(state)
        for each, stop in parameters:
            each.stop_gradient = stop


@contextmanager
def _gradient_errors(name):
    """Raise ModelError for an operator of a SavedModel that has no gradient."""
    try:
        yield
    except OSError as error:  # Paddle's form of an exception in a backward pass
        text = " ".join(str(error).split())
        found = re.search(r"the operator \S+ of the saved model has no gradient", text)
        if found is None:
            raise
        raise ModelError(f"the roundings of {name} cannot be learned together: {found.group()} in "
                         "paddleq; use 'adaround', which needs none, or leave these layers out"
                         ) from error


def _check_calibrated(model):
    waiting = [name or "(model)" for name, layer in quantized_layers(model)
               if not is_left_float(layer) and not all(
                   q.initialized and q.state is not State.CALIBRATION for _, q in layer.quantizers()
                   if isinstance(q, FakeQuantize))]
    if waiting:
        raise CalibrationError("the rounding is learned after calibration, but these layers are "
                               f"not calibrated: {', '.join(waiting)}; run calibrate() first")


class _Reconstruction:
    def __init__(self, model, batches, settings, report):
        self.model, self.batches, self.settings, self.report = model, batches, settings, report
        self.calls = Counter()  # name of a layer -> calls in a forward pass

    def run(self):
        samples = self.eligible()
        if not isinstance(self.settings, BRECQ):
            self.collect_targets(samples)
            self.run_layers(samples)
        elif hasattr(self.model, "stages"):
            self.run_stages({name: each.layer for name, each in samples.items()})
        else:
            self.run_blocks({name: each.layer for name, each in samples.items()})

    def eligible(self) -> Dict[str, LayerSamples]:
        """Return the layers that have a learned rounding, and record the others."""
        found: Dict[str, LayerSamples] = {}
        weights: Dict[int, str] = {}
        for number, (name, layer) in enumerate(quantized_layers(self.model)):
            reason = _unsupported(layer)
            made = None if reason else product_of(layer, layer._float_class)
            if made is None:
                reason = reason or f"the class {layer._float_class.__name__} is not a product"
            elif id(layer.weight) in weights:
                reason = f"its weight is that of {weights[id(layer.weight)]}"
            if reason:
                if layer._paddleq.kind.weights and not is_left_float(layer):
                    self.report.skipped[name or "(model)"] = reason
                continue
            assert made is not None, name
            weights[id(layer.weight)] = name
            found[name] = LayerSamples(layer, made, number, self.settings)
        return found

    def collect_targets(self, samples):
        """Collect the float outputs of all layers in one pass over the data."""
        layers = {name: each.layer for name, each in samples.items()}
        (args, kwargs), order = self.batches[0], []
        with quantizing_only(self.model, ()):
            with capture_calls(layers, lambda name, *_: order.append(name)):
                self.model(*args, **kwargs)
            self.calls.update(order)
            activations = find_activations(lambda: self.model(*args, **kwargs), layers)
            total = len(self.batches)

            def on_call(name, args, kwargs, output):
                y = output.astype("float32").numpy()
                if not np.isfinite(y).all():
                    raise NonFiniteError(f"the output of {name or 'the model'} has NaN or "
                                         "infinite values in the float model")
                samples[name].add_target(y, max(1, self.calls[name]) * total)

            with capture_calls(layers, on_call):
                for args, kwargs in self.batches:
                    self.model(*args, **kwargs)
        for name, each in samples.items():
            each.activation = activations.get(name)
        for name in [name for name, each in samples.items() if not each.targets]:
            self.report.skipped[name] = "no batch reached it"
            del samples[name]
        self.order = [name for name in dict.fromkeys(order) if name in samples]
        self.order += [name for name in samples if name not in self.order]

    def collect_inputs(self, name, samples):
        """Collect the inputs of one layer; each forward pass ends behind its last call."""
        layer, total, seen = samples.layer, len(samples.shapes), [0]

        def on_input(_, x):
            if self.settings.asymmetric:
                (x,), _ = layer.quantize_inputs((x,), {})
            samples.add_input(x.astype("float32").numpy(), total)
            seen[0] += 1
            if seen[0] >= self.calls[name]:
                raise Reached

        float_only = nullcontext() if self.settings.asymmetric else quantizing_only(self.model, ())
        with float_only, capture_inputs({name: layer}, on_input):
            for args, kwargs in self.batches:
                seen[0] = 0
                with suppress(Reached):
                    self.model(*args, **kwargs)

    def run_layers(self, samples):
        from tqdm import tqdm

        for name in tqdm(self.order, desc="learning the rounding", disable=None, leave=False):
            each = samples.pop(name)
            self.collect_inputs(name, each)
            layer = each.layer
            rounding = SoftRounding(layer.weight, layer.weight_quantizer, each.product.matrix,
                                    each.product.weight)
            self.learn(LayerUnit(name, each, rounding), {name: layer})

    def run_stages(self, layers):
        """Learn the roundings of a SavedModel stage by stage, each of which runs once."""
        from tqdm import tqdm

        model, settings = self.model, self.settings
        values = [dict(model.begin(*args, **kwargs)) for args, kwargs in self.batches]
        floats = list(values)
        with quantizing_only(model, ()):
            stages = model.stages(values[0], layers, settings.least_layers)
        for stage in tqdm(stages, desc="learning the rounding", disable=None, leave=False):
            def run(inputs, stage=stage):
                return dict(model.run_stage(stage, inputs))

            with quantizing_only(model, ()):
                targets = [run(each) for each in floats]
            if stage.layers:
                inputs = values if settings.asymmetric else floats
                self.learn_block(stage.name, run, {name: layers[name] for name in stage.layers},
                                 inputs, floats, targets)
            values, floats = [run(each) for each in values], targets

    def run_blocks(self, layers):
        """Learn the roundings of a Layer by its sublayers."""
        from tqdm import tqdm

        model, settings = self.model, self.settings
        everything = dict(model.named_sublayers(include_self=True))
        calls, order = Counter(), []

        def on_call(name, *_):
            calls[name] += 1
            order.append(name)

        args, kwargs = self.batches[0]
        with quantizing_only(model, ()), capture_calls(everything, on_call):
            model(*args, **kwargs)
        # A layer that is called later is learned on the outputs of those before it.
        place = {name: number for number, name in enumerate(order)}
        blocks = find_blocks(model, list(layers), calls, settings.most_layers)
        for names in [each for each in blocks if each[0] not in place]:
            self.report.skipped.update(dict.fromkeys(names[1:], "no batch reached it"))
            blocks.remove(names)
        blocks.sort(key=lambda names: place[names[0]])
        for name, *inside in tqdm(blocks, desc="learning the rounding", disable=None, leave=False):
            block = everything[name]

            def run(inputs, block=block):
                return block(*inputs[0], **inputs[1])

            with quantizing_only(model, ()):
                floats = self.captured(block)
                targets = [run(each) for each in floats]
            inputs = self.captured(block) if settings.asymmetric else floats
            self.learn_block(name, run, {each: layers[each] for each in inside}, inputs, floats,
                             targets)

    def captured(self, block):
        """Return the inputs of the first call of a layer in each batch that reaches it."""
        found = [capture(lambda args=args, kwargs=kwargs: self.model(*args, **kwargs), block)
                 for args, kwargs in self.batches]
        return [each for each in found if each is not None]

    def learn_block(self, name, run, layers, inputs, floats, targets):
        roundings = {each: SoftRounding(layer.weight, layer.weight_quantizer)
                     for each, layer in layers.items()}
        paddle.seed(self.settings.seed)
        self.learn(BlockUnit(name, run, layers, roundings, inputs, floats, targets, self.settings,
                             self.model), layers)

    def learn(self, unit, layers):
        """Optimize a unit and install the roundings that are better than the nearest."""
        roundings: Dict[str, SoftRounding] = unit.roundings
        steps = list({id(each): each for each in unit.steps.values()}.values())
        settings = self.settings
        generator = np.random.default_rng([settings.seed, len(self.report.errors)])
        for step in range(settings.iterations):
            with paddle.set_grad_enabled(True), _gradient_errors(unit.name):
                leaves = {name: each.leaf() for name, each in roundings.items()}
                for each in steps:
                    each.leaf()
                unit.loss(leaves, generator).backward()
            for each in roundings.values():
                each.step(settings.rate, settings.regularization, settings.beta(step))
            for each in steps:
                each.step(settings.step_rate_at(step))
        for each in steps:
            each.leaf()
        nearest = unit.error({name: each.nearest() for name, each in roundings.items()})
        hard = {name: each.hard() for name, each in roundings.items()}
        learned, with_steps = min((unit.error(hard, each), each) for each in (
            (False, True) if steps else (False,)))
        better = learned < nearest
        self.report.errors[unit.name or "(model)"] = nearest, learned if better else nearest
        if not better:
            return
        for name, layer in layers.items():
            label = f"{name}.weight_quantizer" if name else "weight_quantizer"
            replace_weight_parts(self.model, layer, "weight", *roundings[name].make_parts(label))
            state_of(layer).add_note(Note(
                NoteKind.STEPS_LEARNED if with_steps else NoteKind.ROUNDING_LEARNED,
                detail=f"error {learned:.3g} instead of {nearest:.3g}"))
        if with_steps:
            for each in steps:
                each.install()


def _unsupported(layer) -> Optional[str]:
    """Return the reason for which the rounding of a layer is not learned, or None."""
    state = layer._paddleq
    if is_left_float(layer):
        return "it is float"
    if list(state.kind.weights) != ["weight"]:
        return f"it has the weights {', '.join(state.kind.weights) or 'none'}"
    preprocess, quantizer = layer.weight_parts("weight")
    if preprocess is not None:
        return f"its weight has the preprocess {type(preprocess).__name__}"
    if type(quantizer) is not FakeQuantize:
        return f"its weight has the quantizer {type(quantizer).__name__}"
    if quantizer.spec.binary:
        return "its weight has one bit, which is a sign"
    if state.forward is not None:
        return "its forward was replaced"
    if state.block is not None:
        return "it is fused with the layers after it"
    return None
