"""``IntegerLinear``: linear layer of deployed transformers with quantized weights."""

import math
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

import paddle
from paddle import nn

from .._checks import (
    check_bool,
    check_choice,
    check_int,
    check_layer,
    wrong_type,
    wrong_value,
)
from .._paddle_compat import (
    BuffersKeepDtype,
    dtype_name,
    flops_counters,
    own_buffers,
    own_parameters,
    skip_bytecode_translation,
)
from ..config import LayerConfig, SkipKind, SkipReason
from ..errors import ConfigTypeError, ModelError
from ..functional import decode, dequantize, pack_int4, token_scales, unpack_int4
from ..functional.dynamic_quant import quantize_dequantize_blocks
from ..functional.fake_quant import dequantize_
from ..functional.float_formats import decode_shared_scale, encode_shared_scale
from ..functional.qparams import as_dtype
from ..functional.weight_qparams import (
    blocks_of_columns,
    check_weight_spec,
    columns_of_blocks,
    dequantize_weight,
    dequantize_weight_,
    group_size,
)
from ..spec import PerBlock, PerGroup, PerTensor, PerToken, QuantSpec
from . import tracing
from .deployable import describe_spec
from .integer_layer import IntegerLayer
from .layer_types import frozen_form, kind_of

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_PACKED_BITS = 4  # up to this width, a byte holds two integers
_NAN_EXPONENT = 255  # the code of NaN in float8_e8m0fnu
_BLOCK = 1 << 20  # number of weights that are dequantized at a time


def linear_skip_reason(layer: nn.Layer,
                       config: Optional[LayerConfig] = None) -> Optional[SkipReason]:
    """Return the reason for which ``IntegerLinear`` cannot replace a layer, or None if it can."""
    if not isinstance(layer, nn.Linear):
        return SkipReason(SkipKind.NOT_LINEAR)
    if kind_of(layer) is None or _replaces_forward(layer):
        return SkipReason(SkipKind.OVERRIDES_FORWARD)
    if own_parameters(layer).get("weight") is None:
        return SkipReason(SkipKind.WEIGHT_FROM_HOOK)
    if config is not None and config.weight is None and config.activation is None:
        return SkipReason(SkipKind.NOT_CONFIGURED, "weight")
    return None


@contextmanager
def keep_dequantized(model: nn.Layer, max_bytes: Optional[int] = None) -> Iterator[List[str]]:
    """Keep the float weights of IntegerLinear layers while open, from their first call on.

    An :class:`IntegerLinear` dequantizes its weight in every forward pass, so that a model needs
    the memory of its integers only. That is most of the time of decoding token by token. While the
    context is open, the results are the same and the memory is that of the float model. Open it for
    a generation, and load no checkpoint meanwhile.

    Args:
        model: a ``paddle.nn.Layer``.
        max_bytes: limit for the float weights. Layers are chosen in their order, as long as they
            fit. Default None: all.

    Yields:
        Names of the layers that keep their weights.

    Examples:
        >>> import paddle, paddleq
        >>> from paddleq.nn import IntegerLinear, keep_dequantized
        >>> model = paddle.nn.Sequential(IntegerLinear(64, 8, paddleq.QuantSpec(4)),
        ...                              IntegerLinear(8, 8, paddleq.QuantSpec(4)))
        >>> with keep_dequantized(model, max_bytes=64 * 8 * 4) as names:
        ...     y = model(paddle.ones([1, 64]))
        >>> names
        ['0']
    """
    check_layer("model", model)
    if max_bytes is not None:
        check_int("max_bytes", max_bytes, 0)
    left, chosen = math.inf if max_bytes is None else max_bytes, {}
    for name, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, IntegerLinear) and layer._kept_blocks is None:
            size = 4 * layer.in_features * layer.out_features
            if size <= left:
                left -= size
                chosen[name] = layer
    for layer in chosen.values():
        layer._kept_blocks = {}
    try:
        yield list(chosen)
    finally:
        for layer in chosen.values():
            layer._kept_blocks = None


def _replaces_forward(layer):
    # The bytecode translator of to_static stores the method of the class in the layer.
    forward = layer.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(layer).forward


@frozen_form(nn.Linear)
@skip_bytecode_translation
class IntegerLinear(BuffersKeepDtype, IntegerLayer):
    """Linear layer with a quantized weight: y = x W + b, W = (q - zero_point) * scale.

    q are integers, or numbers of a float data type, which are stored as their codes.

    The constructor creates an empty layer into which a checkpoint is loaded. :meth:`from_linear`
    creates a layer with numbers. Those of up to 4 bits are packed, two in a byte. The float
    weight exists during the forward only, for a large matrix one block of rows at a time.

    With ``smoothed``, the input is divided by ``input_scale``; with ``permuted``, its features are
    then reordered by ``permutation``. Quantized activations:

    - per tensor, static: ``activation_scale`` and ``activation_zero_point`` are stored.
    - per token, dynamic: the scale of a token is max|x| / 127 over its features (8 bits). The
      matrix product multiplies integers, and its result is multiplied by the scale.
    - MX data types, dynamic: the scale of 32 features of a token is a power of two.

    Args:
        in_features, out_features: K and N.
        weight: a :class:`~paddleq.QuantSpec` of 2 to 8 bits; ``PerTensor()``, ``PerChannel(1)``
            ``PerGroup(size)``, groups of consecutive input features (the last may be smaller), or
            ``PerBlock()``.
        bias: add a bias. Default True.
        activation: a :class:`~paddleq.QuantSpec` of 2 to 8 bits; ``PerTensor()``, or ``PerToken()``
            and symmetric, or an MX data type. None (default): activations stay float.
        smoothed, permuted: see above. Default False.
        dtype: data type of the bias: "float32" (default), "float16", "bfloat16" or "float64". The
            layer always computes in float32 and returns the data type of its input. Casting the
            model casts the bias only.
        algorithm: name of the weight quantization algorithm, such as "GPTQ", for ``quant_type``.
            Default "".

    Shapes: x [..., K], y [..., N]. In ``state_dict``, where they apply: ``weight`` [K, N] int8 or
    uint8, or [ceil(K / 2), N] uint8 of two integers each; ``weight_scale`` float32 and
    ``weight_zero_point`` of [1, 1], [1, N], [groups, N] or [groups, blocks]; the scales of an MX
    data type are float8_e8m0fnu codes, uint8; ``bias`` [N]; ``input_scale`` float32
    [K]; ``activation_scale`` float32 [1]; ``activation_zero_point`` int64 [1]; ``permutation``
    int64 [K].

    Raises:
        ConfigError, ConfigTypeError: the layer does not support the scheme, or an input is not
            float.

    Examples:
        >>> import paddle, paddleq
        >>> from paddleq.nn import IntegerLinear
        >>> layer = IntegerLinear(256, 64, paddleq.QuantSpec(4, granularity=paddleq.PerGroup(64)))
        >>> list(layer.weight.shape), list(layer.weight_scale.shape), layer.quant_type
        ([128, 64], [4, 64], 'W4-per_group')
        >>> list(layer(paddle.rand([2, 256])).shape)
        [2, 64]
    """

    data_dependent = ("smoothed", "permuted", "algorithm")
    spec_fields = ("weight", "activation")
    _kernel = None  # see gpu_linear.py
    _kept_blocks = None  # see keep_dequantized: first row -> float32 block

    weight_spec: QuantSpec  # of its only weight, so not None

    def __init__(self, in_features, out_features, weight, bias=True, activation=None,
                 smoothed=False, permuted=False, dtype: Any = "float32", algorithm=""):
        super().__init__()
        self.in_features = check_int("in_features", in_features, 1)
        self.out_features = check_int("out_features", out_features, 1)
        self.weight_specs = {"weight": check_weight_spec("weight", _checked_spec("weight", weight))}
        self.input_specs = (_checked_activation(activation),)
        self.smoothed = check_bool("smoothed", smoothed)
        self.permuted = check_bool("permuted", permuted)
        check_choice("dtype", dtype, _DTYPES)
        if not isinstance(algorithm, str):
            raise wrong_type("algorithm", algorithm, "a str")
        self.algorithm = algorithm
        rows = (in_features + 1) // 2 if self.packed else in_features
        self._register_zeros("weight", [rows, out_features],
                             "uint8" if self.packed else weight.storage)
        columns = 1 if isinstance(weight.granularity, PerTensor) else out_features
        if isinstance(weight.granularity, PerBlock):
            columns = -(-out_features // weight.granularity.columns)
        scales = [-(-in_features // group_size(weight, in_features)), columns]
        self._register_zeros("weight_scale", scales, "uint8" if self.has_shared_exponents
                             else "float32")
        if not weight.symmetric:
            self._register_zeros("weight_zero_point", scales, weight.storage)
        self.bias = self.create_parameter(
            [out_features], dtype=dtype, is_bias=True) if check_bool("bias", bias) else None
        if smoothed:
            self._register_zeros("input_scale", [in_features], "float32")
        if activation is not None and not self.dynamic_activation:
            self._register_zeros("activation_scale", [1], "float32")
            if not activation.symmetric:
                self._register_zeros("activation_zero_point", [1], "int64")
        if permuted:
            self._register_zeros("permutation", [in_features], "int64")

    def _register_zeros(self, name, shape, dtype):
        self.register_buffer(name, paddle.zeros(shape, dtype))

    @classmethod
    def empty(cls, linear, weight, activation=None, smoothed=False, permuted=False, algorithm=""):
        """Return a layer without numbers to replace ``linear``, a ``paddle.nn.Linear``."""
        bias, (rows, columns) = linear.bias, linear.weight.shape
        layer = cls(rows, columns, weight, bias is not None, activation, smoothed, permuted,
                    "float32" if bias is None else dtype_name(bias.dtype), algorithm)
        layer.training = linear.training
        return layer

    @classmethod
    def from_linear(cls, linear, quantized_weight, activation=None, activation_qparams=None,
                    input_scale=None, algorithm=""):
        """Return a layer to replace ``linear``, which is not changed.

        Args:
            linear: a ``paddle.nn.Linear``, whose bias the new layer shares.
            quantized_weight: an object with ``integers`` (int8 or uint8 [K, N]), ``qparams`` (with
                ``spec``, ``scale``, ``zero_point``) and ``permutation`` (int64 [K] or None), as
                the algorithms return it.
            activation: a :class:`~paddleq.QuantSpec`, or None (default).
            activation_qparams: (scale [1], zero point [1] or None) of static activations.
            input_scale: float32 [K], or None (default).
            algorithm: name of the weight quantization algorithm. Default "".
        """
        qparams, order = quantized_weight.qparams, quantized_weight.permutation
        layer = cls.empty(linear, qparams.spec, activation, input_scale is not None,
                          order is not None, algorithm)
        with paddle.no_grad():
            integers = quantized_weight.integers
            if layer.packed:
                integers = pack_int4(integers, layer._signed)
            layer._set_buffer("weight", integers)
            scale = blocks_of_columns(qparams.scale, qparams.spec)
            layer._set_buffer("weight_scale", encode_shared_scale(scale)
                              if layer.has_shared_exponents else scale)
            layer._set_buffer("weight_zero_point", qparams.zero_point)
            layer._set_buffer("input_scale", input_scale)
            layer._set_buffer("permutation", order)
            scale, zero_point = activation_qparams or (None, None)
            layer._set_buffer("activation_scale", scale)
            layer._set_buffer("activation_zero_point", zero_point)
        if linear.bias is not None:
            layer.bias = linear.bias
        return layer

    def _set_buffer(self, name, value):
        held = own_buffers(self).get(name)
        if (held is None) != (value is None):
            expected = "none" if held is None else f"a tensor of {list(held.shape)}"
            raise wrong_value(name, value, f"{expected}, as the specs say")
        if held is not None:
            if list(value.shape) != list(held.shape):
                raise wrong_value(f"the shape of {name}", list(value.shape), f"{list(held.shape)}")
            own_buffers(self)[name] = as_dtype(value.detach(), held.dtype).clone()

    @property
    def packed(self):
        """True if a byte holds two integers."""
        return self.weight_spec.bits <= _PACKED_BITS

    @property
    def _signed(self):
        """True if the packed integers are signed. Codes are not."""
        return self.weight_spec.signed and self.weight_spec.element is None

    @property
    def has_shared_exponents(self):
        """True if the scales of the weight are powers of two, as in the MX data types."""
        data_type = self.weight_spec.data_type
        return data_type is not None and data_type.block is not None

    @property
    def per_token(self):
        """True if activations are quantized with a scale for each token."""
        spec = self.activation_spec
        return spec is not None and isinstance(spec.granularity, PerToken)

    @property
    def dynamic_activation(self):
        """True if the scales of activations are computed while the model runs."""
        spec = self.activation_spec
        return spec is not None and not isinstance(spec.granularity, PerTensor)

    @paddle.jit.not_to_static
    def forward(self, input):
        """Compute x W + b. The argument is named as that of ``paddle.nn.Linear``."""
        x, dtype, kernel = input, input.dtype, self._kernel
        if dtype_name(dtype) not in _DTYPES:
            raise ConfigTypeError(
                f"input must be a tensor of floats, but is one of {dtype_name(dtype)}; if the "
                "model casts it to weight.dtype: the weight of this layer holds integers")
        if paddle.in_dynamic_mode() and 0 in x.shape:
            return paddle.zeros([*x.shape[:-1], self.out_features], dtype)
        x = as_dtype(x, paddle.float32)
        if self.smoothed:
            x = x / as_dtype(self.input_scale, paddle.float32)
        if self.permuted:
            x = paddle.gather(x, self.permutation, axis=len(x.shape) - 1)
        if kernel is not None and kernel.supports(input):
            y = as_dtype(kernel(as_dtype(x, dtype)), paddle.float32)
        elif self.per_token:
            step = token_scales(x.detach(), self.activation_spec)
            y = self._matmul(self._quantize_input(0, x / step)) * step
        elif self.dynamic_activation and tracing.recorder() is None:
            y = self._matmul(quantize_dequantize_blocks(x, self.activation_spec))
        else:
            y = self._matmul(self._quantize_input(0, x))
        if self.bias is not None:
            y = y + as_dtype(self.bias, paddle.float32)
        return as_dtype(y, dtype)

    def qparams(self, name, spec):
        """Return (absolute maximum [1], [N] or [groups, N]; zero point or None)."""
        # Per token, the unit of the absolute maximum is the step.
        if name == "activation" and self.dynamic_activation:
            return paddle.full([1], float(spec.quant_max), "float32"), None
        if name == "weight" and spec.element is not None:
            return self._scale() * float(spec.quant_max), None
        abs_max, zero_point = super().qparams(name, spec)
        if isinstance(spec.granularity, PerGroup):
            return abs_max, zero_point
        return abs_max.reshape([-1]), (
            None if zero_point is None else zero_point.astype("int64").reshape([-1]))

    def _matmul(self, x):
        if not paddle.in_dynamic_mode() or tracing.recorder():
            return paddle.matmul(x, self._weight("weight"))
        y: Any = None
        for start, stop in self._blocks():
            part = x if stop - start == self.in_features else x[..., start:stop]
            product = paddle.matmul(part, self._block(start, stop))
            y = product if y is None else y + product
        return y

    def _blocks(self):
        """Return the first and last row of each part that is dequantized at a time."""
        # A block is a multiple of bytes and groups.
        unit = 2
        if self.weight_scale.shape[0] > 1:
            size = group_size(self.weight_spec, self.in_features)
            unit = size * (1 + size % 2)
        rows = max(_BLOCK // self.out_features // unit, 1) * unit
        return [(start, min(start + rows, self.in_features))
                for start in range(0, self.in_features, rows)]

    def _block(self, start, stop):
        kept = self._kept_blocks
        if kept is not None and start in kept:
            return kept[start]
        whole = stop - start == self.in_features
        weight = self.dequantized_weight() if whole else (
            self.dequantized_weight("weight", start, stop))
        if kept is not None:
            kept[start] = weight
        return weight

    def dequantized_weight(self, name="weight", start=None, stop=None):
        """Return the float32 weight, or rows from ``start``, even and the first of a group."""
        spec, dynamic = self.weight_spec, paddle.in_dynamic_mode()
        with paddle.no_grad():
            integers = self.integers(name, start, stop)
            scale = self._scale(start, stop)
            if self.quantized_linearly:
                # The formula of the operator dequantize_linear, which an export contains.
                abs_max, _ = self.qparams("weight", spec)
                return (dequantize_ if dynamic else dequantize)(integers, abs_max, spec)
            zero_point = None if spec.symmetric else as_dtype(
                self._rows_of("weight_zero_point", start, stop), paddle.float32)
            return (dequantize_weight_ if dynamic else dequantize_weight)(
                integers, spec, scale, zero_point)

    @property
    def quantized_linearly(self):
        """True if the operator ``dequantize_linear`` can dequantize the weight."""
        spec = self.weight_spec
        return (spec.symmetric and spec.signed and spec.limits is None and not self.packed
                and spec.element is None
                and not isinstance(spec.granularity, PerGroup))

    def integers(self, name="weight", start=None, stop=None):
        """Return the numbers as float32 [K, N], or the rows from ``start``, which must be even."""
        if not self.packed:
            held = self.weight if start is None else self.weight[start:stop]
        elif start is None or stop is None:
            held = unpack_int4(self.weight, self.in_features, self._signed)
        else:
            held = unpack_int4(self.weight[start // 2:(stop + 1) // 2], stop - start, self._signed)
        spec = self.weight_spec
        return held.astype("float32") if spec.element is None else decode(held, spec.element)

    def _scale(self, start=None, stop=None):
        """Return the float32 scale of the weight, or of the groups of some rows."""
        scale = self._rows_of("weight_scale", start, stop)
        scale = decode_shared_scale(scale) if self.has_shared_exponents else as_dtype(
            scale, paddle.float32)
        return columns_of_blocks(scale, self.weight_spec, self.out_features)

    def _rows_of(self, name, start, stop):
        # Not _buffers: attribute access converts a buffer to a variable while tracing.
        held = getattr(self, name)
        if start is None or held.shape[0] == 1:
            return held
        size = group_size(self.weight_spec, self.in_features)
        return held[start // size:-(-stop // size)]

    def description(self):
        return {"in_features": self.in_features, "out_features": self.out_features,
                "weight": describe_spec(self.weight_spec), "bias": self.bias is not None,
                "activation": describe_spec(self.activation_spec), "smoothed": self.smoothed,
                "permuted": self.permuted, "algorithm": self.algorithm,
                "dtype": "float32" if self.bias is None else dtype_name(self.bias.dtype)}

    @classmethod
    def in_place_of(cls, layer, description):
        new = cls.from_description(description)
        expected = f"a Linear from {new.in_features} to {new.out_features} features"
        reason = linear_skip_reason(layer)
        if reason:
            raise ModelError(f"it must be {expected}, but is a {type(layer).__name__}: {reason}")
        if list(layer.weight.shape) != [new.in_features, new.out_features]:
            raise ModelError(f"it must be {expected}, but is one from {layer.weight.shape[0]} to "
                             f"{layer.weight.shape[1]}")
        if (layer.bias is None) != (new.bias is None):
            raise ModelError(f"it must {'not ' if new.bias is None else ''}have a bias")
        new.training = layer.training
        return new

    @property
    def initialized(self):
        return bool(paddle.isfinite(self._scale().sum()))

    def forget_scale(self):
        """Set the scale to NaN, so that ``initialized`` is False until a checkpoint is loaded."""
        value = _NAN_EXPONENT if self.has_shared_exponents else float("nan")
        self.weight_scale.set_value(paddle.full_like(self.weight_scale, value))

    def extra_repr(self):
        return ", ".join([f"in_features={self.in_features}", f"out_features={self.out_features}",
                          self.quant_type,
                          *(name for name in ("smoothed", "permuted") if getattr(self, name))])


def _count_flops(layer, inputs, output):
    """Count as paddle.flops counts a Linear; the shape of the packed weight differs."""
    layer.total_ops += layer.in_features * int(output.numel())


flops_counters()[IntegerLinear] = _count_flops


def _checked_spec(name, spec, expected="a QuantSpec"):
    if not isinstance(spec, QuantSpec):
        raise wrong_type(name, spec, expected)
    check_int(f"{name}.bits", spec.bits, 2, 8)
    return spec


def _checked_activation(spec):
    if spec is None:
        return None
    _checked_spec("activation", spec, "a QuantSpec or None")
    per_token = isinstance(spec.granularity, PerToken)
    if spec.data_type is not None and spec.data_type.block:
        return spec
    if not per_token and spec.granularity != PerTensor():
        raise wrong_value("activation.granularity", spec.granularity, "PerTensor() or PerToken(), "
                          "or an MX data type")
    if per_token and not (spec.symmetric and spec.signed):
        raise wrong_value("activation", spec, "symmetric and signed where it is per token")
    return spec
