"""States and switches of the fake quantizers of a model."""

import logging
import threading
from contextlib import ExitStack, contextmanager

from .._checks import check_layer, hint
from .._layer_state import read_state
from .._paddle_compat import drop_programs
from ..config import SkipKind, SkipReason
from ..errors import CalibrationError, ConfigError, ModelError
from ..fake_quant.fake_quantize import FakeQuantize, State
from ..nn.deployable import deployable_layers
from ..nn.input_slots import follow, later_calls
from ..nn.quantized_layer import QuantizedLayer, busy_error
from ..nn.weight_parts import quantizer_name

_logger = logging.getLogger("paddleq")

_FAR_APART = 10.0  # ratio of ranges at which a shared scale loses more than three bits


def check_quantized(model):
    """Raise unless ``model`` is a ``paddle.nn.Layer`` with quantized layers in it."""
    check_layer("model", model, "a quantized paddle.nn.Layer")
    if not quantized_layers(model):
        raise ModelError("model has no quantized layer; call quantize() first and use what it "
                         "returns")


def quantized_layers(model):
    """Return (name, layer) pairs of all quantized layers, in order of definition."""
    return [(name, layer) for name, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, QuantizedLayer)]


def check_quantized_name(name, layers):
    """Raise ConfigError unless ``name`` is in ``layers``, the quantized layers by name."""
    if name not in layers:
        raise ConfigError(f"the model has no quantized layer {name!r}{hint(name, layers)}")


def fake_quantizers(model):
    """Return (name, FakeQuantize) pairs of all fake quantizers, each once."""
    return [(name, layer) for name, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, FakeQuantize)]


def set_state(model, state):
    """Set the :class:`~paddleq.State` of all fake quantizers of ``model``.

    In the states that observe, layers that an earlier calibration never called quantize again.
    """
    state = State(state)
    for _, quantizer in fake_quantizers(model):
        quantizer.set_state(state)
    if state is not State.VALIDATION:
        for _, layer in quantized_layers(model):
            _set_left_float(layer, False)


def enable_fake_quant(layer):
    """Let fake quantizers quantize; for ``model.apply``.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize, disable_fake_quant, enable_fake_quant
        >>> model = paddle.nn.Sequential(FakeQuantize()).apply(disable_fake_quant)
        >>> model.apply(enable_fake_quant)[0].fake_quant_enabled
        True
    """
    if isinstance(layer, FakeQuantize):
        layer.fake_quant_enabled = True


def disable_fake_quant(layer):
    """Let fake quantizers return their input unchanged; for ``model.apply``.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize, disable_fake_quant
        >>> model = paddle.nn.Sequential(FakeQuantize())
        >>> model.apply(disable_fake_quant)(paddle.to_tensor([0.25, 1.0])).tolist()
        [0.25, 1.0]
    """
    if isinstance(layer, FakeQuantize):
        layer.fake_quant_enabled = False


def enable_observer(layer):
    """Let fake quantizers observe; for ``model.apply``.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize, disable_observer, enable_observer
        >>> model = paddle.nn.Sequential(FakeQuantize()).apply(disable_observer)
        >>> model.apply(enable_observer)[0].observer_enabled
        True
    """
    if isinstance(layer, FakeQuantize):
        layer.observer_enabled = True


def disable_observer(layer):
    """Let fake quantizers keep their scale; for ``model.apply``.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize, disable_observer
        >>> paddle.nn.Sequential(FakeQuantize()).apply(disable_observer)[0].observer_enabled
        False
    """
    if isinstance(layer, FakeQuantize):
        layer.observer_enabled = False


def set_fake_quantize(model, state):
    """Set the :class:`State` of all fake quantizers of a model.

    Args:
        model: a ``paddle.nn.Layer``.
        state: ``State.QAT`` (the model must be in training mode), ``State.CALIBRATION`` or
            ``State.VALIDATION`` (the model must be in evaluation mode), or its name.

    Raises:
        ModelError: the model is in the other mode. Nothing is changed.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize, State, set_fake_quantize
        >>> model = paddle.nn.Sequential(FakeQuantize())
        >>> _ = model.eval()
        >>> set_fake_quantize(model, State.CALIBRATION)
        >>> model[0].state
        <State.CALIBRATION: 'calibration'>
    """
    check_layer("model", model)
    state = State(state)
    if model.training != (state is State.QAT):
        mode, right = ("training", "eval") if model.training else ("evaluation", "train")
        raise ModelError(f"state {state} contradicts the model, which is in {mode} mode; call "
                         f"model.{right}() first")
    set_state(model, state)


@contextmanager
def in_one_thread(model):
    """While open, only the current thread may call the quantized layers of ``model``.

    Raises:
        ModelError: another thread has opened it. Calls of other threads raise it too.
    """
    layers = [(layer, layer._paddleq.thread) for _, layer in quantized_layers(model)]
    current = threading.get_ident()
    for layer, thread in layers:
        if thread not in (None, current):
            raise busy_error(layer._paddleq.name)
    try:
        for layer, _ in layers:
            layer._paddleq.thread = current
        yield
    finally:
        for layer, thread in layers:
            layer._paddleq.thread = thread


def follow_first_calls(model, known):
    """Set the states of quantizers that calls added, other than the ids in ``known``."""
    for _, layer in quantized_layers(model):
        for quantizer, first in later_calls(layer):
            if id(quantizer) not in known:
                follow(quantizer, first)


def warn_different_calls(model):
    """Warn of layers whose calls in a forward pass share a quantizer but have other ranges."""
    for name, layer in quantized_layers(model):
        found = {call: value for call, value in layer._paddleq.call_ranges.items() if value > 0}
        layer._paddleq.call_ranges = {}
        if found and max(found.values()) > _FAR_APART * min(found.values()):
            _logger.warning(
                "%s is called %d times in a forward pass, on inputs of which the largest "
                "magnitudes are %s; its calls share one scale, which is coarse for the smaller "
                "ones. Use a layer for each call, or leave it float (skip)", name or "the model",
                len(found), ", ".join(f"{value:.4g}" for value in found.values()))


@contextmanager
def restored_states(model):
    """Restore the states and switches of all fake quantizers on exit."""
    saved = [(q, q.state, q.observer_enabled, q.fake_quant_enabled)
             for _, q in fake_quantizers(model)]
    left = [(layer, is_left_float(layer)) for _, layer in quantized_layers(model)]
    with in_one_thread(model):
        try:
            yield
        finally:
            for quantizer, state, observer_enabled, fake_quant_enabled in saved:
                quantizer.set_state(state)
                quantizer.observer_enabled = observer_enabled
                quantizer.fake_quant_enabled = fake_quant_enabled
            follow_first_calls(model, {id(each[0]) for each in saved})
            for layer, value in left:
                _set_left_float(layer, value)


@contextmanager
def quantization_off(model):
    """Compute in float and observe nothing while open."""
    with restored_states(model):
        for _, quantizer in fake_quantizers(model):
            quantizer.set_state(State.VALIDATION)
            quantizer.fake_quant_enabled = False
        yield


@contextmanager
def quantizing_only(model, names):
    """While open, the quantized layers of ``model`` other than ``names`` compute in float.

    These layers do not use their quantizers and preprocesses (PACT, hooks). The same holds for
    copies and exports of the model that are made while open.
    """
    layers, names = dict(quantized_layers(model)), list(names)
    for name in names:
        check_quantized_name(name, layers)
    kept = {name: layer._paddleq.compute_float for name, layer in layers.items()}
    with in_one_thread(model):
        try:
            for name, layer in layers.items():
                layer._paddleq.compute_float = name not in names
                drop_programs(layer)
            yield
        finally:
            for name, layer in layers.items():
                layer._paddleq.compute_float = kept[name]
                drop_programs(layer)


@contextmanager
def evaluation(model):
    """While open, the model and all its sublayers are in evaluation mode."""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def finalize(model):
    """Compute the scales of the quantizers that observed data since their scale was set.

    Quantizers that no data reached stay without a scale; :func:`leave_uncalled_float` handles them.

    Raises:
        CalibrationError: no data reached any quantizer.
    """
    quantizers = [(name, q) for name, q in fake_quantizers(model)
                  if not q.observer.dynamic and q.state is not State.QAT
                  and (q.observer_enabled or q.state is not State.CALIBRATION)]
    waiting = [(name, q) for name, q in quantizers if q.needs_finalize]
    without_data = [name for name, q in waiting if not (_observed(q) or q.observer.fixed)]
    if without_data and not any(_calibrated(q) for _, q in quantizers):
        raise CalibrationError(
            f"no calibration data reached {len(without_data)} of {len(quantizers)} quantizers: "
            f"{', '.join(without_data)}; run calibrate() or forward passes on real inputs first")
    for _, quantizer in waiting:
        if _observed(quantizer) or quantizer.observer.fixed:
            quantizer.finalize()
    warn_different_calls(model)


@contextmanager
def finalized(model):
    """While open, the scales are those that :func:`finalize` computes.

    Layers that no data reached are left float, also in a model in training.
    """
    with ExitStack() as stack:
        for _, quantizer in fake_quantizers(model):
            if quantizer.needs_finalize:
                stack.enter_context(quantizer.preserved_qparams())
        finalize(model)
        if any(_calibrated(q) for _, q in fake_quantizers(model)):
            found = dict(uncalled_layers(model))
            added = [name for name, layer in found.items() if not is_left_float(layer)]
            for name in added:
                stack.callback(_set_left_float, found[name], False)
                _set_left_float(found[name], True)
            warn_uncalled(added)
        yield


def _observed(quantizer):
    return not quantizer.observer.dynamic and bool(quantizer.observer.num_batches)


def _calibrated(quantizer):
    """Return True if the scale was observed, set or loaded, or statistics for one exist."""
    observer = quantizer.observer
    return not (observer.dynamic or observer.fixed) and (
        _observed(quantizer) or quantizer.initialized)


def uncalled_layers(model):
    """Return (name, layer) pairs of the quantized layers whose inputs no data reached.

    Their quantizers have neither statistics nor a scale. Layers that need no data are not returned.
    """
    found = []
    for name, layer in quantized_layers(model):
        weights = {quantizer_name(weight) for weight in layer._paddleq.kind.weights}
        parts = [(part in weights, q) for part, q in layer.quantizers()
                 if isinstance(q, FakeQuantize) and not q.observer.dynamic]
        # Layers that share a weight share its quantizer, so the inputs decide where there are any.
        decisive = [q for is_weight, q in parts if not is_weight] or [q for _, q in parts]
        if not any(_observed(q) for q in decisive) and not all(q.initialized for _, q in parts):
            found.append((name, layer))
    return found


def is_left_float(layer):
    """Return True if a layer computes in float because calibration never called it."""
    reason = read_state(layer).reason
    return reason is not None and reason.kind is SkipKind.NOT_CALLED


def leave_uncalled_float(model):
    """Make layers that calibration never called compute in float, with one warning.

    They keep their quantizers: a later calibration or training can reach them. Layers with
    quantizers that still observe are not changed.
    """
    uncalled = {id(layer): name for name, layer in uncalled_layers(model)}
    added = []
    for _, layer in quantized_layers(model):
        left = id(layer) in uncalled and all(
            q.state is State.VALIDATION for _, q in layer.quantizers()
            if isinstance(q, FakeQuantize))
        if left and not is_left_float(layer):
            added.append(uncalled[id(layer)])
        _set_left_float(layer, left)
    warn_uncalled(added)


def _set_left_float(layer, value):
    state = layer._paddleq
    if value != is_left_float(layer):
        state.reason = SkipReason(SkipKind.NOT_CALLED) if value else None
        state.compute_float = value
        drop_programs(layer)


def warn_uncalled(names):
    """Warn of the layers ``names``, which are left float because no data reached them."""
    if names:
        _logger.warning(
            "%d layers are left float because no data reached them in calibration or training: "
            "%s. A branch that only training runs needs no scale; otherwise calibrate on inputs "
            "that reach these layers, or leave them out (skip, skip_quant)", len(names),
            ", ".join(name or "(model)" for name in names))


def check_initialized(model):
    """Raise if layers are being calibrated, or are empty until a checkpoint is loaded."""
    waiting = [name or "(model)" for name, layer in model.named_sublayers(include_self=True)
               if read_state(layer).calibrator is not None]
    if waiting:
        raise CalibrationError(
            f"{len(waiting)} layers are being calibrated: {', '.join(waiting)}; run the model on "
            "all of its batches and call convert() first")
    empty = [name or "(model)" for name, layer in deployable_layers(model) if not layer.initialized]
    if empty:
        raise CalibrationError(
            f"{len(empty)} quantized layers have no numbers yet: {', '.join(empty)}; load a "
            "checkpoint (load_checkpoint(), or convert() with ckpt_path) first")
