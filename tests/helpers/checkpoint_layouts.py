"""Dequantization of published checkpoint layouts with numpy, from the bits of the file."""

import json
import os

import numpy as np
from safetensors.numpy import load_file


def read_folder(folder):
    """Return (config.json, arrays by name) of a folder."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    arrays = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            arrays.update(load_file(os.path.join(folder, name)))
    return config, arrays


def stream(words, bits):
    """Integers of ``bits`` bits in rows of int32 words: consecutive bits, the lowest first."""
    flat = np.unpackbits(np.ascontiguousarray(words).view("uint8"), axis=1, bitorder="little")
    count = flat.shape[1] // bits
    flat = flat[:, :count * bits].reshape(len(words), count, bits).astype("int64")
    return (flat << np.arange(bits)).sum(-1)


def gptq_weight(arrays, name, config):
    """Float64 weight [K, N] of a layer in GPTQ's format."""
    words, scales = arrays[f"{name}.qweight"], arrays[f"{name}.scales"].astype("float64")
    groups = arrays[f"{name}.g_idx"]
    bits = words.shape[0] * 32 // len(groups)
    integers = stream(words.T, bits).T
    zeros = stream(arrays[f"{name}.qzeros"], bits)[:, :scales.shape[1]]
    if config["quantization_config"]["checkpoint_format"] == "gptq":
        zeros = zeros + 1
    return (integers - zeros[groups]) * scales[groups]


def compressed_tensors_weight(arrays, name, config):
    """Float64 weight [K, N] of a layer in the format of compressed-tensors."""
    scales = arrays[f"{name}.weight_scale"].astype("float64")
    settings = next(iter(config["quantization_config"]["config_groups"].values()))["weights"]
    bits, middle = settings["num_bits"], 2 ** (settings["num_bits"] - 1)
    zeros = arrays.get(f"{name}.weight_zero_point", np.zeros(scales.shape, "int8"))
    if f"{name}.weight" in arrays:
        integers = arrays[f"{name}.weight"].astype("int64")
    else:
        rows, columns = arrays[f"{name}.weight_shape"]
        integers = stream(arrays[f"{name}.weight_packed"], bits)[:, :columns] - middle
        if zeros.dtype == np.int32:
            zeros = stream(zeros.T, bits).T[:rows] - middle
    size = -(-integers.shape[1] // scales.shape[1])
    groups = np.arange(integers.shape[1]) // size
    return ((integers - zeros[:, groups]) * scales[:, groups]).T


def awq_weight(arrays, name, config):
    """Float64 weight [K, N] of a layer in AWQ's format."""
    scales = arrays[f"{name}.scales"].astype("float64")
    integers, zeros = (
        # Output feature 2i of eight is in position i, and 2i + 1 in position 4 + i.
        stream(arrays[f"{name}.{part}"], 4).reshape(-1, scales.shape[1] // 8, 2, 4)
        .transpose(0, 1, 3, 2).reshape(-1, scales.shape[1]) for part in ("qweight", "qzeros"))
    size = len(integers) // len(scales)
    return (integers - zeros.repeat(size, 0)) * scales.repeat(size, 0)


def kernel_weight(scale_name):
    """Return a function for the layout of ``paddle.nn.quant.weight_quantize`` (see there)."""
    def weight(arrays, name, config):
        held = arrays[f"{name}.quant_weight"]
        scales = arrays[f"{name}.{scale_name}"]
        columns, rows = scales.shape[-1], held.shape[1]
        bits = 8 * held.size // (rows * columns)
        integers = np.empty([rows, columns], "int64")
        flat = stream(held.reshape(-1, 4).view("int32"), bits).reshape(-1) - 2 ** (bits - 1)
        per_word, alternating = 32 // bits, 16 // bits
        for position, value in enumerate(flat):
            word, inside = divmod(position, per_word)
            # In a word, integers with even numbers precede those with odd numbers.
            half = per_word // 2
            inside = 2 * inside if inside < half else 2 * (inside - half) + 1
            position = word * per_word + inside
            block, within = divmod(position, rows * alternating)
            tile, within = divmod(within, 64 * alternating)
            column, row = divmod(within, 64)
            row += 64 * tile
            base, index = divmod(row, 128 // bits)
            row = base * (128 // bits) + 8 * (index % (32 // bits) // 2) + (
                index % 2 + 2 * (index // (32 // bits)))
            integers[row, block * alternating + column] = value
        scales = scales.astype("float64").reshape(-1, columns)
        return integers * scales.repeat(rows // len(scales), 0)

    return weight


WEIGHTS = {"gptq": gptq_weight, "awq": awq_weight,
           "compressed-tensors": compressed_tensors_weight,
           "paddlenlp": kernel_weight("quant_scale"), "fastdeploy": kernel_weight("weight_scale")}
"""Format -> function (arrays, name of the layer, config.json) that returns its weight."""
