"""Paddle's GPU kernels for half-precision activations and integer weights.

``paddle.nn.quant.weight_only_linear`` and ``llm_int8_linear`` (builds of Paddle with CUDA) need the
weights in the layout that ``weight_quantize`` creates from float weights. The integers are passed
to it as floats. If the largest magnitude of each column is the highest level, it computes a scale
of 1 and keeps the integers.

The layout and the choice of layers are tested on a CPU. The kernels were not run on a GPU.
"""

import logging
from typing import Any

import paddle

from .._checks import wrong_type
from .._paddle_compat import dtype_name
from ..errors import ModelError
from ..functional.qparams import as_dtype
from ..spec import PerChannel, PerGroup
from .integer_linear import IntegerLinear

_logger = logging.getLogger("paddleq")
_ARCHITECTURES = (70, 75, 80, 86, 89, 90)
_GROUPS = (64, 128)
_NO_OUTLIERS = 65504.0  # llm_int8_linear computes larger values in half precision


def use_gpu_kernels(model, dtype="float16"):
    """Use Paddle's GPU kernels in the IntegerLinear layers of ``model`` that they support.

    Call it after the weights are loaded and on the GPU, and again after they change, because the
    kernels use a copy. Other layers dequantize their weights as before. The kernels compute in half
    precision, and ``llm_int8_linear`` rounds ties away from zero; the results differ accordingly.

    Args:
        model: a ``paddle.nn.Layer`` with :class:`~paddleq.nn.IntegerLinear` layers, on a GPU.
        dtype: data type of the activations, "float16" (default) or "bfloat16".

    Returns:
        Name of each IntegerLinear -> its :func:`kernel_skip_reason`.
    """
    if dtype not in ("float16", "bfloat16"):
        raise wrong_type("dtype", dtype, "'float16' or 'bfloat16'")
    if not paddle.device.is_compiled_with_cuda() or paddle.device.cuda.device_count() == 0:
        raise ModelError("this Paddle has no GPU to run on; the model computes without its kernels")
    major, minor = paddle.device.cuda.get_device_capability()
    if 10 * major + minor not in _ARCHITECTURES:
        raise ModelError(f"the kernels are for GPUs of the architectures {_ARCHITECTURES}, but "
                         f"this one is {10 * major + minor}")
    found = {}
    for name, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, IntegerLinear):
            found[name] = kernel_skip_reason(layer)
            kernel = None if found[name] else Kernel(layer, dtype)
            object.__setattr__(layer, "_kernel", kernel)
    _logger.info("%d of %d layers use GPU kernels", list(found.values()).count(""), len(found))
    return found


def kernel_skip_reason(layer):
    """Return the reason for which the kernels do not support an IntegerLinear, or ""."""
    spec, activation = layer.weight_spec, layer.activation_spec
    if not (spec.symmetric and spec.signed and spec.bits in (4, 8) and spec.limits is None
            and spec.dtype is None):
        return "its weights are not symmetric integers of 4 or 8 bits"
    if not (spec.granularity in (PerChannel(1), PerChannel(-1))
            or isinstance(spec.granularity, PerGroup) and spec.granularity.size in _GROUPS):
        return "its weights are not per channel or in groups of 64 or 128"
    if activation is not None and not (layer.per_token and activation.bits == 8
                                       and activation.dtype is None
                                       and spec.bits == 8
                                       and not isinstance(spec.granularity, PerGroup)):
        return "its activations are not float, nor of 8 bits per token with weights per channel"
    if layer.in_features % 64 or layer.out_features % 16:
        return "its sizes are no multiples of 64 and 16"
    if (layer.integers().abs().max(axis=0) != float(spec.quant_max)).any().item():
        return "its integers do not reach the highest level in each column"
    return ""


class Kernel:
    """Kernel call with the weights of an IntegerLinear in the layout of Paddle's kernels."""

    def __init__(self, layer, dtype, architecture=None):
        from paddle.nn.quant import weight_quantize

        spec = layer.weight_spec
        self.dtype, self.architecture = dtype, architecture
        self.per_token, self.bits = layer.per_token, spec.bits
        self.group = spec.granularity.size if isinstance(spec.granularity, PerGroup) else -1
        algorithm: Any = "llm.int8" if self.per_token else f"weight_only_int{spec.bits}"
        with paddle.no_grad():
            # Numbers up to 127 are exact in both dtypes.
            self.weight, _ = weight_quantize(layer.integers().astype(dtype), algo=algorithm,
                                             arch=architecture)
            scale = as_dtype(layer.weight_scale, paddle.float32)
            self.scale = scale if self.group > 0 else scale.flatten()
            if not self.per_token:
                self.scale = self.scale.astype(dtype)

    def supports(self, x):
        """Return True if the kernel can compute the product with ``x``; it has no gradient."""
        return (paddle.in_dynamic_mode() and x.place.is_gpu_place()
                and dtype_name(x.dtype) == self.dtype
                and (x.stop_gradient or not paddle.is_grad_enabled()))

    def __call__(self, x):
        """Compute x W in the data type of ``x``."""
        from paddle.nn.quant import llm_int8_linear, weight_only_linear

        if self.per_token:
            return llm_int8_linear(x, self.weight, weight_scale=self.scale,
                                   threshold=_NO_OUTLIERS)
        # Paddle 2.6 has no argument for groups.
        group: Any = {"group_size": self.group} if self.group > 0 else {}
        dtype: Any = f"int{self.bits}"
        return weight_only_linear(x, self.weight, weight_scale=self.scale, weight_dtype=dtype,
                                  arch=self.architecture, **group)
