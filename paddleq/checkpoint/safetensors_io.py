"""Tensors in the safetensors format (github.com/huggingface/safetensors).

A file begins with eight bytes that hold the length of a JSON header. The header has dtype, shape
and offsets of each tensor. bfloat16, which numpy lacks, is an array of uint16 with the same bits.
"""

import hashlib
import io
import json
import math
import mmap
import os
import struct
from typing import Any, Dict, Tuple, Union

import numpy as np

from .._paddle_compat import dtype_name
from ..errors import FormatError, ModelError

# The format's name of a dtype -> the numpy dtype of the same bytes.
_DTYPES = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "uint16", "F32": "float32", "F64": "float64",
    "C64": "complex64"}.items()}
_NAMES = {"bfloat16": "BF16", **{dtype.name: name for name, dtype in _DTYPES.items()
                                 if name != "BF16"}}


def write_tensors(path, tensors, metadata=None):
    """Write tensors (name -> Paddle tensor or array) to a file and return the SHA-256 of its bytes.

    Args:
        metadata: str -> str for the header, or None.
    """
    kinds = {name: _kind(name, tensor) for name, tensor in tensors.items()}
    # The largest elements first: each begins at a multiple of its size then.
    order = sorted(tensors, key=lambda name: (-_DTYPES[kinds[name]].itemsize, name))
    header: Dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
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
            put(stored_array(name, tensors[name]).data)
    return digest.hexdigest()


def stored_array(name: str, tensor: Any) -> np.ndarray:
    """Return the array of a Paddle tensor or an array whose bytes a file has.

    Raises:
        ModelError: the format lacks the dtype.
    """
    # (A tensor of bfloat16 gives the integers of its bits.)
    array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
    return np.ascontiguousarray(array, dtype=_DTYPES[_kind(name, tensor)])


def map_file(path: Union[str, os.PathLike]) -> Union[mmap.mmap, io.BytesIO]:
    """Map a file into memory, to read it only; its pages are loaded when they are used."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return io.BytesIO()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error


def file_digest(data: Union[mmap.mmap, io.BytesIO]) -> str:
    """Return the SHA-256 of a mapped file."""
    digest = hashlib.sha256()
    data.seek(0)
    for chunk in iter(lambda: data.read(1 << 20), b""):
        digest.update(chunk)
    data.seek(0)
    return digest.hexdigest()


def parse_tensors(data: Any, path: Any) -> Dict[str, np.ndarray]:
    """Return the arrays of a mapped file by name, as views of it."""
    return parse_file(data, path)[0]


def parse_file(data: Any, path: Any) -> Tuple[Dict[str, np.ndarray], Dict[str, str]]:
    """Return the arrays of a mapped file by name, as views of it, and the metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        # It checks the header and that the tensors fill the file without gaps.
        with safe_open(path, framework="np"):
            pass
        (length,) = struct.unpack("<Q", data.read(8))
        header = json.loads(data.read(length))
    except (SafetensorError, OSError, ValueError, struct.error, RecursionError) as error:
        raise FormatError(f"{path} is no safetensors file, or is damaged: {error}") from error
    metadata = header.pop("__metadata__", None) or {}
    unknown = [f"{name} ({each['dtype']})" for name, each in header.items()
               if each["dtype"] not in _DTYPES]
    if unknown:
        raise FormatError(f"{path} holds tensors of dtypes that Paddle lacks: {unknown[0]}")
    start = 8 + length
    return {name: np.frombuffer(data, _DTYPES[each["dtype"]], math.prod(each["shape"]),
                                start + each["data_offsets"][0]).reshape(each["shape"])
            for name, each in header.items()}, metadata


def _kind(name, tensor):
    dtype = tensor.dtype.name if isinstance(tensor, np.ndarray) else dtype_name(tensor.dtype)
    if dtype not in _NAMES:
        raise ModelError(f"{name} is {dtype}, which a safetensors file cannot hold; leave it out "
                         f"of the model's state or make it one of {', '.join(sorted(_NAMES))}")
    return _NAMES[dtype]
