"""Public functions of convolutions, pooling, resampling and normalization in saved programs.

They are entered into the table of :mod:`.functions`, as there, when this module is imported.
"""

from typing import Any, Union

import paddle.nn.functional as F

from .functions import data_format, integers, operator
from .operators import Arguments, Operator

# Convolutions, pooling, resampling

def _padding(a):
    algorithm = a.get("padding_algorithm", "EXPLICIT")
    return list(a.get("paddings")) if algorithm == "EXPLICIT" else algorithm


def convolution_options(op: Union[Operator, Arguments]) -> dict:
    """Return the options of a convolution as Paddle's functions and layers name them."""
    layouts = ("NCDHW", "NDHWC") if "3d" in op.type else ("NCHW", "NHWC")
    options = {"stride": op.get("strides"), "padding": _padding(op),
               "dilation": op.get("dilations"), "groups": op.get("groups", 1) or 1,
               "data_format": layouts[data_format(op).endswith("C")]}
    if "transpose" in op.type:
        options["output_padding"] = op.get("output_padding") or 0
    return options


@operator("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
           "depthwise_conv2d_transpose", "conv3d_transpose")
def _convolution(a):
    function, options = getattr(F, a.type.replace("depthwise_", "")), convolution_options(a)
    if "transpose" in a.type:
        options["output_size"] = integers(a, "output_size", "OutputSizeTensor") or None
    return function(a.tensor("Input"), a.tensor("Filter"), **options)


@operator("pool2d")
def _pool2d(a):
    x, layout = a.tensor("X"), data_format(a)
    largest = a.get("pooling_type", "max") == "max"
    size = list(a.get("ksize"))
    if a.get("adaptive", False):
        if largest:
            return F.adaptive_max_pool2d(x, size) if layout == "NCHW" else NotImplemented
        return F.adaptive_avg_pool2d(x, size, layout)
    padding, ceil, stride = _padding(a), a.get("ceil_mode", False), a.get("strides")
    if a.get("global_pooling", False):
        size, padding, ceil = x.shape[2:] if layout == "NCHW" else x.shape[1:3], 0, False
    if largest:
        return F.max_pool2d(x, size, stride, padding, ceil_mode=ceil, data_format=layout)
    return F.avg_pool2d(x, size, stride, padding, ceil, a.get("exclusive", True),
                        data_format=layout)


_LAYOUTS = {"NCHW": {1: "NCW", 2: "NCHW", 3: "NCDHW"}, "NHWC": {1: "NWC", 2: "NHWC", 3: "NDHWC"}}
_RANKS = {"linear": (1,), "nearest": (2, 3), "bilinear": (2,), "bicubic": (2,), "trilinear": (3,)}


@operator(*(f"{mode}_interp_v2" for mode in _RANKS))
def _interpolate(a):
    x, mode = a.tensor("X"), a.type.partition("_")[0]
    rank, corners = len(x.shape) - 2, a.get("align_corners", True)
    if rank not in _RANKS[mode] or mode == "nearest" and corners:
        return NotImplemented
    layout: Any = a.get("data_layout", "NCHW")
    layout = _LAYOUTS.get(layout, {}).get(rank, layout)
    size = integers(a, "", "OutSize", "SizeTensor")
    scale = a.tensor("Scale")
    scale = list(a.get("scale") or []) if scale is None else scale.numpy().reshape(-1).tolist()
    if not size and not (scale and all(each > 0 for each in scale)):
        size = [a.get(name, -1) for name in ("out_d", "out_h", "out_w")][-rank:]
    scale = [scale[0]] * rank if len(scale) == 1 else scale
    return F.interpolate(x, size or None, None if size else scale, mode, corners,
                         a.get("align_mode", 1), layout)


@operator("pad3d")
def _pad3d(a):
    if len(a.tensor("X").shape) != 5:
        return NotImplemented
    return F.pad(a.tensor("X"), integers(a, "paddings", "Paddings"), a.get("mode", "constant"),
                 a.get("value", 0.0), a.get("data_format", "NCDHW"))


# Normalization

def norm_layout(op: Union[Operator, Arguments], rank: int) -> Any:
    """Return the ``data_format`` of a batch norm of tensors with ``rank`` axes."""
    layouts = {2: ("NC", "NC"), 3: ("NCL", "NLC"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}
    return layouts[rank][op.get("data_layout", "NCHW") == "NHWC"]


@operator("batch_norm")
def _batch_norm(a):
    training = not (a.get("is_test", False) or a.get("use_global_stats", False))
    x = a.tensor("X")
    return F.batch_norm(x, a.tensor("Mean"), a.tensor("Variance"), a.tensor("Scale"),
                        a.tensor("Bias"), training, a.get("momentum", 0.9),
                        a.get("epsilon", 1e-5), norm_layout(a, len(x.shape)))


@operator("dropout")
def _dropout(a):
    x = a.tensor("X")
    if not a.get("is_test", False):
        return NotImplemented
    if a.get("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        return x
    return x * (1.0 - a.get("dropout_prob", 0.5))
