"""Checkpoints in the format of AutoAWQ, version "gemm".

A layer has ``qweight`` int32 [K, N / 8] and ``qzeros`` int32 [G, N / 8], both packed along the
output features, and ``scales`` [G, N]. A word holds the output features 0, 2, 4, 6, 1, 3, 5, 7 of
its eight, the first one in the lowest bits.
"""

import numpy as np

from ...errors import FormatError
from .base import CheckpointFormat, register_checkpoint_format
from .linear_weight import LinearWeight, Scheme, group_size_of, refused
from .packing import pack_words, unpack_words

_BITS, _PER_WORD = 4, 8
_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_BACK = list(np.argsort(_ORDER))
_HEAD = "lm_head"


@register_checkpoint_format("awq")
class AWQFormat(CheckpointFormat):
    """AWQ: int4 weights in groups or channels, symmetric or not."""

    servers = "vLLM, SGLang, GPTQModel, transformers"
    marker = "qweight"

    @classmethod
    def recognizes(cls, config):
        return config.get("quant_method") == "awq"

    def check(self, name, weight):
        scheme = weight.scheme
        if scheme.bits != _BITS:
            raise refused(name, f"its weight has {scheme.bits} bits; AWQ has 4")
        if scheme.activation is not None:
            raise refused(name, "its input is quantized, but AWQ quantizes weights only")
        if scheme.act_order:
            raise refused(name, "groups of its features in activation order are not consecutive; "
                          "use the format 'gptq', or quantize without activation order")
        rows, columns = weight.integers.shape
        if columns % _PER_WORD:
            raise refused(name, f"its {columns} output features are no multiple of {_PER_WORD}")
        if scheme.group_size is not None and rows % scheme.group_size:
            raise refused(name, f"its {rows} input features are no multiple of the group size "
                          f"{scheme.group_size}")

    def config(self, schemes, floats):
        first, size = next((name, each.group_size) for name, each in schemes.items())
        for name, scheme in schemes.items():
            if scheme.group_size != size:
                raise refused(name, f"its group size is {scheme.group_size or -1}, but that of "
                              f"{first!r} is {size or -1}; AWQ has one for all layers")
        if _HEAD in schemes:
            raise refused(_HEAD, "programs that load AWQ expect a float output layer; leave it "
                          "out of the quantization, or use another format")
        return {"quant_method": "awq", "bits": _BITS, "group_size": size or -1,
                "zero_point": True, "version": "gemm",
                "modules_to_not_convert": [name for name in floats if name != _HEAD] or None}

    def encode(self, weight, config):
        return {"qweight": _packed(weight.integers), "qzeros": _packed(weight.zero_points),
                "scales": weight.scale}

    def decode(self, name, tensors, config, features):
        bits = config.get("bits", config.get("w_bit", _BITS))
        version = str(config.get("version", config.get("format", "gemm"))).lower()
        if bits != _BITS or version != "gemm":
            raise FormatError(f"the checkpoint has {bits!r} bits in the version {version!r} of "
                              "AWQ, but only 4 bits in the version 'gemm' can be read")
        try:
            qweight, qzeros, scale = (tensors[each] for each in ("qweight", "qzeros", "scales"))
        except KeyError as error:
            raise FormatError(f"the layer {name!r} lacks {error}") from error
        columns, count = qweight.shape[1] * _PER_WORD, scale.shape[0]
        if (qweight.shape[0], *scale.shape) != (features, count, columns) or (
                list(qzeros.shape) != [count, columns // _PER_WORD]):
            raise FormatError(
                f"the tensors of {name!r}, qweight {list(qweight.shape)}, qzeros "
                f"{list(qzeros.shape)} and scales {list(scale.shape)}, are no weight of "
                f"{features} input features in the format AWQ")
        size = group_size_of(name, count, features,
                             config.get("group_size", config.get("q_group_size", -1)))
        return LinearWeight(
            Scheme(_BITS, False, size, False), _unpacked(qweight), np.asarray(scale, "float32"),
            _unpacked(qzeros), np.arange(features, dtype="int32") // (size or features))


def _packed(values):
    rows = values.shape[0]
    return pack_words(values.reshape(rows, -1, _PER_WORD)[..., _ORDER].reshape(rows, -1), _BITS)


def _unpacked(words):
    rows, count = words.shape
    values = unpack_words(words, _BITS, count * _PER_WORD)
    return np.ascontiguousarray(
        values.reshape(rows, count, _PER_WORD)[..., _BACK].reshape(rows, -1))
