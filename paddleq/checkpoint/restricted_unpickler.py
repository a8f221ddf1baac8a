"""Read a saved ``layer.state_dict()`` and load it into a model.

``paddle.save`` writes a pickle. The unpickler here knows the instructions that build dicts, numbers
and strings, and a short list of callables that build numpy arrays. Anything else is an error.
"""

import os
import pickle
import struct
from typing import Any, Dict, Union

import numpy as np
from paddle import nn

from .._checks import check_path
from .._paddle_compat import dtype_name
from ..errors import FormatError, ModelError
from ..nn.class_swap import rollback_on_error
from ..nn.weight_parts import adopt_all_roundings
from .safetensors_io import map_file, parse_tensors

_NAMES_KEY = "StructuredToParameterName@@"  # Paddle's own entry beside the tensors
_MOST_ENTRIES = 10_000  # of a tuple, with those of the tuples in it
_SIMPLE_TYPES = "biufc"  # kinds of numpy dtypes that hold numbers only


def read_state(path: Union[str, os.PathLike]) -> Dict[str, np.ndarray]:
    """Return the arrays of a ``.pdparams`` or ``.safetensors`` file by name.

    Arrays of a ``.safetensors`` file are views of the mapped file.

    Raises:
        FormatError: the file cannot be read, is damaged or holds more than arrays.
    """
    path = check_path("path", path, "a .pdparams or .safetensors file")
    if path.endswith(".safetensors"):
        return parse_tensors(map_file(path), path)
    try:
        with open(path, "rb") as file:
            state: Any = _plain(_Unpickler(_BoundedReader(file)).load())
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    except (pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError,
            ArithmeticError, EOFError, RecursionError, MemoryError, struct.error) as error:
        raise FormatError(f"{path} is no checkpoint of arrays only, as "
                          f"paddle.save(net.state_dict(), path) writes it: {error}") from error
    if not isinstance(state, dict):
        raise FormatError(f"{path} must hold a state_dict, but holds a {type(state).__name__}")
    state.pop(_NAMES_KEY, None)
    wrong = [key for key, value in state.items()
             if not (isinstance(key, str) and isinstance(value, np.ndarray))]
    if wrong:
        raise FormatError(f"{path} must hold a state_dict of tensors, but its entry {wrong[0]!r} "
                          f"is none; save net.state_dict() alone")
    return state


def load_state(model: nn.Layer, state: Dict[str, np.ndarray], path: Any,
               hint: str = "save net.state_dict() of the network that apply() returned, and apply "
                           "with the same configuration") -> None:
    """Copy the arrays of ``state`` into the parameters and buffers of ``model``.

    Layers get the learned roundings of weights that ``state`` has.

    Args:
        path: file of ``state``, for messages.
        hint: advice at the end of the error message.

    Raises:
        ModelError: a tensor is missing, left over, or of another shape or dtype; names all of
            them. Nothing is changed then.
    """
    with rollback_on_error(model):
        adopt_all_roundings(model, state)
        _load(model, state, path, hint)


def _load(model, state, path, hint):
    own = model.state_dict()
    wrong = [f"{listed(keys)} {problem}" for keys, problem in (
        ([key for key in own if key not in state], "missing in it"),
        ([key for key in state if key not in own], "left over"),
        ([key for key in own if key in state and not _fits(state[key], own[key])],
         "of another shape or dtype")) if keys]
    if wrong:
        raise ModelError(f"the checkpoint {path} is not of this network: {'; '.join(wrong)}; "
                         f"{hint}")
    for key, tensor in own.items():
        tensor.set_value(state[key])


def listed(keys):
    """Return the names of the first keys for a message, with the verb that follows."""
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more are" if len(keys) > 8 else
                                  " are" if len(keys) > 1 else " is")


def _fits(array, tensor):
    # bfloat16 is saved as the integers of its bits.
    name = dtype_name(tensor.dtype)
    return list(array.shape) == list(tensor.shape) and array.dtype == np.dtype(
        "uint16" if name == "bfloat16" else name)


class _Array:
    """Array whose content comes with the next instruction."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _DType:
    def __init__(self, name, *_):
        self.value = np.dtype(name)
        if self.value.kind not in _SIMPLE_TYPES or self.value.fields is not None:
            raise ValueError(f"an array of {name!r}")

    def __setstate__(self, state):
        self.value = self.value.newbyteorder(state[1] if state[1] in "<>" else "=")


def _array(data, dtype, shape, order):
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError("an array's content is not bytes")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


# Callables that a file may name.
_CALLABLES = {
    **{(f"{module}.multiarray", "_reconstruct"): lambda *_: _Array()
       for module in ("numpy.core", "numpy._core")},
    **{(f"{module}.numeric", "_frombuffer"): _array for module in ("numpy.core", "numpy._core")},
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): None,
    ("_codecs", "encode"): lambda text, encoding: text.encode({"latin1": "latin1"}[encoding]),
    ("__builtin__", "bytes"): lambda: b"",  # protocol 2 writes empty bytes so
}
_INSTRUCTIONS = (
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_TUPLE", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "MEMOIZE", "BINPUT",
    "LONG_BINPUT", "BINGET", "LONG_BINGET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM",
    "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD")
_CODES = [getattr(pickle, name)[0] for name in _INSTRUCTIONS]


class _BoundedReader:
    """File that allocates no more than its size for a read."""

    def __init__(self, file):
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, count):
        return self.file.read(min(count, self.size))


_PythonUnpickler: Any = pickle._Unpickler  # typeshed knows a part of it only


class _Unpickler(_PythonUnpickler):
    """Unpickler that knows ``_INSTRUCTIONS`` and ``_CALLABLES`` only.

    It derives from the implementation in Python: that in C allocates 32 GB for a file with a memo
    index of 2**31, and has no table of instructions.
    """

    dispatch = {code: _PythonUnpickler.dispatch[code] for code in _CODES}

    def find_class(self, module, name):
        if (module, name) not in _CALLABLES:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return _CALLABLES[module, name]

    def _load_build(self):
        if type(self.stack[-2]) not in (_Array, _DType):
            raise pickle.UnpicklingError("it sets attributes of a value that is no array")
        super().load_build()

    dispatch[pickle.BUILD[0]] = _load_build

    def _load_tuple(self):
        super().load_tuple()
        _check_tuple(self.stack[-1])

    def _load_tuple1(self):
        super().load_tuple1()
        _check_tuple(self.stack[-1])

    def _load_tuple2(self):
        super().load_tuple2()
        _check_tuple(self.stack[-1])

    def _load_tuple3(self):
        super().load_tuple3()
        _check_tuple(self.stack[-1])

    dispatch.update({pickle.TUPLE[0]: _load_tuple, pickle.TUPLE1[0]: _load_tuple1,
                     pickle.TUPLE2[0]: _load_tuple2, pickle.TUPLE3[0]: _load_tuple3})


def _check_tuple(value):
    """Refuse tuples in tuples of any number: a small file repeats one, and hashing visits all."""
    todo, count = [value], 0
    while todo:
        for each in todo.pop():
            count += 1
            if isinstance(each, tuple):
                todo.append(each)
        if count > _MOST_ENTRIES:
            raise pickle.UnpicklingError(f"it has a tuple of more than {_MOST_ENTRIES} entries")


def _plain(value):
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
