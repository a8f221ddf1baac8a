"""Files of a saved model, and checks of the inputs that it takes."""

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from .._checks import hint, wrong_type
from ..errors import ConfigError, ConfigTypeError, FormatError
from ..export.onnx.float_graph import require_onnx
from ..export.pir_to_program import load_program
from ..export.program.op_desc import inputs, outputs, tensor_of
from ..export.program.pdiparams import DTYPES

ENDINGS = (".onnx", ".pdmodel", ".json")


@dataclass(frozen=True)
class TensorInfo:
    """Name, dtype and shape of an input of a model.

    Attributes:
        name: in the model.
        dtype: name of the numpy dtype.
        shape: dimensions, with None for dynamic ones; None if unknown.
    """

    name: str
    dtype: str
    shape: Optional[Tuple[Optional[int], ...]]

    def __str__(self):
        return f"{self.name}: {self.dtype} {_shape_text(self.shape)}"


def _shape_text(shape):
    if shape is None:
        return "of any shape"
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


class ModelFile:
    """Model file with its parameter file.

    Attributes:
        path: of the ``.pdmodel``, ``.json`` or ``.onnx``.
        kind: ending of ``path``.
        params: path of the ``.pdiparams``, or None.
    """

    def __init__(self, path, trusted=False):
        self.path, self.kind = path, os.path.splitext(path)[1]
        self._trusted = trusted  # written by this process, perhaps without shapes
        params = os.path.splitext(path)[0] + ".pdiparams"
        self.params = params if self.kind != ".onnx" and os.path.exists(params) else None

    @property
    def size(self):
        """Size of the files in bytes."""
        return sum(os.path.getsize(each) for each in (self.path, self.params) if each)

    def check(self):
        """Read the file, because runtimes may abort the process on a damaged one.

        Raises:
            FormatError: it is damaged.
        """
        if not os.path.getsize(self.path):
            raise FormatError(f"{self.path} is empty")
        if self.kind != ".onnx":
            return self.program
        if self._trusted:
            return None
        with contextlib.suppress(ImportError):  # without the package, the runtime checks
            import onnx

            try:
                onnx.checker.check_model(self.path)
            except Exception as error:  # of several unrelated classes
                message = str(error).strip().splitlines() or [type(error).__name__]
                raise FormatError(f"{self.path} is damaged: {message[0]}") from error
        return None

    @functools.cached_property
    def program(self):
        """The :class:`~paddleq.export.program.program.Program` of a Paddle file.

        Raises:
            FormatError: it is damaged.
        """
        return load_program(self.path, self.params)

    def onnx_model(self):
        """Read the ``onnx.ModelProto`` of an ``.onnx``.

        Raises:
            DependencyError: the package onnx is not installed.
        """
        return require_onnx().load(self.path)

    @functools.cached_property
    def quantized(self):
        """True if a Paddle file has quantized operators."""
        return any(op.type == "quantize_linear" or op.type.startswith("fake_quantize")
                   for block in self.program.desc.blocks for op in block.ops)

    @functools.cached_property
    def inputs(self):
        """List of the :class:`TensorInfo` of the inputs."""
        if self.kind == ".onnx":
            return [_onnx_input(value) for value in self.onnx_model().graph.input]
        block = self.program.desc.blocks[0]
        tensors = {var.name: tensor_of(var) for var in block.vars}
        names = [outputs(op, "Out")[0] for op in block.ops if op.type == "feed"]
        return [TensorInfo(name, DTYPES[tensors[name].data_type],
                     tuple(None if size < 0 else size for size in tensors[name].dims))
                for name in names]

    @functools.cached_property
    def outputs(self):
        """Names of the outputs of a Paddle file."""
        return [inputs(op, "X")[0] for op in self.program.desc.blocks[0].ops
                if op.type == "fetch"]

    def __str__(self):
        return self.path


def _onnx_input(value):
    import onnx

    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorInfo(value.name, np.dtype(dtype).name, tuple(dims))


def _endings():
    """Endings of model files: those that paddleq writes, and those of further runtimes."""
    from .runtimes import RUNTIMES  # it imports this module

    return list(dict.fromkeys([*ENDINGS, *(kind for runtime in RUNTIMES.values()
                                           for kind in runtime.kinds)]))


def model_files(path):
    """Return the files of the model at ``path``: one of them, or their common prefix.

    Raises:
        FormatError: there is none.
    """
    path, endings = os.fspath(path), _endings()
    if os.path.splitext(path)[1] in endings:
        if not os.path.isfile(path):
            raise FormatError(f"there is no file {path}")
        return [ModelFile(path)]
    found = [path + each for each in endings if os.path.isfile(path + each)]
    if not found:
        raise FormatError(f"there is no model at {path}: none of "
                          f"{', '.join(path + each for each in endings)} exists")
    return [ModelFile(each) for each in found]


def most_readable(files):
    """Return the file that can be read with the fewest packages: Paddle's own if there is one."""
    order = [".pdmodel", ".json", ".onnx"]
    return min(files, key=lambda file: (order + [file.kind]).index(file.kind))


def as_numpy(value):
    """Return ``value``, a Paddle tensor or anything that numpy takes, as a numpy array."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def check_inputs(inputs, expected):
    """Return ``inputs`` as a list of numpy arrays in the order of ``expected``.

    Args:
        inputs: an array for a model with one input; else a list or tuple of arrays in order, or a
            dict by name. Paddle tensors count as arrays.
        expected: list of :class:`TensorInfo`.

    Raises:
        ConfigError: wrong number of inputs, unknown name, wrong shape.
        ConfigTypeError: not an array, or wrong dtype.
    """
    takes = "; the model takes " + "; ".join(map(str, expected))
    if isinstance(inputs, dict):
        inputs = _by_name(inputs, expected, takes)
    elif not isinstance(inputs, (list, tuple)):
        inputs = [inputs]
    if len(inputs) != len(expected):
        raise ConfigError(f"inputs has {len(inputs)} arrays{takes}")
    return [_check_array(as_numpy(value), info, takes) for value, info in zip(inputs, expected)]


def _by_name(inputs, expected, takes):
    names = [info.name for info in expected]
    for name in inputs:
        if name not in names:
            raise ConfigError(f"inputs has no place for {name!r}{hint(name, names)}{takes}")
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ConfigError(f"inputs lacks {', '.join(missing)}{takes}")
    return [inputs[name] for name in names]


def _check_array(array, info, takes):
    if array.dtype == object:
        raise wrong_type(f"inputs[{info.name!r}]", array.tolist(), "a numeric array")
    if array.dtype.name != info.dtype:
        raise ConfigTypeError(f"inputs[{info.name!r}] must be {info.dtype}, but is "
                              f"{array.dtype.name}: give array.astype({info.dtype!r}){takes}")
    if info.shape is not None and (array.ndim != len(info.shape) or any(
            size not in (None, found) for size, found in zip(info.shape, array.shape))):
        raise ConfigError(f"inputs[{info.name!r}] has the shape {list(array.shape)}{takes}")
    return array
