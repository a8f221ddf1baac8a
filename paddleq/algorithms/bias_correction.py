"""Bias correction: remove the shift of the mean of each channel that quantization causes.

Rounding of weights and activations does not cancel out within a channel, which moves the mean of
the output (https://arxiv.org/abs/1906.04721, section 4.2). The difference of the means over data
is added to the bias.
"""

import logging
from collections import Counter
from typing import Any, Dict, Iterable, List, Optional, Union

import paddle
from paddle import nn
from paddle.distributed import ReduceOp

from .._checks import check_choice
from .._distributed import all_gather, all_reduce, groups
from ..engine.calibration import iter_batches, run_batches
from ..engine.state import (
    check_quantized,
    evaluation,
    is_left_float,
    quantized_layers,
    quantizing_only,
)
from ..errors import CalibrationError
from ..graph.calls import patched_forwards
from ..graph.dataflow import PRODUCERS, channel_axis
from ..nn.class_swap import rollback_on_error

_logger = logging.getLogger("paddleq")
METHODS = ("fast", "full")


def parse_bias_correction(value: Union[bool, str]) -> Optional[str]:
    """Return the method of a ``bias_correction`` argument, None for False; True is "fast"."""
    if isinstance(value, bool):
        return "fast" if value else None
    return check_choice("bias_correction", value, METHODS)


def correct_biases(model: nn.Layer, data: Iterable, method: str = "fast",
                   num_batches: Optional[int] = None) -> List[str]:
    """Add the mean error of each channel of calibrated layers to their biases, in place.

    Convolutions, transposed convolutions and Linear layers whose weight is quantized are
    corrected; one without a bias gets one. Layers stay as they are whose bias is shared, that are
    fused with a norm, or that no data reaches.

    Args:
        model: a calibrated model, as of :func:`paddleq.calibrate`.
        data: batches as for :func:`paddleq.calibrate`, of which at least some hundred images or
            sequences are needed for precise means.
        method: "fast": one pass, in which each layer is compared with its float form on the inputs
            of the float model. "full": a pass for each layer in the order of execution, on what
            the corrected layers before it compute, against the float model; it keeps all batches
            in memory. It also removes shifts that come from layers before and from operators that
            are not corrected themselves.
        num_batches: use this many batches. Default: all.

    Processes that ``paddle.distributed`` connects correct biases together, each on its share of the
    data, by the means over all of them; see :func:`paddleq.calibrate`.

    Returns:
        Names of the corrected layers, in the order of execution.

    Raises:
        CalibrationError: ``data`` is empty, or the model is not calibrated.
        ModelError: the model is not quantized.

    Examples:
        >>> import paddle, paddleq
        >>> from paddleq.algorithms import correct_biases
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4))
        >>> batches = [paddle.rand([64, 8])]
        >>> net = paddleq.PTQ("AbsmaxQuantizer").quantize(net)
        >>> _ = paddleq.calibrate(net, batches)
        >>> correct_biases(net, batches)
        ['0']
    """
    check_quantized(model)
    check_choice("method", method, METHODS)
    return correct_on_batches(
        model, iter_batches(model, data, num_batches, "correcting biases",
                            allow_empty=bool(groups())), method)


def correct_on_batches(model: nn.Layer, batches: Iterable, method: str) -> List[str]:
    """Correct biases as :func:`correct_biases` on the batches of ``engine.iter_batches``."""
    layers = _correctable(model)
    biases = [layer.bias for layer in layers.values() if layer.bias is not None]
    with rollback_on_error(model, biases), evaluation(model), paddle.no_grad():
        if method == "full":
            return _correct_in_order(model, layers, list(batches))
        errors = _errors_in_float_model(model, layers, batches)
        for name, error in errors.items():
            _add_to_bias(layers[name], error)
        return list(errors)


def _correctable(model):
    """Return name -> layer of the layers that can be corrected."""
    found = {name: layer for name, layer in quantized_layers(model)
             if isinstance(layer, PRODUCERS + (nn.Conv3DTranspose,)) and not is_left_float(layer)
             and layer.weight_parts("weight")[1] is not None and layer._paddleq.block is None}
    owners = Counter(id(parameter) for layer in model.sublayers(include_self=True)
                     for parameter in layer.parameters(include_sublayers=False))
    for name in [name for name, layer in found.items()
                 if layer.bias is not None and owners[id(layer.bias)] > 1]:
        _logger.warning("the bias of %s is not corrected: several layers share it", name)
        del found[name]
    return found


class _ChannelMeans:
    """Means of the channels of the outputs of layers over all batches."""

    def __init__(self):
        self._sums: Dict[str, Any] = {}
        self._counts: Counter = Counter()

    def add(self, name, layer, value):
        if 0 in value.shape:
            return
        axis = channel_axis(layer) % len(value.shape)
        others = [i for i in range(len(value.shape)) if i != axis]
        value = value.astype("float64")
        self._sums[name] = self._sums.get(name, 0.0) + (value.sum(others) if others else value)
        self._counts[name] += value.size // value.shape[axis]

    def result(self, layers: Dict[str, nn.Layer]) -> Dict[str, paddle.Tensor]:
        """Return the means over the batches of all processes, in the order of execution."""
        if not groups():
            return {name: total / self._counts[name] for name, total in self._sums.items()}
        order = {name: position for position, name in enumerate(self._sums)}
        own = [[order.get(name, -1), len(self._sums.get(name, ())), self._counts[name]]
               for name in layers]
        every = paddle.stack(all_gather(paddle.to_tensor(own, dtype="int64"))).numpy()
        positions, sizes, counts = every[:, :, 0], every[:, :, 1].max(0), every[:, :, 2].sum(0)
        found = {}
        for number, name in enumerate(layers):
            if counts[number]:
                total = self._sums.get(name)
                if total is None:
                    total = paddle.zeros([int(sizes[number])], dtype="float64")
                found[name] = all_reduce(total.clone(), ReduceOp.SUM) / int(counts[number])
        # The order of the first process that ran the layer.
        rank = {name: min((r, p) for r, p in enumerate(positions[:, number]) if p >= 0)
                for number, name in enumerate(layers) if name in found}
        return {name: found[name] for name in sorted(found, key=lambda name: rank[name])}


def _errors_in_float_model(model, layers, batches):
    """Return name -> mean error of the channels, float minus quantized, on the same inputs."""
    means = _ChannelMeans()

    def forward(name, original, *args, **kwargs):
        state = layers[name]._paddleq
        expected = original(*args, **kwargs)
        state.compute_float = False
        try:
            found = original(*args, **kwargs)
        finally:
            state.compute_float = True
        means.add(name, layers[name], expected.astype("float64") - found.astype("float64"))
        return expected

    with quantizing_only(model, []), patched_forwards(layers, forward):
        _run(model, batches)
    return means.result(layers)


def _correct_in_order(model, layers, batches):
    from tqdm import tqdm

    means = _ChannelMeans()

    def observe(name, original, *args, **kwargs):
        value = original(*args, **kwargs)
        means.add(name, layers[name], value)
        return value

    with quantizing_only(model, []), patched_forwards(layers, observe):
        _run(model, batches)
    expected = means.result(layers)
    for name in tqdm(expected, desc="correcting biases", disable=None, leave=False):
        means = _ChannelMeans()
        with patched_forwards({name: layers[name]}, observe):
            _run(model, batches)
        _add_to_bias(layers[name], expected[name] - means.result({name: layers[name]})[name])
    return list(expected)


def _run(model, batches):
    count = run_batches(lambda batch: model(*batch[0], **batch[1]), batches)
    if not all_reduce(paddle.to_tensor([count]), ReduceOp.SUM).item():
        raise CalibrationError("data must yield at least one batch, but is empty")


def _add_to_bias(layer, error):
    if layer.bias is None:
        layer.bias = layer.create_parameter(shape=list(error.shape), is_bias=True,
                                            dtype=layer.weight.dtype)
    bias = layer.bias
    bias.set_value((bias.astype("float64") + error).astype(bias.dtype))
