"""Tensors in the safetensors format (github.com/huggingface/safetensors).

Eight bytes say how long the JSON header is, which says of each tensor its dtype, shape and place
in what follows. bfloat16, which numpy lacks, is an array of uint16 with the same bits here.
"""

import hashlib
import json
import math
import struct

import numpy as np

from ..errors import FormatError, ModelError

# The format's name of a dtype -> the numpy dtype of the same bytes.
_DTYPES = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "uint16", "F32": "float32", "F64": "float64",
    "C64": "complex64"}.items()}
_NAMES = {"bfloat16": "BF16", **{dtype.name: name for name, dtype in _DTYPES.items()
                                 if name != "BF16"}}


def write_tensors(path, tensors):
    """Write tensors (name -> Paddle tensor) to a file; returns the SHA-256 of its bytes.

    The same tensors give the same bytes.

    Raises:
        ModelError: a tensor has a dtype that the format does not have.
    """
    kinds = {name: _kind(name, tensor) for name, tensor in tensors.items()}
    # The largest elements first: each begins at a multiple of its size then.
    order = sorted(tensors, key=lambda name: (-_DTYPES[kinds[name]].itemsize, name))
    header, end = {}, 0
    for name in order:
        begin, shape = end, [int(size) for size in tensors[name].shape]
        end += math.prod(shape) * _DTYPES[kinds[name]].itemsize
        header[name] = {"dtype": kinds[name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        def put(content):
            digest.update(content)
            file.write(content)

        put(struct.pack("<Q", len(text)))
        put(text)
        for name in order:
            # One tensor at a time: a copy of all may be larger than the memory left.
            put(_array(tensors[name], _DTYPES[kinds[name]]).data)
    return digest.hexdigest()


def parse_tensors(data, path):
    """The arrays (name -> numpy array) in the bytes of a file; ``path`` is for messages.

    Raises:
        FormatError: it is no such file, or is damaged.
    """
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(bytes(data))
    except SafetensorError as error:
        raise FormatError(f"{path} is no safetensors file, or is damaged: {error}") from error
    unknown = [f"{name} ({view['dtype']})" for name, view in found if view["dtype"] not in _DTYPES]
    if unknown:
        raise FormatError(f"{path} holds tensors of dtypes that Paddle lacks: {unknown[0]}")
    return {name: np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
            for name, view in found}


def read_bytes(path):
    """The content of a file.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error


def _kind(name, tensor):
    dtype = str(tensor.dtype).replace("paddle.", "")
    if dtype not in _NAMES:
        raise ModelError(f"{name} is {dtype}, which a safetensors file cannot hold; leave it out "
                         f"of the model's state or make it one of {', '.join(sorted(_NAMES))}")
    return _NAMES[dtype]


def _array(tensor, dtype):
    # (A tensor of bfloat16 gives the integers of its bits.)
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=dtype)
