"""A saved program (``.pdmodel`` + ``.pdiparams``) that can be edited."""

import os

from ..._paddle_compat import framework_proto
from ...errors import FormatError
from . import pdiparams as params
from .write_files import write_model

# paddle.framework.proto.AttrType
_INT, _FLOAT, _STRING, _INTS, _FLOATS, _STRINGS, _BOOLEAN, _BOOLEANS = range(8)
_BLOCK, _LONG, _LONGS, _FLOAT64S, _SCALARS = 8, 9, 11, 12, 17
# Type -> its number and the field of an attribute that holds it.
_FIELDS = {"int": (_INT, "i"), "long": (_LONG, "l"), "float": (_FLOAT, "f"),
           "str": (_STRING, "s"), "bool": (_BOOLEAN, "b"), "ints": (_INTS, "ints"),
           "longs": (_LONGS, "longs"), "floats": (_FLOATS, "floats"),
           "float64s": (_FLOAT64S, "float64s"), "bools": (_BOOLEANS, "bools"),
           "strs": (_STRINGS, "strings")}
_SCALAR_FIELDS = {bool: (1, "b"), int: (2, "i"), float: (3, "r")}
# paddle.framework.proto.VarType.Type
_DENSE_TENSOR, _FEEDS, _FETCHES, _STEP_SCOPES, _TENSOR_ARRAY = 7, 9, 10, 11, 13
_KINDS = {"tensor": _DENSE_TENSOR, "array": _TENSOR_ARRAY, "feeds": _FEEDS,
          "fetches": _FETCHES, "scopes": _STEP_SCOPES}
_VERSION = 2006002  # of Paddle, whose format a new program is in


class Program:
    """A ProgramDesc and its parameters.

    Attributes:
        desc: the protobuf message.
        arrays: parameter name -> numpy array.
    """

    def __init__(self, desc, arrays):
        self.desc = desc
        self.arrays = arrays
        self._bfloat16 = {name for name, var in self.variables().items()
                          if name in arrays and _dtype(var) == "bfloat16"}

    @classmethod
    def load(cls, model_path, params_path):
        """Read a program.

        Args:
            model_path: the ``.pdmodel`` (or ``__model__``).
            params_path: the file that holds all parameters, a folder that holds a file for each,
                or None for a program without parameters.

        Raises:
            FormatError: a file is missing, is damaged, or is not of this kind.
        """
        proto = framework_proto()
        if not os.path.isfile(model_path):
            raise FormatError(f"there is no file {model_path}")
        desc = proto.ProgramDesc()
        with open(model_path, "rb") as file:
            data = file.read()
        if data[:1] == b"{":
            raise FormatError(f"{model_path} is a PIR program in JSON, not a .pdmodel")
        try:
            desc.ParseFromString(data)
        except Exception as error:  # protobuf's DecodeError has no stable home to import from
            raise FormatError(f"{model_path} is no ProgramDesc: {error}") from error
        if not desc.blocks:
            raise FormatError(f"{model_path} is no ProgramDesc: it has no block")
        wanted = {var.name: _dtype(var) for var in desc.blocks[0].vars
                  if var.persistable and var.type.type == _DENSE_TENSOR}
        if params_path is None:
            arrays = {}
        elif os.path.isdir(params_path):
            arrays = {name: params.read(os.path.join(params_path, name), {name: dtype},
                                        proto)[name] for name, dtype in wanted.items()}
        else:
            arrays = params.read(params_path, wanted, proto)
        return cls(desc, arrays)

    def save(self, model_path, params_path, record=None):
        """Write both files beside their targets, then rename them into place.

        Args:
            model_path, params_path: the targets.
            record: the :class:`~..provenance_file.Record` to lie beside them, if any.

        Raises:
            ExportError: the target cannot be written.
        """
        dtypes = dict.fromkeys(self._bfloat16, "bfloat16")
        write_model(model_path, self.desc.SerializeToString(), params_path, self.arrays, dtypes,
                    framework_proto(), record)

    @classmethod
    def empty(cls):
        """A program that does nothing yet, with the variables of its feeds and fetches."""
        desc = framework_proto().ProgramDesc()
        desc.version.version = _VERSION
        block = desc.blocks.add()
        block.idx, block.parent_idx, block.forward_block_idx = 0, -1, -1
        program = cls(desc, {})
        for name, kind in (("feed", "feeds"), ("fetch", "fetches")):
            program.add_variable(block, name, None, None, persistable=True, kind=kind)
        return program

    def add_block(self, parent):
        """A block inside of another."""
        block = self.desc.blocks.add()
        block.idx, block.parent_idx, block.forward_block_idx = (
            len(self.desc.blocks) - 1, parent.idx, -1)
        return block

    def variables(self):
        """Name -> VarDesc of the main block."""
        return {var.name: var for var in self.desc.blocks[0].vars}

    def add_parameter(self, name, array, dtype=None):
        """Add a persistable variable that holds ``array``; returns its name.

        ``dtype`` is for what numpy cannot say (bfloat16).
        """
        self.arrays[name] = array
        if dtype == "bfloat16":
            self._bfloat16.add(name)
        self.add_variable(self.desc.blocks[0], name, dtype or array.dtype.name, array.shape,
                          persistable=True)
        return name

    def add_variable(self, block, name, dtype, shape, persistable=False, kind="tensor"):
        """Add a variable to a block: a tensor, or another kind of ``_KINDS``."""
        var = block.vars.add()
        var.name = name
        var.type.type = _KINDS[kind]
        if kind in ("tensor", "array"):
            tensor = tensor_of(var)
            tensor.data_type = params.CODES[dtype]
            tensor.dims.extend(shape)
        var.persistable = persistable
        var.is_parameter = persistable and kind == "tensor"
        var.stop_gradient = persistable
        return name

    def set_parameter(self, name, array):
        """Give a parameter another value, of another dtype if need be."""
        self.arrays[name] = array
        var = self.variables()[name]
        tensor = tensor_of(var)
        tensor.data_type = params.CODES[array.dtype.name]
        del tensor.dims[:]
        tensor.dims.extend(array.shape)
        self._bfloat16.discard(name)

    def remove_unused_parameters(self):
        """Drop parameters that no op names any more."""
        used = {name for block in self.desc.blocks for op in block.ops
                for slot in [*op.inputs, *op.outputs] for name in slot.arguments}
        gone = [name for name in self.arrays if name not in used]
        for name in gone:
            del self.arrays[name]
        keep = [var for var in self.desc.blocks[0].vars if var.name not in gone]
        del self.desc.blocks[0].vars[:]
        self.desc.blocks[0].vars.extend(keep)


def tensor_of(var):
    """TensorDesc of a variable; Paddle 3 renamed the field that holds it, not its number."""
    kind = var.type
    if kind.type == _TENSOR_ARRAY:
        return kind.tensor_array.tensor
    holder = kind.dense_tensor if hasattr(kind, "dense_tensor") else kind.lod_tensor
    return holder.tensor


def _dtype(var):
    return params.DTYPES.get(tensor_of(var).data_type, "?")


def tensor_dtype(var):
    """Name of the dtype of a variable, "?" where numpy has none for it."""
    return _dtype(var)


def shape_of(var):
    """Dimensions of a variable, -1 where they are not known."""
    return list(tensor_of(var).dims)


def inputs(op, slot):
    """Names of the variables in an input slot."""
    for entry in op.inputs:
        if entry.parameter == slot:
            return list(entry.arguments)
    return []


def outputs(op, slot):
    """Names of the variables in an output slot."""
    for entry in op.outputs:
        if entry.parameter == slot:
            return list(entry.arguments)
    return []


def attribute(op, name, default=None):
    """Value of an attribute: of a scalar type, or a list of integers."""
    for attr in op.attrs:
        if attr.name == name:
            if attr.type == _INTS:
                return list(attr.ints)
            return {_INT: attr.i, _FLOAT: attr.f, _STRING: attr.s, _BOOLEAN: attr.b,
                    _LONG: attr.l}.get(attr.type, default)
    return default


def set_attribute(op, name, value):
    """Set an attribute; its type follows that of ``value``."""
    for attr in op.attrs:
        if attr.name == name:
            break
    else:
        attr = op.attrs.add()
        attr.name = name
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    _fill(attr, kinds.get(type(value), "strs"), value)


def set_typed_attribute(op, name, kind, value):
    """Add an attribute of a type in ``_FIELDS``, or ``scalars``."""
    attr = op.attrs.add()
    attr.name = name
    _fill(attr, kind, value)


def set_block(op, name, index):
    """Add an attribute that names a block."""
    attr = op.attrs.add()
    attr.name, attr.type, attr.block_idx = name, _BLOCK, index


def _fill(attr, kind, value):
    if kind == "scalars":
        attr.type = _SCALARS
        for number in value:
            code, field = _SCALAR_FIELDS[type(number)]
            scalar = attr.scalars.add()
            scalar.type = code
            setattr(scalar, field, number)
        return
    attr.type, field = _FIELDS[kind]
    if isinstance(value, (list, tuple)):
        del getattr(attr, field)[:]
        getattr(attr, field).extend(value)
    else:
        setattr(attr, field, value)


def make_op(kind, ins, outs, **attributes):
    """A new OpDesc with the attributes that every op of a saved program has."""
    op = framework_proto().OpDesc()
    op.type = kind
    for entries, slots in ((op.inputs, ins), (op.outputs, outs)):
        for slot, names in slots.items():
            entry = entries.add()
            entry.parameter = slot
            entry.arguments.extend([names] if isinstance(names, str) else names)
    # VisualDL refuses a graph in which an op lacks op_namescope.
    common = {"op_role": 0, "op_role_var": (), "op_namescope": "/", "op_device": "",
              "with_quant_attr": False}
    for name, value in {**common, **attributes}.items():
        set_attribute(op, name, value)
    return op
