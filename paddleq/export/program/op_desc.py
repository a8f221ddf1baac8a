"""Access to the fields of OpDesc and VarDesc messages of a ProgramDesc."""

from typing import Any

from ..._paddle_compat import framework_proto
from .pdiparams import DTYPES

# Type of an attribute -> its number in the enum AttrType of framework.proto, and its field.
_FIELDS = {"int": (0, "i"), "float": (1, "f"), "str": (2, "s"), "ints": (3, "ints"),
           "floats": (4, "floats"), "strs": (5, "strings"), "bool": (6, "b"),
           "bools": (7, "bools"), "block": (8, "block_idx"), "long": (9, "l"),
           "longs": (11, "longs"), "float64s": (12, "float64s"), "blocks": (10, "blocks_idx"),
           "float64": (15, "float64"), "scalar": (16, "scalar"), "scalars": (17, "scalars")}
_FIELD_OF = dict(_FIELDS.values())
ATTRIBUTE_TYPES = frozenset(_FIELD_OF)
"""Numbers of the types of attributes with constant values; others hold names of variables."""
_SCALAR_FIELDS = {bool: (1, "b"), int: (2, "i"), float: (3, "r")}
_SCALAR_FIELD_OF = dict(_SCALAR_FIELDS.values())
TYPES = {bool: "bool", int: "int", float: "float", str: "str", list: "ints", tuple: "strs"}
"""Types of attributes whose type is not given."""
DENSE_TENSOR, TENSOR_ARRAY = 7, 13  # VarType.Type of framework.proto


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
    return _arguments(op.inputs, slot)


def outputs(op, slot):
    """Names of the variables in an output slot."""
    return _arguments(op.outputs, slot)


def _arguments(entries, slot):
    return next((list(entry.arguments) for entry in entries if entry.parameter == slot), [])


def set_input(op, slot, name):
    """Make ``name`` the first variable of an input slot."""
    next(entry for entry in op.inputs if entry.parameter == slot).arguments[0] = name


def set_inputs(op, slot, names):
    """Replace all variables of an input slot."""
    next(entry for entry in op.inputs if entry.parameter == slot).arguments[:] = names


def set_output(op, slot, name):
    """Make ``name`` the first variable of an output slot."""
    next(entry for entry in op.outputs if entry.parameter == slot).arguments[0] = name


def all_inputs(op):
    """Names of the variables in all input slots, in order."""
    return [name for entry in op.inputs for name in entry.arguments]


def direct_inputs(op):
    """Names of the variables that an operator reads itself, not only its sub-blocks."""
    if attribute(op, "sub_block") is None:
        return all_inputs(op)
    return [name for slot in ("Cond", "Condition") for name in inputs(op, slot)]


def all_outputs(op):
    """Names of the variables in all output slots, in order."""
    return [name for entry in op.outputs for name in entry.arguments]


def rename_inputs(ops, names):
    """Replace input variables of operators by ``names[variable]``, in place."""
    _rename([entry for op in ops for entry in op.inputs], names)


def rename_outputs(ops, names):
    """Replace output variables of operators by ``names[variable]``, in place."""
    _rename([entry for op in ops for entry in op.outputs], names)


def _rename(entries, names):
    for entry in entries:
        for i, name in enumerate(entry.arguments):
            if name in names:
                entry.arguments[i] = names[name]


def replace_ops(block, ops):
    """Replace the operators of a block."""
    # extend() copies, and its source must outlive the emptying of the block.
    kept = [type(op).FromString(op.SerializeToString()) for op in ops]
    del block.ops[:]
    block.ops.extend(kept)


def attribute(op, name, default=None) -> Any:
    """Value of an attribute, or ``default`` if the operator lacks it."""
    return next((attribute_value(attr) for attr in op.attrs
                 if attr.name == name and attr.type in _FIELD_OF), default)


def attribute_value(attr) -> Any:
    """Value of a message of an attribute, None for an unknown type."""
    value: Any = getattr(attr, _FIELD_OF.get(attr.type, ""), None)
    return [_plain(each) for each in value] if hasattr(value, "extend") else _plain(value)


def _plain(value):
    """Value of a Scalar message; other values are returned as they are."""
    return (getattr(value, _SCALAR_FIELD_OF.get(value.type, "i")) if hasattr(value, "type")
            else value)


def set_attribute(op, name, value, kind=None):
    """Set an attribute of a type of ``_FIELDS`` or "scalars", by default that of ``value``."""
    attr = next((attr for attr in op.attrs if attr.name == name), None)
    if attr is None:
        attr = op.attrs.add(name=name)
    kind = kind or TYPES[type(value)]
    attr.type, field = _FIELDS[kind]
    if kind == "scalars":
        for number in value:
            code, field = _SCALAR_FIELDS[type(number)]
            attr.scalars.add(type=code, **{field: number})
    elif isinstance(value, (list, tuple)):
        del getattr(attr, field)[:]
        getattr(attr, field).extend(value)
    else:
        setattr(attr, field, value)


def change_attribute(op, name, value):
    """Set an attribute, of the type that it has if the operator has it."""
    number = next((attr.type for attr in op.attrs if attr.name == name), None)
    set_attribute(op, name, value, next(
        (kind for kind, (code, _) in _FIELDS.items() if code == number), None))


def make_op(kind, ins, outs, **attributes):
    """Create an OpDesc with the attributes that every operator of a saved program has."""
    op = framework_proto().OpDesc(type=kind)
    for entries, slots in ((op.inputs, ins), (op.outputs, outs)):
        for slot, names in slots.items():
            entries.add(parameter=slot,
                        arguments=[names] if isinstance(names, str) else names)
    # VisualDL refuses a graph in which an op lacks op_namescope.
    common = {"op_role": 0, "op_role_var": (), "op_namescope": "/", "op_device": "",
              "with_quant_attr": False}
    for name, value in {**common, **attributes}.items():
        set_attribute(op, name, value)
    return op
