"""Numbers of a quantized Linear layer, in the order of its input features.

Formats encode and decode a :class:`LinearWeight`, whatever spec and feature order the layer has.
"""

from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import paddle

from ..._paddle_compat import dtype_name
from ...errors import ExportError, FormatError
from ...functional import pack_int4
from ...nn.integer_linear import IntegerLinear
from ...spec import PerChannel, PerGroup, PerTensor, QuantSpec


@dataclass(frozen=True)
class Scheme:
    """Quantization of a Linear layer as the configurations of the formats describe it.

    Attributes:
        bits: width of an integer of the weight.
        symmetric: True if the zero point is in the middle, 2**(bits - 1).
        group_size: number of input features that share a scale, or None for all.
        act_order: True if the features of a group are not consecutive.
        activation: :class:`~paddleq.QuantSpec` of the input, or None.
    """

    bits: int
    symmetric: bool
    group_size: Optional[int]
    act_order: bool
    activation: Optional[QuantSpec] = None


@dataclass
class LinearWeight:
    """Integers and quantization parameters of a Linear layer: w = (q - zero_point) * scale.

    Attributes:
        scheme: a :class:`Scheme`.
        integers: uint8 [K, N], 0 to 2**bits - 1, in the order of the input features.
        scale: float32 [G, N].
        zero_points: uint8 [G, N].
        groups: int32 [K], the group of each input feature.
        activation_scale, activation_zero_point: of a static input, numpy [1], or None.
    """

    scheme: Scheme
    integers: Any
    scale: Any
    zero_points: Any
    groups: Any
    activation_scale: Any = None
    activation_zero_point: Any = None


def refused(name, reason):
    """Return the error that a format cannot represent the layer ``name``."""
    return ExportError(f"the layer {name!r} cannot be written in this format: {reason}")


def weight_of(name: str, layer: IntegerLinear) -> LinearWeight:
    """Return the numbers of a layer.

    A permutation of features within groups is undone. One that mixes the features of groups gives
    a weight with ``act_order``.

    Raises:
        ExportError: the input is divided by factors of SmoothQuant or AWQ that were not folded.
    """
    if layer.smoothed:
        raise refused(name, "its input is divided by smoothing factors, which the preceding layer "
                      "did not take; quantize without smoothing for this layer")
    spec, count = layer.weight_spec, layer.in_features
    for part, each in (("weight", spec), ("input", layer.activation_spec)):
        if each is not None and each.dtype is not None:
            raise refused(name, f"its {part} is quantized to {each.dtype}, but only integers can "
                          "be written")
    offset = 2 ** (spec.bits - 1) if spec.signed else 0
    integers = (layer.integers().numpy() + offset).astype("uint8")
    scale = layer.weight_scale.numpy().astype("float32")
    if spec.symmetric:
        zero_points = np.full(scale.shape, offset, "uint8")
    else:
        zero_points = (layer.weight_zero_point.numpy().astype("int32") + offset).astype("uint8")
    if isinstance(spec.granularity, PerTensor):
        scale, zero_points = (np.repeat(each, layer.out_features, 1)
                              for each in (scale, zero_points))
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else None
    groups = np.arange(count, dtype="int32") // (size or count)
    if layer.permuted:
        order = layer.permutation.numpy()
        back = np.empty_like(order)
        back[order] = np.arange(count)
        integers, groups = integers[back], groups[back]
    weight = LinearWeight(
        Scheme(spec.bits, spec.symmetric and spec.signed, size, False, layer.activation_spec),
        integers, scale, zero_points, groups)
    if layer.activation_spec is not None and not layer.per_token:
        weight.activation_scale = layer.activation_scale.numpy()
        if not layer.activation_spec.symmetric:
            weight.activation_zero_point = layer.activation_zero_point.numpy()
    return _consecutive(weight)


def _consecutive(weight):
    """Number the groups in the order of the features if each is a block of consecutive ones."""
    size, groups = weight.scheme.group_size, weight.groups
    if size is None:
        return weight
    first = groups[::size]
    if np.array_equal(np.repeat(first, size)[:len(groups)], groups):
        return replace(weight, scale=weight.scale[first], zero_points=weight.zero_points[first],
                       groups=np.arange(len(groups), dtype="int32") // size)
    return replace(weight, scheme=replace(weight.scheme, act_order=True))


def integer_linear(weight: LinearWeight, bias: Optional[Any] = None) -> IntegerLinear:
    """Return the layer of a weight, with ``bias``, a parameter or None."""
    scheme = weight.scheme
    symmetric = bool(np.all(weight.zero_points == 2 ** (scheme.bits - 1)))
    spec = QuantSpec(
        scheme.bits, signed=symmetric, symmetric=symmetric,
        granularity=PerChannel(1) if scheme.group_size is None else PerGroup(scheme.group_size))
    rows, columns = weight.integers.shape
    layer = IntegerLinear(rows, columns, spec, bias is not None, scheme.activation,
                          permuted=scheme.act_order,
                          dtype="float32" if bias is None else dtype_name(bias.dtype))
    offset = 2 ** (scheme.bits - 1) if spec.signed else 0
    integers = weight.integers
    if scheme.act_order:
        order = np.argsort(weight.groups, kind="stable")
        integers = integers[order]
        layer._set_buffer("permutation", paddle.to_tensor(order.astype("int64")))
    integers = paddle.to_tensor((integers.astype("int16") - offset).astype(spec.storage))
    with paddle.no_grad():
        layer._set_buffer("weight", pack_int4(integers, spec.signed) if layer.packed else integers)
        layer._set_buffer("weight_scale", paddle.to_tensor(weight.scale.astype("float32")))
        if not symmetric:
            zero_points = (weight.zero_points.astype("int16") - offset).astype(spec.storage)
            layer._set_buffer("weight_zero_point", paddle.to_tensor(zero_points))
        for name in ("activation_scale", "activation_zero_point"):
            value = getattr(weight, name)
            if value is not None:
                layer._set_buffer(name, paddle.to_tensor(value.reshape([1])))
    if bias is not None:
        layer.bias = bias
    return layer


def group_size_of(name, groups, features, configured):
    """Return the group size of a weight with scales of ``groups`` groups, None for one group.

    Args:
        configured: group size of the configuration, or -1.

    Raises:
        FormatError: the number of groups is another one than the configuration says.
    """
    size = features if configured in (-1, None) else configured
    if not isinstance(size, int) or size < 1 or -(-features // size) != groups:
        raise FormatError(f"{name!r} has scales of {groups} groups for {features} input features, "
                          f"but the configuration says groups of {configured!r}")
    return None if configured in (-1, None) else size
