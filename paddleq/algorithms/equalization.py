"""Cross-layer equalization (https://arxiv.org/abs/1906.04721, section 4.1).

An output channel of a layer is divided by a factor and the input channel of the layers that read it
multiplied by the same one. Operators between them must be positively homogeneous,
f(s * x) = s * f(x) for s > 0, as relu, leaky relu, prelu and pooling are. The factors make the
ranges of the channels of both layers equal, so that one scale for a weight fits all of them.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import paddle
from paddle import nn

from .._checks import check_layer, wrong_type
from .._paddle_compat import convolution_groups, is_jit_loaded
from ..engine.example_inputs import run_on_first_inputs
from ..engine.select import JIT_LOADED
from ..engine.state import quantized_layers
from ..engine.summary import table
from ..errors import ModelError
from ..graph.calls import argument_names, patched_forwards
from ..graph.dataflow import PRODUCERS, channel_axis, output_values, same_values
from ..nn.class_swap import rollback_on_error

_logger = logging.getLogger("paddleq")
_LAYERS = (*PRODUCERS, nn.Conv3DTranspose)
_TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)
# Powers of two, so that products and quotients are exact; large ones reach the limits of clips.
_EXPONENTS = (-20, -9, -3, -1, 1, 3, 9, 20)
_SWEEPS, _SETTLED = 40, 1e-3  # of the factors, relative
_LARGEST_FACTOR = 2.0 ** 10
_TOLERANCE = 1e-4  # relative L2 distance of outputs, which rounding explains


@dataclass
class EqualizationReport:
    """Result of :func:`equalize`.

    Attributes:
        ranges: name of a layer -> (ratio of the largest to the smallest range of its output
            channels before, after equalization).
        consumers: name of a layer -> layers whose input channels were multiplied.
        refused: name of another layer -> reason.

    Examples:
        >>> from paddleq.algorithms import EqualizationReport
        >>> print(EqualizationReport({"conv1": (80.0, 2.5)}, {"conv1": ["conv2"]},
        ...                          {"conv2": "its output reaches no weighted layer"}))
        layer | ranges before | after | read by
        ------+---------------+-------+--------
        conv1 | 80            | 2.5   | conv2
        conv2: its output reaches no weighted layer
    """

    ranges: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    consumers: Dict[str, List[str]] = field(default_factory=dict)
    refused: Dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows: List[Tuple[str, ...]] = [("layer", "ranges before", "after", "read by")]
        rows += [(name, f"{before:.3g}", f"{after:.3g}", ", ".join(self.consumers[name]))
                 for name, (before, after) in self.ranges.items()]
        return "\n".join([table(rows), *(f"{name}: {reason}"
                                         for name, reason in self.refused.items())])


def equalize(model: nn.Layer, inputs: Any) -> EqualizationReport:
    """Equalize the ranges of the channels of successive layers of a float model, in place.

    The model computes the same function but for rounding. It helps scales per tensor, and
    activations whose channels have different ranges. Fold batch norms first.

    The layers that read an output are found along the data flow, through depthwise convolutions
    too: the model runs with random outputs of a layer and with their channels multiplied by powers
    of two, and each reader must see exactly the multiples. So a relu6 or another function that
    clips, a sigmoid, an addition of another tensor or an output of the model is a refusal.

    Args:
        model: a float ``paddle.nn.Layer``, also a :class:`paddleq.SavedModel`.
        inputs: example inputs: a tensor, a list of arguments or a dict.

    Returns:
        An :class:`EqualizationReport`. It is logged too.

    Raises:
        ConfigTypeError: ``model`` is not a Layer, or ``inputs`` is None.
        ModelError: the model is quantized already, or it would not compute the same function; it
            is unchanged then.

    Examples:
        >>> import paddle
        >>> from paddle import nn
        >>> from paddleq.algorithms import equalize
        >>> _ = paddle.seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net[0].weight.set_value(net[0].weight * paddle.logspace(0, 3, 8))
        >>> report = equalize(net, paddle.rand([16, 4]))
        >>> report.consumers, sorted(report.refused)
        ({'0': ['2']}, ['2'])
        >>> before, after = report.ranges["0"]
        >>> after < 0.1 * before
        True
    """
    check_layer("model", model)
    if is_jit_loaded(model):
        raise ModelError(JIT_LOADED)
    if inputs is None:
        raise wrong_type("inputs", inputs, "a tensor, a list of arguments or a dict")
    if quantized_layers(model):
        raise ModelError("equalize() takes a float model, but this one is quantized; use "
                         "PTQ(equalize=True), or equalize it before it is quantized")
    found: List[EqualizationReport] = []
    run_on_first_inputs(model, inputs, lambda each, run: found.append(equalize_on(each, run)))
    return found[0]


def equalize_on(model: nn.Layer, run: Callable[[], Any]) -> EqualizationReport:
    """:func:`equalize` where ``run()`` is a deterministic forward pass of ``model``."""
    report, links = EqualizationReport(), _find_links(model, run)
    report.refused = {name: each for name, each in links.items() if isinstance(each, str)}
    linked: Dict[str, Dict[str, np.ndarray]] = {
        name: each for name, each in links.items() if not isinstance(each, str)}
    layers = {name: layer for name, layer in model.named_sublayers(include_self=True)
              if isinstance(layer, _LAYERS)}
    names = dict.fromkeys([*linked, *(name for each in linked.values() for name in each)])
    weights = {name: _canonical(layers[name], layers[name].weight.numpy().astype("float64"))
               for name in names}
    factors = _factors(weights, linked)
    reference = output_values(run())
    with rollback_on_error(model, [
            tensor for name in names for tensor in (layers[name].weight, layers[name].bias)
            if tensor is not None]):
        for name in names:
            outer = factors.get(name, 1.0)
            inner = np.ones(_ranges(weights[name], of_inputs=True).shape)
            for producer, each in linked.items():
                if name in each:
                    inner = inner * factors[producer][each[name]]
            _scale(layers[name], weights[name], outer, inner)
            if name in linked:
                after = _canonical(layers[name], layers[name].weight.numpy())
                report.ranges[name] = _spread(weights[name]), _spread(after)
                report.consumers[name] = list(linked[name])
        distance = _distance(output_values(run()), reference)
        if not distance <= _TOLERANCE:
            raise ModelError(
                f"equalized layers change the output of the model by {distance:.3g} (relative "
                "L2), probably because their weights are read outside of them; quantize this "
                "model without equalization")
    _logger.info("%s", report)
    return report


def _distance(found, expected):
    """Return the largest relative L2 distance of float arrays; infinity for other shapes."""
    distances = [0.0]
    for x, y in zip(found, expected):
        if x.shape != y.shape:
            return float("inf")
        if x.dtype.kind == "f" and x.size:
            norm = np.linalg.norm(np.float64(y))
            distances.append(float(np.linalg.norm(np.float64(x) - y) / (norm or 1.0)))
    return max(distances)


# Ranges and factors of channels.


def _canonical(layer, weight):
    """Return a weight as [groups, outputs of a group, inputs of a group, kernel]."""
    if isinstance(layer, nn.Linear):
        return weight.T[None, :, :, None]
    groups = convolution_groups(layer)
    if isinstance(layer, _TRANSPOSED):
        inputs, outputs = weight.shape[:2]
        return weight.reshape([groups, inputs // groups, outputs, -1]).transpose([0, 2, 1, 3])
    outputs, inputs = weight.shape[:2]
    return weight.reshape([groups, outputs // groups, inputs, -1])


def _ranges(weight, of_inputs):
    """Return max|w| of each output or input channel of a canonical weight."""
    return np.abs(weight).max((1, 3) if of_inputs else (2, 3)).reshape(-1)


def _spread(weight):
    """Return the ratio of the largest to the smallest range of output channels with weights."""
    ranges = _ranges(weight, of_inputs=False)
    ranges = ranges[ranges > 0.0]
    return float(ranges.max()) / float(ranges.min()) if len(ranges) else 1.0


def _factors(weights, linked):
    """Return name -> divisors of the output channels, which equalize all links together."""
    factors = {name: np.ones(len(_ranges(weights[name], False))) for name in linked}
    readers = {name: [producer for producer, each in linked.items() if name in each]
               for name in weights}

    def scaled(name, without):
        """Return a canonical weight with its factors, but those of the link of ``without``."""
        weight = weights[name]
        groups, outputs, inputs, _ = weight.shape
        if name in factors and name != without:
            weight = weight / factors[name].reshape([groups, outputs, 1, 1])
        for producer in readers[name]:
            if producer != without:
                weight = weight * factors[producer][linked[producer][name]].reshape(
                    [groups, 1, inputs, 1])
        return weight

    for _ in range(_SWEEPS):
        change = 0.0
        for name, consumers in linked.items():
            own = _ranges(scaled(name, name), of_inputs=False)
            other = np.zeros_like(own)
            for consumer, channels in consumers.items():
                np.maximum.at(other, channels, _ranges(scaled(consumer, name), of_inputs=True))
            used = (own > 0.0) & (other > 0.0)
            found = np.sqrt(np.divide(own, other, out=np.ones_like(own), where=used))
            found = np.clip(found, 1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)
            change = max(change, float(np.abs(np.log(found / factors[name])).max()))
            factors[name] = found
        if change < _SETTLED:
            break
    return factors


def _scale(layer, weight, outer, inner):
    """Divide the output channels of a layer by ``outer`` and multiply its inputs by ``inner``."""
    groups, outputs, inputs, _ = weight.shape
    outer = np.broadcast_to(outer, [groups * outputs])
    weight = (weight / outer.reshape([groups, outputs, 1, 1])
              * inner.reshape([groups, 1, inputs, 1]))
    shape = layer.weight.shape
    if isinstance(layer, nn.Linear):
        weight = weight[0, :, :, 0].T
    elif isinstance(layer, _TRANSPOSED):
        weight = weight.transpose([0, 2, 1, 3])
    layer.weight.set_value(np.ascontiguousarray(weight.reshape(shape).astype("float32")))
    if layer.bias is not None:
        layer.bias.set_value((layer.bias.numpy().astype("float64") / outer).astype("float32"))


# Links between layers.


class _Refused(BaseException):
    """Ends a forward pass. Not an Exception, which models may handle."""


def _find_links(model, run):
    """Return name of a layer -> {name of a reader: channels}, or the reason that it has none.

    The channels are those of the layer's output that the input channels of the reader are.
    """
    layers = {name: layer for name, layer in model.named_sublayers(include_self=True)
              if isinstance(layer, _LAYERS)}
    calls: List[str] = []
    outputs: Dict[str, Tuple[List[int], float]] = {}

    def record(name, original, *args, **kwargs):
        y = original(*args, **kwargs)
        calls.append(name)
        outputs[name] = list(y.shape), float(y.astype("float32").abs().max()) if y.size else 0.0
        return y

    with patched_forwards(layers, record):
        run()
    counts = Counter(calls)
    owners = Counter(id(parameter) for layer in model.sublayers(include_self=True)
                     for parameter in layer.parameters(include_sublayers=False))

    def unusable(name) -> Optional[str]:
        layer = layers[name]
        if counts[name] != 1:
            return f"{name} is called {counts[name]} times in a forward pass"
        if any(owners[id(each)] > 1 for each in (layer.weight, layer.bias) if each is not None):
            return f"{name} shares its weight or bias with another layer"
        if layer.weight.dtype != paddle.float32:
            return f"the weight of {name} is not float32"
        return None

    found: Dict[str, Any] = {}
    for name in layers:
        reason = unusable(name)
        found[name] = reason or _links_of(name, layers, run, outputs[name], unusable)
    return found


def _links_of(name, layers, run, output, unusable):
    """Return the links of a layer, or the reason that it has none; see :func:`_find_links`."""
    shape, largest = output
    axis = channel_axis(layers[name])
    channels = shape[axis]
    generator = np.random.default_rng(channels)
    values = generator.normal(0.0, max(1.0, largest), shape).astype("float32")
    factors = (2.0 ** generator.choice(_EXPONENTS, channels)).astype("float32")
    links: Dict[str, np.ndarray] = {}
    for sign in (1.0, -1.0):
        result = _compare(name, layers, run, sign * values, factors, axis, links)
        if result is not None:
            return result
    if not links:
        return "its output reaches no weighted layer"
    reasons = [reason for reason in map(unusable, links) if reason]
    return reasons[0] if reasons else links


def _compare(name, layers, run, values, factors, axis, links):
    """Run with given outputs of a layer and with multiples; return a reason or None.

    A reader that sees exact multiples gets its inputs of the first run and is added to ``links``.
    """
    seen: List[Tuple[str, np.ndarray]] = []

    def plain(each, original, *args, **kwargs):
        if each == name:
            seen.clear()  # of the layers before it
            return paddle.to_tensor(values)
        seen.append((each, _first(layers[each], args, kwargs).numpy().copy()))
        return original(*args, **kwargs)

    with patched_forwards(layers, plain):
        reference = output_values(run())
    along = [1] * values.ndim
    along[axis] = -1
    multiples = paddle.to_tensor(values * factors.reshape(along))
    later: Any = None

    def multiplied(each, original, *args, **kwargs):
        nonlocal later
        if each == name:
            later = iter(seen)
            return multiples
        if later is None:
            return original(*args, **kwargs)
        x = _first(layers[each], args, kwargs)
        other, before = next(later, ("", np.empty([0])))
        if other != each or list(before.shape) != list(x.shape):
            raise _Refused(f"the layers that run depend on the output of {name}")
        if same_values([x.numpy()], [before]):
            return original(*args, **kwargs)
        found = _channels(layers[each], x.numpy(), before, factors)
        if found is None:
            raise _Refused(f"the operators between {name} and {each} are not positively "
                           "homogeneous, or add another tensor")
        links[each] = found
        args, kwargs = _replaced(layers[each], args, kwargs, paddle.to_tensor(before))
        return original(*args, **kwargs)

    try:
        with patched_forwards(layers, multiplied):
            result = output_values(run())
    except _Refused as refused:
        return str(refused)
    if not same_values(result, reference):
        return "its output reaches an output of the model or operators without weights"
    return None


def _channels(layer, x, before, factors):
    """Return the channels whose factors turn ``before`` into ``x`` exactly, or None."""
    axis = channel_axis(layer) % x.ndim
    count, known = x.shape[axis], np.arange(len(factors))
    if count % len(factors):
        return None
    shape = [1] * x.ndim
    shape[axis] = -1
    # A flattened image: each channel is repeated, or the channels as a whole.
    for channels in (np.repeat(known, count // len(known)), np.tile(known, count // len(known))):
        if same_values([before * factors[channels].reshape(shape)], [x]):
            return channels
    return None


def _first(layer, args, kwargs):
    """Return the first argument of a call."""
    return args[0] if args else kwargs[argument_names(layer)[0]]


def _replaced(layer, args, kwargs, x):
    """Return the arguments of a call with another first one."""
    return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, argument_names(layer)[0]: x})
