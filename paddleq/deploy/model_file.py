"""The files of a saved model, as runtimes read them."""

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from ..errors import FormatError
from ..export.onnx.float_graph import require_onnx
from ..export.pir_to_program import load_program
from ..export.program.op_desc import inputs, outputs, tensor_of
from ..export.program.pdiparams import DTYPES

ENDINGS = (".onnx", ".pdmodel", ".json")


@dataclass(frozen=True)
class Port:
    """An input of a model.

    Attributes:
        name: as the model has it.
        dtype: name of the numpy dtype.
        shape: its dimensions, None where any size will do; None if nothing is known of it.
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
    """One file of a model, with what belongs to it.

    Attributes:
        path: of the ``.pdmodel``, ``.json`` or ``.onnx``.
        kind: its ending.
        params: path of the ``.pdiparams``, or None.
    """

    def __init__(self, path, trusted=False):
        self.path, self.kind = path, os.path.splitext(path)[1]
        self._trusted = trusted  # it was just written here, perhaps without shapes
        params = os.path.splitext(path)[0] + ".pdiparams"
        self.params = params if self.kind != ".onnx" and os.path.exists(params) else None

    @property
    def size(self):
        """Bytes of all that belongs to the model."""
        return sum(os.path.getsize(each) for each in (self.path, self.params) if each)

    def check(self):
        """Read the file: a runtime may kill the process over a damaged one.

        Raises:
            FormatError: it is damaged.
        """
        if not os.path.getsize(self.path):
            raise FormatError(f"{self.path} is empty")
        if self.kind != ".onnx":
            return self.program
        if self._trusted:
            return None
        with contextlib.suppress(ImportError):  # without onnx the runtime has to say so
            import onnx

            try:
                onnx.checker.check_model(self.path)
            except Exception as error:  # of several classes without one of their own
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise FormatError(f"{self.path} is damaged: {said[0]}") from error
        return None

    @functools.cached_property
    def program(self):
        """The :class:`~paddleq.export.program.program.Program` of a Paddle file.

        Raises:
            FormatError: it is damaged.
        """
        return load_program(self.path, self.params)

    def onnx_model(self):
        """The ``onnx.ModelProto`` of an ``.onnx``, read anew.

        Raises:
            DependencyError: the package onnx is not installed.
        """
        return require_onnx().load(self.path)

    @functools.cached_property
    def quantized(self):
        """Whether operators of a Paddle file compute with integers."""
        return any(op.type == "quantize_linear" or op.type.startswith("fake_quantize")
                   for block in self.program.desc.blocks for op in block.ops)

    @functools.cached_property
    def ports(self):
        """List of the :class:`Port` of the model."""
        if self.kind == ".onnx":
            return [_onnx_port(value) for value in self.onnx_model().graph.input]
        block = self.program.desc.blocks[0]
        tensors = {var.name: tensor_of(var) for var in block.vars}
        names = [outputs(op, "Out")[0] for op in block.ops if op.type == "feed"]
        return [Port(name, DTYPES[tensors[name].data_type],
                     tuple(None if size < 0 else size for size in tensors[name].dims))
                for name in names]

    @functools.cached_property
    def results(self):
        """Names of what a Paddle file returns."""
        return [inputs(op, "X")[0] for op in self.program.desc.blocks[0].ops
                if op.type == "fetch"]

    def __str__(self):
        return self.path


def _onnx_port(value):
    import onnx

    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return Port(value.name, np.dtype(dtype).name, tuple(dims))


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
