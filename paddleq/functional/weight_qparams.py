"""Quantization parameters of the weight of a Linear layer.

A weight is [K, N], input features by output features. It has one scale (``PerTensor``), one for
each column (``PerChannel(1)``), one for each column of each group of rows (``PerGroup``), or one
for each block of rows and columns (``PerBlock``):

    q = clip(round(w / scale) + zero_point, quant_min, quant_max)
    w = (q - zero_point) * scale

With a float data type q is the nearest number of its format, without a zero point.
"""

from dataclasses import dataclass
from typing import Any, Optional

import paddle

from .._checks import check_choice, wrong_value
from ..spec import PerBlock, PerChannel, PerGroup, PerTensor, QuantSpec
from .fake_quant import round_and_clip_
from .float_formats import from_storage, shared_scale
from .qparams import EPS, affine_scale_zero_point, as_dtype, scale_of
from .range_search import least_error_shares


@dataclass
class WeightQParams:
    """Scale and zero point of a weight [K, N].

    Attributes:
        spec: a :class:`~paddleq.QuantSpec`, granularity PerTensor, PerChannel(1), PerGroup or
            PerBlock.
        scale: float32 [1, 1], [1, N], or [ceil(K / size), N] for groups of ``size`` rows, of
            which the last one may be shorter. The columns of a block have the same scale.
        zero_point: float32 holding integers, of the scale's shape; None for a symmetric spec.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.functional import compute_weight_qparams
        >>> weight = paddle.to_tensor([[7.0], [-3.4], [3.5]])
        >>> grid = compute_weight_qparams(weight, QuantSpec(bits=4, granularity=PerGroup(2)))
        >>> grid.scale.tolist()
        [[1.0], [0.5]]
        >>> integers = grid.quantize(weight)
        >>> integers.flatten().tolist(), grid.dequantize(integers).flatten().tolist()
        ([7.0, -3.0, 7.0], [7.0, -3.0, 3.5])
    """

    spec: QuantSpec
    scale: Any
    zero_point: Optional[Any] = None

    def quantize(self, weight):
        """Quantize ``weight`` [K, N] to integers or numbers, as float32 of that shape."""
        rows = weight.shape[0]
        with paddle.no_grad():
            steps = group_rows(as_dtype(weight, paddle.float32), self.spec)
            # Not in place: ``steps`` may share the memory of the weight.
            steps = steps / self.scale.unsqueeze(1)
            zero = 0 if self.zero_point is None else self.zero_point.unsqueeze(1)
            integers = round_and_clip_(steps, self.spec, zero)
            return _as_rows(integers if self.zero_point is None else integers + zero, rows)

    def dequantize(self, integers):
        """Dequantize ``integers`` [K, N] of any dtype to float32.

        With a float data type, its numbers as float32 or their codes as uint8.
        """
        return dequantize_weight(integers, self.spec, self.scale, self.zero_point)


def dequantize_weight(integers, spec, scale, zero_point=None):
    """:meth:`WeightQParams.dequantize` as a function, because Paddle 2.6 cannot trace the class."""
    rows = integers.shape[0]
    steps = group_rows(from_storage(integers, spec), spec)
    if zero_point is not None:
        steps = steps - zero_point.unsqueeze(1)
    return _as_rows(steps * scale.unsqueeze(1), rows)


def dequantize_weight_(integers, spec, scale, zero_point=None):
    """:func:`dequantize_weight` in place, in dynamic mode; ``integers`` are float32 numbers."""
    with paddle.no_grad():
        def aligned(parameter):
            if scale.shape[0] == 1:
                return parameter.flatten()  # a vector is broadcast several times faster than a row
            # A full-size tensor is faster than broadcasting along a middle axis.
            rows = paddle.arange(integers.shape[0]) // group_size(spec, integers.shape[0])
            return paddle.index_select(parameter, rows, axis=0)

        if zero_point is not None:
            integers.subtract_(aligned(zero_point))
        return integers.multiply_(aligned(scale))


def compute_weight_qparams(weight, spec, clip=None):
    """Compute the scale and zero point that cover the range of a weight.

    Symmetric: scale = max|w| / quant_max, where quant_max is 127 for int8 and 7 for int4. Only
    clipping or GPTQ produces the lowest integer, -128 or -8. Asymmetric: the range is widened to
    contain 0, see :func:`~paddleq.functional.affine_qparams`. MX data types: a power of two, see
    :class:`~paddleq.QuantSpec`.

    Args:
        weight: float [K, N].
        spec: a :class:`~paddleq.QuantSpec`.
        clip: factor in (0, 1] that shrinks the range: a number, or a float32 tensor that
            broadcasts to the scale's shape; "mse" for the factors with the least squared error.
            Default None, the whole range.

    Returns:
        A :class:`WeightQParams`.

    Raises:
        ConfigError: the spec does not describe a Linear's weight, or the weight is not a matrix.

    Examples:
        >>> import paddle
        >>> from paddleq import PerChannel, QuantSpec
        >>> from paddleq.functional import compute_weight_qparams
        >>> weight = paddle.to_tensor([[-1.0, 0.0], [14.0, 30.0]])
        >>> spec = QuantSpec(bits=4, granularity=PerChannel(1))
        >>> compute_weight_qparams(weight, spec, clip=0.5).scale.tolist()
        [[1.0, 2.142857...]]
        >>> spec = QuantSpec(bits=4, signed=False, symmetric=False, granularity=PerChannel(1))
        >>> grid = compute_weight_qparams(weight, spec)
        >>> grid.scale.tolist(), grid.zero_point.tolist()
        ([[1.0, 2.0]], [[1.0, 0.0]])
    """
    check_weight_spec("spec", spec)
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise wrong_value("weight", list(weight.shape), "a matrix [in_features, out_features]")
    if isinstance(clip, str):
        check_choice("clip", clip, ("mse",))
        clip = _least_error_clip(weight, spec)
    with paddle.no_grad():
        groups = group_rows(as_dtype(weight.detach(), paddle.float32), spec)
        axes = [1, 2] if isinstance(spec.granularity, PerTensor) else [1]
        if spec.symmetric:
            largest = _all_of(groups.abs().max(axis=axes), spec)
            if clip is not None:
                largest = largest * clip
            if spec.data_type is not None and spec.data_type.block:
                return WeightQParams(spec, shared_scale(largest, spec.data_type))
            scale = scale_of(largest, spec).clip(min=EPS / spec.quant_max)
            return WeightQParams(spec, scale)
        low, high = (_all_of(each, spec) for each in (groups.min(axis=axes), groups.max(axis=axes)))
        if clip is not None:
            low, high = low * clip, high * clip
        scale, zero_point = affine_scale_zero_point(low, high, spec)
        return WeightQParams(spec, scale.astype("float32"), zero_point.astype("float32"))


def _least_error_clip(weight, spec):
    weight = as_dtype(weight.detach(), paddle.float32)
    groups = group_rows(weight, spec)
    axes = [1, 2] if isinstance(spec.granularity, PerTensor) else [1]

    def error_of(shares):
        qparams = compute_weight_qparams(weight, spec, shares)
        found = group_rows(qparams.dequantize(qparams.quantize(weight)), spec)
        return _all_of((found - groups).square().sum(axis=axes), spec, paddle.sum)

    return least_error_shares(error_of, compute_weight_qparams(weight, spec).scale)


def check_weight_spec(name, spec):
    """Return ``spec`` if it describes a Linear's weight, else raise ConfigError."""
    granularity = spec.granularity
    if not (isinstance(granularity, (PerTensor, PerGroup, PerBlock))
            or isinstance(granularity, PerChannel) and granularity.axis in (1, -1)):
        raise wrong_value(name, spec, "PerTensor, PerChannel(1) or PerGroup (or PerBlock with a "
                          "float dtype), for a weight [in_features, out_features]")
    if spec.binary or (spec.symmetric and not spec.signed):
        raise wrong_value(name, spec, "of 2 bits or more, and signed where it is symmetric")
    return spec


def group_size(spec, rows):
    """Return the number of consecutive rows that share a scale."""
    granularity = spec.granularity
    if isinstance(granularity, PerBlock):
        return granularity.rows
    return granularity.size if isinstance(granularity, PerGroup) else rows


def group_rows(x, spec):
    """Reshape [K, N] to [groups, rows of a group, N]; the last group is padded with zeros."""
    rows, columns = x.shape
    size = group_size(spec, rows)
    if rows % size:
        x = paddle.concat([x, paddle.zeros([-rows % size, columns], dtype="float32")])
    return x.reshape([-1, size, columns])


def _as_rows(groups, rows):
    flat = groups.reshape([-1, groups.shape[-1]])
    return flat if flat.shape[0] == rows else flat[:rows]


def _all_of(extremes, spec, reduce=paddle.max):
    """Reshape reduced values of groups to the shape of the scale; ``reduce`` those of a block."""
    if isinstance(spec.granularity, PerTensor):
        return extremes.reshape([1, 1])
    columns = extremes.shape[-1]
    extremes = extremes.reshape([-1, columns])
    if not isinstance(spec.granularity, PerBlock):
        return extremes
    size = min(spec.granularity.columns, columns)
    last = columns % size
    parts = [extremes[:, :columns - last].reshape([extremes.shape[0], -1, size])]
    if last:
        parts.append(extremes[:, columns - last:].unsqueeze(1))
    blocks = paddle.concat([reduce(part, axis=2) for part in parts], axis=1)
    return columns_of_blocks(blocks, spec, columns)


def columns_of_blocks(scale, spec, columns):
    """Return the scale [groups, columns] of scales of blocks; others are returned."""
    if not isinstance(spec.granularity, PerBlock):
        return scale
    groups, blocks = scale.shape
    size = spec.granularity.columns
    # Operators that every runtime has, unlike repeat_interleave.
    scale = scale.unsqueeze(2).expand([groups, blocks, size])
    return scale.reshape([groups, blocks * size])[:, :columns]


def blocks_of_columns(scale, spec):
    """Return the scale of each block of the scale of each column; others are returned."""
    if not isinstance(spec.granularity, PerBlock):
        return scale
    return scale[:, ::spec.granularity.columns]
