"""Checkpoints in the format of AutoGPTQ and GPTQModel.

A layer has ``qweight`` int32 [K * bits / 32, N], integers packed along the input features;
``qzeros`` int32 [G, N * bits / 32], zero points packed along the output features; ``scales`` [G, N]
and ``g_idx`` int32 [K], the group of each input feature. Format 1 ("gptq") stores the zero point
less one, format 2 ("gptq_v2") the zero point itself.
"""

import re
from collections import Counter

import numpy as np

from ...errors import FormatError
from .base import CheckpointFormat, register_checkpoint_format
from .linear_weight import LinearWeight, Scheme, group_size_of, refused
from .packing import pack_words, unpack_words

_BITS = (2, 3, 4, 8)
_MULTIPLE = 32  # number of integers that fill whole words, for every width
_V1, _V2 = "gptq", "gptq_v2"
_HEAD = "lm_head"


@register_checkpoint_format("gptq")
class GPTQFormat(CheckpointFormat):
    """GPTQ: 2, 3, 4 or 8 bits, groups, symmetric or not, with activation order.

    Format 1, which all programs load, if all layers are symmetric; else format 2: programs add one
    to the words of format 1, which overflows for a zero point of 0.
    """

    servers = "GPTQModel, transformers, vLLM, SGLang"
    marker = "qweight"
    beside = "quantize_config.json"

    @classmethod
    def recognizes(cls, config):
        # AutoGPTQ's quantize_config.json has no quant_method.
        return config.get("quant_method", "gptq" if "desc_act" in config else None) == "gptq"

    def check(self, name, weight):
        scheme = weight.scheme
        if scheme.bits not in _BITS:
            raise refused(name, f"its weight has {scheme.bits} bits; GPTQ has 2, 3, 4 and 8")
        if scheme.activation is not None:
            raise refused(name, "its input is quantized, but GPTQ quantizes weights only")
        rows, columns = weight.integers.shape
        if rows % _MULTIPLE or columns % _MULTIPLE:
            raise refused(name, f"it has {rows} input and {columns} output features; both must be "
                          f"multiples of {_MULTIPLE}")
        if scheme.group_size is not None and rows % scheme.group_size:
            raise refused(name, f"its {rows} input features are no multiple of the group size "
                          f"{scheme.group_size}")

    def config(self, schemes, floats):
        entries = {name: _entry(scheme) for name, scheme in schemes.items()}
        base = dict(Counter(tuple(each.items()) for each in entries.values()).most_common(1)[0][0])
        symmetric = all(each["sym"] for each in entries.values())
        dynamic = {f"+:^{re.escape(name)}$": each for name, each in entries.items()
                   if each != base}
        dynamic.update({f"-:^{re.escape(name)}$": {} for name in floats if name != _HEAD})
        config = {"quant_method": "gptq", **base, "sym": symmetric and base["sym"],
                  "lm_head": _HEAD in schemes, "checkpoint_format": _V1 if symmetric else _V2,
                  "pack_dtype": "int32"}
        if dynamic:
            config["dynamic"] = dynamic
        return config

    def encode(self, weight, config):
        bits = weight.scheme.bits
        zero_points = weight.zero_points
        if config["checkpoint_format"] == _V1:
            zero_points = zero_points - 1
        return {"qweight": np.ascontiguousarray(pack_words(weight.integers.T, bits).T),
                "qzeros": pack_words(zero_points, bits),
                "scales": weight.scale, "g_idx": weight.groups}

    def decode(self, name, tensors, config, features):
        try:
            qweight, qzeros, scale = (tensors[each] for each in ("qweight", "qzeros", "scales"))
        except KeyError as error:
            raise FormatError(f"the layer {name!r} lacks {error}") from error
        bits, remainder = divmod(qweight.shape[0] * 32, features)
        columns, count = qweight.shape[1], scale.shape[0]
        if remainder or bits not in _BITS or scale.shape[1] != columns or (
                list(qzeros.shape) != [count, -(-columns * bits // 32)]):
            raise FormatError(
                f"the tensors of {name!r}, qweight {list(qweight.shape)}, qzeros "
                f"{list(qzeros.shape)} and scales {list(scale.shape)}, are no weight of "
                f"{features} input features in the format GPTQ")
        zero_points = unpack_words(qzeros, bits, columns)
        version = config.get("checkpoint_format", _V1)
        if version == _V1:
            # 15 stands for 0, or for 16 in files of old programs: those read it as 16 too.
            zero_points = (zero_points + 1) & (2 ** bits - 1)
        elif version != _V2:
            raise FormatError(f"checkpoint_format is {version!r}, but only {_V1!r} and {_V2!r} "
                              "can be read")
        size = group_size_of(name, count, features, _setting(name, config, "group_size"))
        consecutive = np.arange(features, dtype="int32") // (size or features)
        groups = np.asarray(tensors.get("g_idx", consecutive), dtype="int32")
        if groups.shape != (features,) or groups.min() < 0 or groups.max() >= count:
            raise FormatError(f"g_idx of {name!r} must be {features} numbers from 0 to {count - 1}")
        act_order = not np.array_equal(groups, consecutive)
        if act_order and not np.array_equal(np.sort(groups), consecutive):
            raise FormatError(f"the groups of {name!r} in g_idx do not all have {size} features")
        integers = np.ascontiguousarray(unpack_words(qweight.T, bits, features).T)
        return LinearWeight(Scheme(bits, False, size, act_order), integers,
                            np.asarray(scale, "float32"), zero_points, groups)


def _entry(scheme):
    return {"bits": scheme.bits, "group_size": scheme.group_size or -1, "sym": scheme.symmetric,
            "desc_act": scheme.act_order}


def _setting(name, config, key):
    """Return a setting of a layer: of the first pattern of ``dynamic`` that matches, or common."""
    for pattern, settings in (config.get("dynamic") or {}).items():
        try:
            matches = re.match(pattern.removeprefix("+:"), name)
        except re.error as error:
            raise FormatError(f"dynamic has the pattern {pattern!r}: {error}") from error
        if matches and isinstance(settings, dict) and key in settings:
            return settings[key]
    return config.get(key, -1)


