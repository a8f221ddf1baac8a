"""``IntegerLinear``: linear layer of deployed transformers with integer weights."""

import paddle
from paddle import nn

from .._checks import check_bool, check_choice, check_int, wrong_type, wrong_value
from .._paddle_compat import own_buffers, set_flops_counter, skip_bytecode_translation
from ..errors import ConfigTypeError, ModelError
from ..functional import dequantize, fake_quantize, pack_int4, token_scales, unpack_int4
from ..functional.fake_quant import dequantize_
from ..functional.qparams import as_dtype
from ..functional.weight_qparams import dequantize_weight, dequantize_weight_
from ..spec import PerGroup, PerToken
from . import tracing
from .deployable import (
    DeployableLayer,
    check_fields,
    deployable,
    describe_spec,
    spec_from,
    spec_name,
)
from .linear_support import check_activation, check_weight, linear_skip_reason, scale_shape

_FIELDS = ("in_features", "out_features", "weight", "bias", "activation", "smoothed", "permuted",
           "dtype", "algorithm")
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_PACKED_BITS = 4  # up to this width, a byte holds two integers
_BLOCK = 1 << 20  # number of weights that are dequantized at a time


@skip_bytecode_translation
@deployable
class IntegerLinear(nn.Layer, DeployableLayer):
    """Linear layer with an integer weight: y = x W + b, W = (q - zero_point) * scale.

    The constructor creates an empty layer into which a checkpoint is loaded. :meth:`from_linear`
    creates a layer with integers. Integers of up to 4 bits are packed, two in a byte. The float
    weight exists during the forward only, for a large matrix one block of rows at a time.

    With ``smoothed``, the input is divided by ``input_scale``; with ``permuted``, its features are
    then reordered by ``permutation``. Quantized activations:

    - per tensor, static: ``activation_scale`` and ``activation_zero_point`` are stored.
    - per token, dynamic: the scale of a token is max|x| / 127 over its features (8 bits). The
      matrix product multiplies integers, and its result is multiplied by the scale.

    Args:
        in_features, out_features: K and N.
        weight: a :class:`~paddleq.QuantSpec` of 2 to 8 bits; ``PerTensor()``, ``PerChannel(1)``
            or ``PerGroup(size)``, groups of consecutive input features (the last may be smaller).
        bias: add a bias. Default True.
        activation: a :class:`~paddleq.QuantSpec` of 2 to 8 bits; ``PerTensor()``, or ``PerToken()``
            and symmetric. None (default): activations stay float.
        smoothed, permuted: see above. Default False.
        dtype: data type of the bias: "float32" (default), "float16", "bfloat16" or "float64". The
            layer always computes in float32 and returns the data type of its input. Casting the
            model casts the bias only.
        algorithm: name of the weight quantization algorithm, such as "GPTQ", for ``quant_type``.
            Default "".

    Shapes: x [..., K], y [..., N]. In ``state_dict``, where they apply: ``weight`` [K, N] int8 or
    uint8, or [ceil(K / 2), N] uint8 of two integers each; ``weight_scale`` float32 and
    ``weight_zero_point`` of [1, 1], [1, N] or [groups, N]; ``bias`` [N]; ``input_scale`` float32
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

    _kernel = None  # see gpu_linear.py

    def __init__(self, in_features, out_features, weight, bias=True, activation=None,
                 smoothed=False, permuted=False, dtype="float32", algorithm=""):
        super().__init__()
        self.in_features = check_int("in_features", in_features, 1)
        self.out_features = check_int("out_features", out_features, 1)
        self.weight_spec = check_weight(weight)
        self.activation_spec = check_activation(activation)
        self.smoothed, self.permuted = (check_bool("smoothed", smoothed),
                                        check_bool("permuted", permuted))
        check_choice("dtype", dtype, _DTYPES)
        if not isinstance(algorithm, str):
            raise wrong_type("algorithm", algorithm, "a str")
        self.algorithm = algorithm
        rows = (in_features + 1) // 2 if self.packed else in_features
        self._register_zeros("weight", [rows, out_features],
                             "uint8" if self.packed else weight.storage)
        scales = scale_shape(weight, in_features, out_features)
        self._register_zeros("weight_scale", scales, "float32")
        if not weight.symmetric:
            self._register_zeros("weight_zero_point", scales, weight.storage)
        self.bias = self.create_parameter(
            [out_features], dtype=dtype, is_bias=True) if check_bool("bias", bias) else None
        if smoothed:
            self._register_zeros("input_scale", [in_features], "float32")
        if activation is not None and not self.per_token:
            self._register_zeros("activation_scale", [1], "float32")
            if not activation.symmetric:
                self._register_zeros("activation_zero_point", [1], "int64")
        if permuted:
            self._register_zeros("permutation", [in_features], "int64")

    def _register_zeros(self, name, shape, dtype):
        self.register_buffer(name, paddle.zeros(shape, dtype))

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
        rows, columns = quantized_weight.integers.shape
        bias = linear.bias
        dtype = "float32" if bias is None else _name_of(bias.dtype)
        layer = cls(rows, columns, qparams.spec, bias is not None, activation,
                    input_scale is not None, order is not None, dtype, algorithm)
        layer.training = linear.training
        with paddle.no_grad():
            integers = quantized_weight.integers
            if layer.packed:
                integers = pack_int4(integers, qparams.spec.signed)
            layer._set_buffer("weight", integers)
            layer._set_buffer("weight_scale", qparams.scale)
            layer._set_buffer("weight_zero_point", qparams.zero_point)
            layer._set_buffer("input_scale", input_scale)
            layer._set_buffer("permutation", order)
            for name, value in zip(("scale", "zero_point"), activation_qparams or (None, None)):
                layer._set_buffer(f"activation_{name}", value)
        if bias is not None:
            layer.bias = bias
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
    def per_token(self):
        """True if activations are quantized with a scale for each token."""
        spec = self.activation_spec
        return spec is not None and isinstance(spec.granularity, PerToken)

    @paddle.jit.not_to_static
    def forward(self, input):
        """Compute x W + b. The argument is named as that of ``paddle.nn.Linear``."""
        x, dtype, kernel = input, input.dtype, self._kernel
        if _name_of(dtype) not in _DTYPES:
            raise ConfigTypeError(
                f"input must be a tensor of floats, but is one of {_name_of(dtype)}; if the model "
                "casts it to weight.dtype: the weight of this layer holds integers")
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
            y = self._matmul(self._quantize_input(x / step)) * step
        else:
            y = self._matmul(self._quantize_input(x))
        if self.bias is not None:
            y = y + as_dtype(self.bias, paddle.float32)
        return as_dtype(y, dtype)

    def _quantize_input(self, x):
        if self.activation_spec is None:
            return x
        recorder = tracing.recorder()
        if recorder is not None:
            return recorder.activation(x, self, 0)
        zero_point = None if self.activation_spec.symmetric else self.activation_zero_point
        return fake_quantize(x, self.activation_abs_max(), self.activation_spec,
                             zero_point=zero_point)

    def activation_abs_max(self):
        """Return the value of the highest level, float32 [1]. Per token, the unit is the step."""
        levels = float(self.activation_spec.quant_max)
        if self.per_token:
            return paddle.full([1], levels, "float32")
        return as_dtype(self.activation_scale, paddle.float32) * levels

    def _matmul(self, x):
        recorder = tracing.recorder()
        stored = None if recorder is None else recorder.stored_weight(self)
        if stored is not None:
            return paddle.matmul(x, stored)
        rows = self._block_rows()
        if not paddle.in_dynamic_mode() or rows >= self.in_features:
            return paddle.matmul(x, self.dequantized_weight())
        y = 0.0
        for start in range(0, self.in_features, rows):
            stop = min(start + rows, self.in_features)
            y = y + paddle.matmul(x[..., start:stop], self.dequantized_weight(start, stop))
        return y

    def _block_rows(self):
        # A block is a multiple of bytes and groups.
        group = self.weight_spec.granularity
        unit = 2
        if isinstance(group, PerGroup):
            unit = group.size * (1 + group.size % 2)
        return max(_BLOCK // self.out_features // unit, 1) * unit

    def dequantized_weight(self, start=None, stop=None):
        """Return the float32 weight [K, N], or the rows from ``start`` to ``stop``.

        ``start`` must be even and the first row of a group.
        """
        spec, dynamic = self.weight_spec, paddle.in_dynamic_mode()
        with paddle.no_grad():
            integers = self.integers(start, stop)
            scale = as_dtype(self._rows_of("weight_scale", start, stop), paddle.float32)
            if self.quantized_linearly:
                # The formula of the operator dequantize_linear, which an export contains.
                abs_max = self.weight_abs_max()
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
                and not isinstance(spec.granularity, PerGroup))

    def weight_abs_max(self):
        """Return the value of the highest level: float32 [1] or [N]."""
        scale = as_dtype(self.weight_scale, paddle.float32)
        return scale.reshape([-1]) * float(self.weight_spec.quant_max)

    def integers(self, start=None, stop=None):
        """Return the integers as float32 [K, N], or the rows from ``start``, which must be even."""
        if not self.packed:
            held = self.weight if start is None else self.weight[start:stop]
            return held.astype("float32")
        if start is None:
            return unpack_int4(self.weight, self.in_features, self.weight_spec.signed)
        return unpack_int4(self.weight[start // 2:(stop + 1) // 2], stop - start,
                           self.weight_spec.signed)

    def _rows_of(self, name, start, stop):
        # Not _buffers: attribute access converts a buffer to a variable while tracing.
        held, group = getattr(self, name), self.weight_spec.granularity
        if start is None or not isinstance(group, PerGroup):
            return held
        return held[start // group.size:-(-stop // group.size)]

    def description(self):
        """Return plain values from which :meth:`from_description` builds an empty layer."""
        return {"in_features": self.in_features, "out_features": self.out_features,
                "weight": describe_spec(self.weight_spec), "bias": self.bias is not None,
                "activation": describe_spec(self.activation_spec), "smoothed": self.smoothed,
                "permuted": self.permuted, "algorithm": self.algorithm,
                "dtype": "float32" if self.bias is None else _name_of(self.bias.dtype)}

    @classmethod
    def from_description(cls, description):
        """Return the empty layer of a :meth:`description`.

        Raises:
            ConfigError, ConfigTypeError, FormatError: the description is invalid.
        """
        fields = dict(check_fields("an IntegerLinear", description, _FIELDS))
        for name in ("weight", "activation"):
            fields[name] = spec_from(fields[name])
        return cls(**fields)

    @classmethod
    def in_place_of(cls, layer, description):
        """Return the empty layer of a :meth:`description` to replace a Linear.

        Raises:
            ModelError: ``layer`` does not fit the description.
        """
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
        """True if the scales are set."""
        return bool(paddle.isfinite(self.weight_scale.sum()))

    @property
    def data_dependent(self):
        """Fields that depend on calibration data, not on a configuration."""
        return ("smoothed", "permuted", "algorithm")

    @property
    def quant_type(self):
        """Scheme: ``W4-per_group``, ``SmoothQuant-W8-per_channel-A8-per_tensor``."""
        parts = [self.algorithm, f"W{spec_name(self.weight_spec)}"]
        if self.activation_spec is not None:
            parts.append(f"A{spec_name(self.activation_spec)}")
        return "-".join(filter(None, parts))

    def _apply(self, func, device, dtype, blocking, include_sublayers=True):
        # Layer.to would cast all buffers, including indices and packed bytes.
        buffers = {id(held) for held in own_buffers(self).values()}

        def keep(held, device, dtype, blocking):
            return func(held, device, held.dtype if id(held) in buffers else dtype, blocking)

        super()._apply(keep, device, dtype, blocking, include_sublayers)

    def extra_repr(self):
        parts = [f"in_features={self.in_features}", f"out_features={self.out_features}",
                 self.quant_type]
        parts += [name for name in ("smoothed", "permuted") if getattr(self, name)]
        return ", ".join(parts)


def _count_flops(layer, inputs, output):
    """Count as paddle.flops counts a Linear; the shape of the packed weight differs."""
    layer.total_ops += layer.in_features * int(output.numel())


set_flops_counter(IntegerLinear, _count_flops)


def _name_of(dtype):
    return str(dtype).replace("paddle.", "")
