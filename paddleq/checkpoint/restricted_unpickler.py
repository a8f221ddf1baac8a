"""Reading a saved ``layer.state_dict()``, and giving it to a model.

What ``paddle.save`` writes is a pickle. It is not unpickled: the instructions in it are read as
data (``pickletools`` executes none), and those that build dicts, numbers, strings and numpy arrays
are followed. Anything else is an error.
"""

import os
import pickletools

import numpy as np

from ..errors import FormatError, ModelError
from .safetensors_io import parse_tensors, read_bytes

_NAMES_KEY = "StructuredToParameterName@@"  # Paddle's own entry beside the tensors
_MARK = object()

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_SIMPLE_TYPES = "biufc"  # kinds of numpy dtypes that hold numbers only


def read_state(path):
    """The arrays of a ``.pdparams`` or ``.safetensors`` file, by their names.

    Raises:
        FormatError: the file cannot be read, is damaged or holds more than arrays.
    """
    data = read_bytes(path)
    if os.fspath(path).endswith(".safetensors"):
        return parse_tensors(data, path)
    try:
        state = _Reader().run(data)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
            RecursionError) as error:
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


_HINT = ("save net.state_dict() of the network that apply() returned, and apply with the same "
         "configuration")


def load_state(model, state, path, hint=_HINT):
    """Give the arrays of ``state`` to the parameters and buffers of ``model``.

    Args:
        hint: what the message of an error tells to do.

    Raises:
        ModelError: a tensor is missing, left over, or of another shape or dtype; names all of
            them. The model is left as it was.
    """
    own = model.state_dict()
    wrong = [f"{_listed(keys)} {what}" for keys, what in (
        ([key for key in own if key not in state], "missing in it"),
        ([key for key in state if key not in own], "left over"),
        ([key for key in own if key in state and not _fits(state[key], own[key])],
         "of another shape or dtype")) if keys]
    if wrong:
        raise ModelError(f"the checkpoint {path} is not of this network: {'; '.join(wrong)}; "
                         f"{hint}")
    for key, tensor in own.items():
        tensor.set_value(state[key])


def _listed(keys):
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more are" if len(keys) > 8 else
                                  " are" if len(keys) > 1 else " is")


def _fits(array, tensor):
    # bfloat16 is saved as the integers of its bits.
    name = str(tensor.dtype).replace("paddle.", "")
    return list(array.shape) == list(tensor.shape) and array.dtype == np.dtype(
        "uint16" if name == "bfloat16" else name)


class _Array:
    """An array whose content comes with the next instruction."""

    def build(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data, dtype, shape, order="C"):
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError("an array's content is not bytes")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


class _DType:
    def __init__(self, name):
        self.value = np.dtype(name)
        if self.value.kind not in _SIMPLE_TYPES or self.value.fields is not None:
            raise ValueError(f"an array of {name!r}")

    def build(self, state):
        self.value = self.value.newbyteorder(state[1] if state[1] in "<>" else "=")


# What a file may call, by name.
_CALLS = {
    **{(module, "_reconstruct"): lambda *_: _Array() for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): lambda data, dtype, shape, order: _array(data, dtype, shape, order)
       for module in _BUFFER_MODULES},
    ("numpy", "dtype"): lambda name, *_: _DType(name),
    ("numpy", "ndarray"): None,
    ("_codecs", "encode"): lambda text, encoding: text.encode({"latin1": "latin1"}[encoding]),
    ("__builtin__", "bytes"): lambda: b"",  # how protocol 2 says that there are none
}


class _Reader:
    """Follows the instructions of a pickle that build plain values and arrays."""

    def __init__(self):
        self.stack, self.memo = [], {}

    def run(self, data):
        for op, argument, _ in pickletools.genops(data):
            if op.name == "STOP":
                return _plain(self.stack[-1])
            self.follow(op.name, argument)
        raise ValueError("it ends too early")

    def follow(self, name, argument):
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name == "TUPLE":
            self.stack.append(tuple(self.since_mark()))
        elif name == "SETITEM":
            value, key = self.stack.pop(), self.stack.pop()
            self.stack[-1][key] = value
        elif name == "SETITEMS":
            items = self.since_mark()
            self.stack[-1].update(zip(items[::2], items[1::2]))
        elif name == "GLOBAL":
            self.stack.append(_known(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            attribute, module = self.stack.pop(), self.stack.pop()
            self.stack.append(_known(module, attribute))
        elif name == "REDUCE":
            arguments, call = self.stack.pop(), self.stack.pop()
            self.stack.append(_CALLS[call](*arguments))
        elif name == "BUILD":
            state = self.stack.pop()
            self.stack[-1].build(state)
        else:
            raise ValueError(f"it has the instruction {name}")

    def since_mark(self):
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self.stack[at + 1:]
        del self.stack[at:]
        return items


_CONSTANTS = {"MARK": lambda: _MARK, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "NONE": lambda: None,
              "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
             "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}


def _known(module, attribute):
    if (module, attribute) not in _CALLS:
        raise ValueError(f"it calls {module}.{attribute}")
    return module, attribute


def _plain(value):
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


__all__ = ["load_state", "read_state"]
