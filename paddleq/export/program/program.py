"""Editable program: a ProgramDesc and its parameters (``.pdmodel`` and ``.pdiparams``)."""

import os

from google.protobuf.message import DecodeError

from ..._atomic_write import write_bytes
from ..._paddle_compat import framework_proto
from ...errors import FormatError
from ..provenance_file import write_export
from . import pdiparams as params
from .graph_view import GraphView
from .op_desc import (
    DENSE_TENSOR,
    TENSOR_ARRAY,
    all_inputs,
    attribute,
    dtype_of,
    replace_ops,
    shape_of,
    tensor_of,
)
from .passes.runtime_workarounds import apply_runtime_workarounds
from .validate import validate

_KINDS = {"tensor": DENSE_TENSOR, "array": TENSOR_ARRAY, "feeds": 9, "fetches": 10, "scopes": 11}
_VERSION = 2006002  # Paddle version whose format new programs have


class Program:
    """A ProgramDesc and its parameters."""

    def __init__(self, desc, arrays):
        self.desc = desc
        self.arrays = arrays  # parameter name -> numpy array
        self.constants = set()  # names of parameters that are not trained, if the source has them
        self._variables = {}  # index of a block -> name -> VarDesc
        self._bfloat16 = {name for name, var in self.variables().items()
                          if name in arrays and dtype_of(var) == "bfloat16"}

    @classmethod
    def load(cls, model_path, params_path):
        """Read a ``.pdmodel``; see :func:`~paddleq.export.pir_to_program.load_program`."""
        if not os.path.isfile(model_path):
            raise FormatError(f"there is no file {model_path}")
        desc = framework_proto().ProgramDesc()
        with open(model_path, "rb") as file:
            data = file.read()
        if data[:1] == b"{":
            raise FormatError(f"{model_path} is a PIR program in JSON, not a .pdmodel")
        try:
            desc.ParseFromString(data)
        except DecodeError as error:
            raise FormatError(f"{model_path} is no ProgramDesc: {error}") from error
        validate(desc, model_path)
        _sort_feeds(desc.blocks[0])
        variables = [var for var in desc.blocks[0].vars
                     if var.persistable and var.type.type == DENSE_TENSOR]
        wanted = {var.name: dtype_of(var) for var in variables}
        shapes = {var.name: shape_of(var) for var in variables}
        if params_path is None:
            return cls(desc, {})
        if not os.path.isdir(params_path):
            return cls(desc, params.read(params_path, wanted, shapes))
        return cls(desc, {name: params.read(os.path.join(params_path, name), {name: dtype},
                                            shapes)[name]
                          for name, dtype in wanted.items()})

    def save(self, model_path, params_path, provenance=None, workarounds=True):
        """Write both files; see :func:`~paddleq.export.provenance_file.write_export`.

        The program gets the :mod:`.passes.runtime_workarounds` first; ``workarounds`` is False only
        for files that another tool than a runtime reads.
        """
        if workarounds:
            apply_runtime_workarounds(self)
        dtypes = dict.fromkeys(self._bfloat16, "bfloat16")
        write_export(model_path, {
            params_path: lambda path: params.write(path, self.arrays, dtypes),
            model_path: write_bytes(self.desc.SerializeToString()),
        }, provenance)

    @classmethod
    def empty(cls):
        """Create a program without operators, with the variables of its feeds and fetches."""
        desc = framework_proto().ProgramDesc()
        desc.version.version = _VERSION
        block = desc.blocks.add(idx=0, parent_idx=-1, forward_block_idx=-1)
        program = cls(desc, {})
        for name, kind in (("feed", "feeds"), ("fetch", "fetches")):
            program.add_variable(block, name, None, None, persistable=True, kind=kind)
        return program

    def copy(self):
        """Return a copy whose operators can be changed; arrays are shared until replaced."""
        copied = Program(type(self.desc).FromString(self.desc.SerializeToString()),
                         dict(self.arrays))
        copied.constants = set(self.constants)
        return copied

    def add_block(self, parent):
        return self.desc.blocks.add(idx=len(self.desc.blocks), parent_idx=parent.idx,
                                    forward_block_idx=-1)

    def variables(self, block=None):
        """Variables of a block (default: the main block), name -> VarDesc."""
        block = self.desc.blocks[0] if block is None else block
        index = self._variables.get(block.idx)
        if index is None or len(index) != len(block.vars):
            index = self._variables[block.idx] = {var.name: var for var in block.vars}
        return index

    def variable(self, name, block=None):
        """VarDesc of a variable that is visible in ``block`` (default: the main block)."""
        block = self.desc.blocks[0] if block is None else block
        while name not in self.variables(block) and block.parent_idx >= 0:
            block = self.desc.blocks[block.parent_idx]
        return self.variables(block)[name]

    def add_parameter(self, name, array, dtype=None):
        """Add a parameter and return its name; ``dtype`` is for one that numpy lacks (bfloat16)."""
        self.arrays[name] = array
        if dtype == "bfloat16":
            self._bfloat16.add(name)
        self.add_variable(self.desc.blocks[0], name, dtype or array.dtype.name, array.shape,
                          persistable=True)
        return name

    def add_variable(self, block, name, dtype, shape, persistable=False, kind="tensor"):
        """Add a variable of a kind of ``_KINDS`` to a block and return its name."""
        index = self.variables(block)
        var = index[name] = block.vars.add(
            name=name, persistable=persistable, stop_gradient=persistable,
            is_parameter=persistable and kind == "tensor")
        var.type.type = _KINDS[kind]
        if kind in ("tensor", "array"):
            _set_type(var, dtype, shape)
        return name

    def set_parameter(self, name, array):
        """Replace the value of a parameter; data type and shape may change."""
        self.arrays[name] = array
        _set_type(self.variable(name), array.dtype.name, array.shape)
        self._bfloat16.discard(name)

    def remove_unused_parameters(self):
        """Remove parameters that no operator refers to."""
        view = GraphView.of_program(self)
        unused = set(self.arrays) - view.producers.keys() - view.consumers.keys()
        for name in unused:
            del self.arrays[name]
        for op in (op for block in self.desc.blocks for op in block.ops):
            for entry in op.inputs if unused.intersection(all_inputs(op)) else ():
                entry.arguments[:] = [name for name in entry.arguments if name not in unused]
        self.remove_variables(self.desc.blocks[0], unused)

    def remove_variables(self, block, names):
        """Remove the variables ``names`` from a block, to which no operator refers."""
        # extend() copies, and its source must outlive the emptying of the block.
        kept = [type(var).FromString(var.SerializeToString()) for var in block.vars
                if var.name not in names]
        del block.vars[:]
        block.vars.extend(kept)
        self._variables.clear()


def _sort_feeds(block):
    """Write the inputs in order: Paddle 2.6 saves the last one first, and OpenVINO goes by that."""
    def column(op):
        found = attribute(op, "col", 0)
        return found if isinstance(found, int) else 0

    feeds = [op for op in block.ops if op.type == "feed"]
    if feeds != sorted(feeds, key=column):
        rest = [op for op in block.ops if op.type != "feed"]
        replace_ops(block, [*sorted(feeds, key=column), *rest])


def _set_type(var, dtype, shape):
    tensor = tensor_of(var)
    tensor.data_type = params.CODES[dtype]
    tensor.dims[:] = shape
