"""Checkpoints of PaddleNLP and FastDeploy: the layout of ``paddle.nn.quant.weight_quantize``.

``quant_weight`` is int8 [N, K] for 8 bits and [N / 2, K] for 4 bits, in the order in which the
kernels of GPUs since compute capability 7.5 read it: input features are permuted in tiles, the
64-feature tiles of 2 (8 bits) or 4 (4 bits) output features alternate, the integers are stored plus
2**(bits - 1), and those of a 32-bit word are reordered. The scales are [N], or [G, N] for groups.
"""

import abc

import numpy as np

from ...errors import FormatError
from .base import CheckpointFormat, register_checkpoint_format
from .linear_weight import LinearWeight, Scheme, refused

_TILE, _COLUMNS = 64, 16  # multiples of input and output features that the kernels take
# Bits -> (order of input features within a tile, of integers within a word, output features whose
# tiles alternate).
_ORDERS = {
    8: ([0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15], [0, 2, 1, 3], 2),
    4: ([0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27,
         4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31],
        [0, 2, 4, 6, 1, 3, 5, 7], 4)}


class _KernelLayout(CheckpointFormat):
    """Layout of weights that the formats of PaddleNLP and FastDeploy share."""

    transposed = False
    marker = "quant_weight"
    scale_name: str
    group_sizes = (None,)

    def check(self, name, weight):
        scheme = weight.scheme
        if scheme.bits not in _ORDERS or not scheme.symmetric:
            raise refused(name, f"its weight is {'' if scheme.symmetric else 'a'}symmetric with "
                          f"{scheme.bits} bits; the kernels have symmetric 8 and 4 bits")
        if scheme.activation is not None:
            raise refused(name, "its input is quantized, but weight_only_linear quantizes weights "
                          "only")
        if scheme.act_order:
            raise refused(name, "groups of its features in activation order are not consecutive; "
                          "quantize without activation order")
        if scheme.group_size not in self.group_sizes:
            sizes = [str(size) for size in self.group_sizes if size is not None]
            raise refused(name, f"its groups have {scheme.group_size} features; the format has "
                          + " or ".join([*sizes, "one scale for each output feature"]))
        rows, columns = weight.integers.shape
        if rows % _TILE or columns % _COLUMNS or rows % (scheme.group_size or 1):
            raise refused(name, f"it has {rows} input and {columns} output features; the kernels "
                          f"take multiples of {scheme.group_size or _TILE} and {_COLUMNS}")

    @staticmethod
    def _only_scheme(schemes):
        first, scheme = next(iter(schemes.items()))
        for name, other in schemes.items():
            if other != scheme:
                raise refused(name, f"its weight is quantized otherwise than that of {first!r}, "
                              "but the format has one scheme for all layers")
        return scheme

    def encode(self, weight, config):
        scale = weight.scale if weight.scheme.group_size else weight.scale[0]
        return {"quant_weight": _in_kernel_order(weight.integers, weight.scheme.bits),
                self.scale_name: self._stored_scale(scale)}

    def _stored_scale(self, scale):
        return scale

    def decode(self, name, tensors, config, features):
        held, scale = tensors["quant_weight"], tensors.get(self.scale_name)
        if scale is None:
            raise FormatError(f"the layer {name!r} lacks {self.scale_name!r}")
        bits, columns = self._bits(config), scale.shape[-1]
        if held.dtype != np.int8 or list(held.shape) != [columns * bits // 8, features] or (
                features % _TILE or columns % _COLUMNS or scale.ndim > 2):
            raise FormatError(
                f"the tensors of {name!r}, quant_weight {held.dtype} {list(held.shape)} and "
                f"{self.scale_name} {list(scale.shape)}, are no weight of {features} input "
                f"features and {bits} bits")
        scale = np.asarray(scale, "float32").reshape(-1, columns)
        size = None if scale.shape[0] == 1 else features // scale.shape[0]
        return LinearWeight(
            Scheme(bits, True, size, False), _in_feature_order(held, bits, columns), scale,
            np.full(scale.shape, 2 ** (bits - 1), "uint8"),
            np.arange(features, dtype="int32") // (size or features))

    @abc.abstractmethod
    def _bits(self, config) -> int:
        """Return the bits that config.json names, or raise FormatError."""


@register_checkpoint_format("paddlenlp")
class PaddleNLPFormat(_KernelLayout):
    """PaddleNLP: weight_only_int8 and weight_only_int4 per channel or in groups of 64 or 128.

    PaddleNLP takes scales of 16 bits only. They are rounded to float16, or to bfloat16 where
    float16 has no normal number for one of the layer.
    """

    servers = "PaddleNLP"
    scale_name = "quant_scale"
    group_sizes = (None, 64, 128)

    @classmethod
    def recognizes(cls, config):
        return isinstance(config.get("weight_quantize_algo"), str)

    def config(self, schemes, floats):
        scheme = self._only_scheme(schemes)
        return {"weight_quantize_algo": f"weight_only_int{scheme.bits}",
                "group_size": scheme.group_size or -1, "ignore_modules": list(floats) or None}

    def _stored_scale(self, scale):
        import paddle

        normal = np.finfo("float16")
        if np.all((scale >= normal.tiny) & (scale <= normal.max)):
            return scale.astype("float16")
        return paddle.to_tensor(scale).astype("bfloat16")

    def _bits(self, config):
        algo = config["weight_quantize_algo"]
        if algo not in ("weight_only_int8", "weight_only_int4"):
            raise FormatError(f"weight_quantize_algo is {algo!r}, but only 'weight_only_int8' and "
                              "'weight_only_int4' can be read")
        return int(algo[-1])


@register_checkpoint_format("fastdeploy")
class FastDeployFormat(_KernelLayout):
    """FastDeploy: wint8 and wint4, one scale for each output feature."""

    servers = "FastDeploy"
    scale_name = "weight_scale"

    @classmethod
    def recognizes(cls, config):
        return "quantization" in config

    def config(self, schemes, floats):
        return {"quantization": f"wint{self._only_scheme(schemes).bits}", "is_quantized": True,
                "modules_to_not_convert": list(floats)}

    def _bits(self, config):
        if config["quantization"] not in ("wint8", "wint4"):
            raise FormatError(f"quantization is {config['quantization']!r}, but only 'wint8' and "
                              "'wint4' can be read")
        return int(config["quantization"][-1])


def _in_kernel_order(integers, bits):
    """Return int8 [N * bits / 8, K] of uint8 integers [K, N]."""
    features, words, alternating = _ORDERS[bits]
    rows, columns = integers.shape
    values = integers.reshape(-1, len(features), columns)[:, features].reshape(rows, columns).T
    values = values.reshape(columns // alternating, alternating, rows // _TILE, _TILE)
    values = values.transpose(0, 2, 1, 3).reshape(-1, len(words))[:, words]
    if bits == 4:
        values = values[:, 0::2] | values[:, 1::2] << 4
    return np.ascontiguousarray(values).reshape(columns * bits // 8, rows).view("int8")


def _in_feature_order(held, bits, columns):
    """Return uint8 integers [K, N] of :func:`_in_kernel_order`."""
    features, words, alternating = _ORDERS[bits]
    rows = held.shape[1]
    values = np.ascontiguousarray(held).view("uint8").reshape(-1)
    if bits == 4:
        values = np.stack([values & 15, values >> 4], 1)
    values = values.reshape(-1, len(words))[:, np.argsort(words)]
    values = values.reshape(columns // alternating, rows // _TILE, alternating, _TILE)
    values = values.transpose(0, 2, 1, 3).reshape(columns, rows).T
    values = values.reshape(-1, len(features), columns)[:, np.argsort(features)]
    return np.ascontiguousarray(values.reshape(rows, columns))
