"""Access to the fields of OpDesc and VarDesc messages of a ProgramDesc."""

from ..._paddle_compat import framework_proto
from .pdiparams import DTYPES

# Enum AttrType of framework.proto
_INT, _FLOAT, _STRING, _INTS, _FLOATS, _STRINGS, _BOOLEAN, _BOOLEANS = range(8)
_BLOCK, _LONG, _LONGS, _FLOAT64S, _SCALARS = 8, 9, 11, 12, 17
# Type -> its number and the field of an attribute that holds it.
_FIELDS = {"int": (_INT, "i"), "long": (_LONG, "l"), "float": (_FLOAT, "f"),
           "str": (_STRING, "s"), "bool": (_BOOLEAN, "b"), "ints": (_INTS, "ints"),
           "longs": (_LONGS, "longs"), "floats": (_FLOATS, "floats"),
           "float64s": (_FLOAT64S, "float64s"), "bools": (_BOOLEANS, "bools"),
           "strs": (_STRINGS, "strings")}
_SCALAR_FIELDS = {bool: (1, "b"), int: (2, "i"), float: (3, "r")}
TENSOR_ARRAY = 13  # VarType.Type of framework.proto


def tensor_of(var):
    """TensorDesc of a variable. Paddle 3 renamed the field that holds it, but not its number."""
    kind = var.type
    if kind.type == TENSOR_ARRAY:
        return kind.tensor_array.tensor
    holder = kind.dense_tensor if hasattr(kind, "dense_tensor") else kind.lod_tensor
    return holder.tensor


def dtype_of(var):
    """Name of the data type of a variable, "?" if numpy has no equivalent."""
    return DTYPES.get(tensor_of(var).data_type, "?")


def shape_of(var):
    """Dimensions of a variable, -1 for unknown ones."""
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


def set_input(op, slot, name):
    """Make ``name`` the first variable of an input slot."""
    _set_argument(op.inputs, slot, name)


def set_output(op, slot, name):
    """Make ``name`` the first variable of an output slot."""
    _set_argument(op.outputs, slot, name)


def _set_argument(entries, slot, name):
    for entry in entries:
        if entry.parameter == slot:
            entry.arguments[0] = name


def all_inputs(op):
    """Names of the variables in all input slots, in order."""
    return [name for entry in op.inputs for name in entry.arguments]


def all_outputs(op):
    """Names of the variables in all output slots, in order."""
    return [name for entry in op.outputs for name in entry.arguments]


def rename_inputs(ops, names):
    """Replace input variables of operators by ``names[variable]``, in place."""
    for op in ops:
        for entry in op.inputs:
            for i, name in enumerate(entry.arguments):
                if name in names:
                    entry.arguments[i] = names[name]


def replace_ops(block, ops):
    """Replace the operators of a block."""
    # extend() copies, and its source must outlive the emptying of the block.
    kept = [type(op).FromString(op.SerializeToString()) for op in ops]
    del block.ops[:]
    block.ops.extend(kept)


def attribute(op, name, default=None):
    """Value of a scalar or integer-list attribute, or ``default`` if the operator lacks it."""
    for attr in op.attrs:
        if attr.name == name:
            if attr.type == _INTS:
                return list(attr.ints)
            return {_INT: attr.i, _FLOAT: attr.f, _STRING: attr.s, _BOOLEAN: attr.b,
                    _LONG: attr.l}.get(attr.type, default)
    return default


def set_attribute(op, name, value):
    """Set an attribute; its type is inferred from ``value``."""
    for attr in op.attrs:
        if attr.name == name:
            break
    else:
        attr = op.attrs.add()
        attr.name = name
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    _fill(attr, kinds.get(type(value), "strs"), value)


def set_typed_attribute(op, name, kind, value):
    """Add an attribute whose type ``kind`` is a key of ``_FIELDS`` or "scalars"."""
    attr = op.attrs.add()
    attr.name = name
    _fill(attr, kind, value)


def set_block(op, name, index):
    """Add an attribute that refers to a block."""
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
    """Create an OpDesc with the attributes that every operator of a saved program has."""
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
