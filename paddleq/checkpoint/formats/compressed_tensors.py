"""Checkpoints in the format of compressed-tensors, which llm-compressor writes.

"pack-quantized" (quantized weights only): ``weight_packed`` int32 [N, K * bits / 32], integers plus
2**(bits - 1) packed along the input features; ``weight_shape`` int64 [2], N and K; ``weight_scale``
[N, G]; for asymmetric weights ``weight_zero_point`` int32 [N * bits / 32, G], packed along the
output features. "int-quantized" (input quantized too): ``weight`` int8 [N, K], ``weight_scale``
[N, 1], ``weight_zero_point`` int8 [N, 1], and for static inputs ``input_scale`` and
``input_zero_point`` [1].
"""

import re

import numpy as np

from ...errors import FormatError
from ...spec import PerTensor, PerToken, QuantSpec
from .base import CheckpointFormat, register_checkpoint_format
from .linear_weight import LinearWeight, Scheme, group_size_of, refused
from .packing import pack_words, unpack_words

_BITS = (2, 4, 8)  # releases of compressed-tensors pack other widths differently
_PACKED, _INT = "pack-quantized", "int-quantized"


@register_checkpoint_format("compressed-tensors")
class CompressedTensorsFormat(CheckpointFormat):
    """compressed-tensors: int4 and int8 weights in groups or channels, W8A8 per token or tensor."""

    servers = "vLLM, SGLang, transformers"
    marker = "weight_scale"

    @classmethod
    def recognizes(cls, config):
        return config.get("quant_method") == "compressed-tensors"

    def check(self, name, weight):
        scheme, spec = weight.scheme, weight.scheme.activation
        if scheme.act_order:
            raise refused(name, "groups of its features in activation order are not consecutive, "
                          "which compressed-tensors no longer reads; use the format 'gptq', or "
                          "quantize without activation order")
        if scheme.group_size is not None and len(weight.groups) % scheme.group_size:
            raise refused(name, f"its {len(weight.groups)} input features are no multiple of the "
                          f"group size {scheme.group_size}")
        if spec is None:
            if scheme.bits not in _BITS:
                raise refused(name, f"its weight has {scheme.bits} bits; pack-quantized has 2, 4 "
                              "and 8, since programs pack other widths differently")
            return
        if scheme.bits != 8 or scheme.group_size is not None:
            raise refused(name, "its input is quantized, which int-quantized combines with weights "
                          f"of 8 bits per channel only; the weight has {scheme.bits} bits"
                          + (f" in groups of {scheme.group_size}" if scheme.group_size else ""))
        if spec.bits != 8 or spec.limits is not None:
            raise refused(name, f"its input is quantized to {spec}; int-quantized has int8")

    def config(self, schemes, floats):
        grouped = {}
        for name, scheme in schemes.items():
            grouped.setdefault(scheme, []).append(name)
        one = len(grouped) == 1
        groups = {
            f"group_{index}": {"targets": ["Linear"] if one else names, "weights": _weights(scheme),
                               "input_activations": _activations(scheme.activation),
                               "output_activations": None, "format": _layout(scheme)}
            for index, (scheme, names) in enumerate(grouped.items())}
        layouts = {each["format"] for each in groups.values()}
        return {"quant_method": "compressed-tensors", "quantization_status": "compressed",
                "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
                "config_groups": groups, "ignore": list(floats), "kv_cache_scheme": None,
                "global_compression_ratio": None}

    def encode(self, weight, config):
        bits, spec = weight.scheme.bits, weight.scheme.activation
        tensors = {"weight_scale": np.ascontiguousarray(weight.scale.T)}
        if spec is None:
            rows, columns = weight.integers.shape
            tensors["weight_packed"] = pack_words(weight.integers.T, bits)
            tensors["weight_shape"] = np.array([columns, rows], "int64")
            if not weight.scheme.symmetric:
                words = pack_words(weight.zero_points, bits).T
                tensors["weight_zero_point"] = np.ascontiguousarray(words)
            return tensors
        tensors["weight"] = _signed(weight.integers.T, bits)
        if not weight.scheme.symmetric:
            tensors["weight_zero_point"] = _signed(weight.zero_points.T, bits)
        if weight.activation_scale is not None:
            tensors["input_scale"] = weight.activation_scale.astype("float32")
            if not _symmetric(spec):
                held = weight.activation_zero_point
                zero_point = (np.zeros(1) if held is None else held) - (0 if spec.signed else 128)
                tensors["input_zero_point"] = zero_point.astype("int8")
        return tensors

    def decode(self, name, tensors, config, features):
        group = _group_of(name, config)
        settings = group.get("weights") or {}
        if settings.get("type", "int") != "int":
            raise FormatError(f"the weight of {name!r} has the type {settings['type']!r}, but only "
                              "integers can be read")
        if "weight_g_idx" in tensors:
            raise FormatError(f"{name!r} has groups in activation order (weight_g_idx), which "
                              "cannot be read; convert it to the format GPTQ")
        bits = settings.get("num_bits", 8)
        try:
            if "weight_packed" in tensors:
                shape = [int(each) for each in tensors["weight_shape"]]
                _check(name, bits in _BITS, f"its weight has {bits!r} bits")
                _check(name, shape[1:] == [features] and list(tensors["weight_packed"].shape)
                       == [shape[0], -(-features * bits // 32)],
                       f"weight_packed is {list(tensors['weight_packed'].shape)} for a weight "
                       f"{shape} of {bits} bits and {features} input features")
                integers = unpack_words(tensors["weight_packed"], bits, features)
            else:
                held = tensors["weight"]
                _check(name, bits == 8 and held.dtype == np.int8 and held.shape[1:] == (features,),
                       f"its weight is {held.dtype} {list(held.shape)} of {bits!r} bits")
                integers = (held.astype("int16") + 128).astype("uint8")
            scale = np.asarray(tensors["weight_scale"], "float32")
        except KeyError as error:
            raise FormatError(f"the layer {name!r} lacks {error}") from error
        columns = integers.shape[0]
        if scale.size == 1:
            scale = np.repeat(scale.reshape([1, 1]), columns, 0)
        _check(name, scale.ndim == 2 and scale.shape[0] == columns,
               f"weight_scale is {list(scale.shape)} for {columns} output features")
        count = scale.shape[1]
        size = group_size_of(name, count, features, settings.get("group_size"))
        zero_points = self._zero_points(name, tensors, bits, columns, count)
        activation = _spec_of(name, group.get("input_activations"))
        static = activation is not None and isinstance(activation.granularity, PerTensor)
        _check(name, not static or "input_scale" in tensors, "it lacks input_scale")
        return LinearWeight(
            Scheme(bits, False, size, False, activation), np.ascontiguousarray(integers.T),
            np.ascontiguousarray(scale.T), zero_points,
            np.arange(features, dtype="int32") // (size or features),
            np.asarray(tensors["input_scale"], "float32") if static else None,
            np.asarray(tensors.get("input_zero_point", [0]), "int64")
            if static and activation is not None and not activation.symmetric else None)

    @staticmethod
    def _zero_points(name, tensors, bits, columns, count):
        """Return the zero points [G, N] of a layer, those of a symmetric one too."""
        held = tensors.get("weight_zero_point")
        if held is None:
            return np.full([count, columns], 2 ** (bits - 1), "uint8")
        if held.dtype == np.int8:
            held = (held.astype("int16") + 2 ** (bits - 1)).astype("uint8")
            return np.ascontiguousarray(np.broadcast_to(held.reshape([-1, count]),
                                                        [columns, count]).T)
        _check(name, list(held.shape) == [-(-columns * bits // 32), count],
               f"weight_zero_point is {list(held.shape)}")
        return unpack_words(held.T, bits, columns)


def _check(name, right, problem):
    if not right:
        raise FormatError(f"{name!r} is no layer in the format compressed-tensors: {problem}")


def _signed(integers, bits):
    return np.ascontiguousarray((integers.astype("int16") - 2 ** (bits - 1)).astype("int8"))


def _layout(scheme):
    return _PACKED if scheme.activation is None else _INT


def _weights(scheme):
    return {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric,
            "strategy": "group" if scheme.group_size else "channel",
            "group_size": scheme.group_size, "dynamic": False}


def _symmetric(spec):
    return spec.symmetric and spec.signed  # unsigned integers are stored less 128


def _activations(spec):
    if spec is None:
        return None
    per_token = isinstance(spec.granularity, PerToken)
    return {"num_bits": spec.bits, "type": "int", "symmetric": _symmetric(spec),
            "strategy": "token" if per_token else "tensor", "group_size": None,
            "dynamic": per_token}


def _group_of(name, config):
    """Return the configuration of a layer: of the first group with a target that matches."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise FormatError("the quantization_config must have config_groups")
    for group in groups.values():
        for target in group.get("targets") or []:
            pattern = target[3:] if target.startswith("re:") else re.escape(target)
            if target == "Linear" or re.match(f"(?:{pattern})$", name) or (
                    target.startswith("re:") and re.match(pattern, name)):
                return group
    raise FormatError(f"no group of config_groups has a target that matches the layer {name!r}")


def _spec_of(name, settings):
    """Return the spec of the input that ``input_activations`` describes."""
    if not settings:
        return None
    strategy, dynamic = settings.get("strategy"), settings.get("dynamic", False)
    symmetric = settings.get("symmetric", True)
    token = strategy == "token" and dynamic is True and symmetric
    if settings.get("type", "int") != "int" or settings.get("num_bits", 8) != 8 or not (
            token or (strategy == "tensor" and dynamic is False)):
        raise FormatError(f"the input of {name!r} is quantized as {settings}, but only int8 can be "
                          "read: symmetric and dynamic per token, or static per tensor")
    return QuantSpec(8, symmetric=symmetric,
                     granularity=PerToken() if token else PerTensor())
