"""Reader and writer of ``.pdiparams``: concatenated tensors in the order of their names.

The format is that of Paddle's ``save_combine`` operator. Only arrays are read; nothing is
unpickled.
"""

import math
import os
import struct
from typing import Any, Dict

import numpy as np
from google.protobuf.message import DecodeError

from ..._paddle_compat import framework_proto
from ...errors import FormatError

# VarType.Type of framework.proto. The names are literals in the annotations of Paddle.
DTYPES: Dict[int, Any] = {0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16", 5: "float32",
          6: "float64", 20: "uint8", 21: "int8", 22: "bfloat16"}
CODES = {name: code for code, name in DTYPES.items()}
MOST_DIMENSIONS = 9  # of a tensor in Paddle
_MOST_LEVELS = 16  # of LoD; parameters have none


def read(path, variables, shapes=None):
    """Read the tensors of ``variables`` (name -> dtype name) from a ``.pdiparams`` file.

    ``shapes`` has the expected dimensions by name, -1 for any. Raises FormatError if the file is
    damaged or has other variables.
    """
    if not os.path.isfile(path):
        raise FormatError(f"cannot read the parameters at {path}: there is no such file")
    try:
        with open(path, "rb") as file:
            data = memoryview(file.read())
    except OSError as error:
        raise FormatError(f"cannot read the parameters at {path}: {error.strerror}") from error
    arrays, at = {}, 0
    try:
        for name in sorted(variables):
            arrays[name], at = _read_one(data, at, variables[name], shapes and shapes[name])
    except (struct.error, ValueError, IndexError, KeyError, DecodeError) as error:
        raise FormatError(f"{path} is damaged or belongs to another model: cannot read tensor "
                          f"{name!r}: {error}") from error
    if at != len(data):
        raise FormatError(f"{path} belongs to another model: {len(data) - at} bytes are left "
                          f"after its {len(arrays)} tensors")
    return arrays


def _read_one(data, at, expected, expected_shape):
    version, lod_levels = struct.unpack_from("<IQ", data, at)
    if version != 0:
        raise ValueError(f"tensor version {version}")
    at += 12
    if lod_levels > _MOST_LEVELS:
        raise ValueError(f"{lod_levels} levels of sequences")
    for _ in range(lod_levels):
        (size,) = struct.unpack_from("<Q", data, at)
        at += 8 + size
        _check_remaining(data, at, "its sequences")
    _, length = struct.unpack_from("<Ii", data, at)
    at += 8
    if length < 0:
        raise ValueError(f"a description of {length} bytes")
    _check_remaining(data, at + length, "its description")
    description = framework_proto().VarType.TensorDesc()
    description.ParseFromString(bytes(data[at:at + length]))
    at += length
    dtype, shape = DTYPES[description.data_type], tuple(description.dims)
    if len(shape) > MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape[:MOST_DIMENSIONS]}, {len(shape)} dimensions")
    if expected not in (dtype, "?"):
        raise ValueError(f"it is {dtype} there and {expected} in the model")
    if expected_shape is not None and (len(shape) != len(expected_shape) or any(
            want not in (-1, have) for want, have in zip(expected_shape, shape))):
        raise ValueError(f"its shape is {shape} there and {tuple(expected_shape)} in the model")
    # numpy has no bfloat16; its bits are kept as uint16.
    dtype, count = np.dtype("uint16" if dtype == "bfloat16" else dtype), math.prod(shape)
    _check_remaining(data, at + count * dtype.itemsize, f"its shape {shape}")
    array = np.frombuffer(data, dtype, count, at).reshape(shape)
    return array, at + array.nbytes


def _check_remaining(data, end, what):
    if end > len(data):
        raise ValueError(f"{what} is larger than what is left of the file")


def write(path, arrays, dtypes):
    """Write ``arrays``; ``dtypes`` has the names of data types that numpy lacks (bfloat16)."""
    with open(path, "wb") as file:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            description = framework_proto().VarType.TensorDesc(
                data_type=CODES[dtypes.get(name, array.dtype.name)], dims=array.shape)
            encoded = description.SerializeToString()
            file.write(struct.pack("<IQIi", 0, 0, 0, len(encoded)))
            file.write(encoded)
            file.write(array.data)  # without a copy, for which memory may be insufficient
