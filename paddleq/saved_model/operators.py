"""Operators of a saved program as plain Python values."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

# Enum AttrType of framework.proto -> field of OpDesc.Attr; a plural field is a list.
_FIELDS = {0: "i", 1: "f", 2: "s", 3: "ints", 4: "floats", 5: "strings", 6: "b", 7: "bools",
           8: "block_idx", 9: "l", 10: "blocks_idx", 11: "longs", 12: "float64s", 15: "float64"}
_SCALAR, _SCALARS = 16, 17
_SCALAR_FIELDS = {1: "b", 2: "i", 3: "r"}
_REPEATED = (3, 4, 5, 7, 10, 11, 12)
# Attributes that no kernel reads.
_ANNOTATIONS = {"op_role", "op_role_var", "op_namescope", "op_callstack", "op_device",
                "with_quant_attr", "struct_name"}


@dataclass
class Operator:
    """One operator of a program.

    Attributes:
        type: the operator type, e.g. ``"conv2d"``.
        inputs, outputs: slot -> names of variables; slots without variables are left out.
        attributes: name -> value.
        block, position: the place of the operator in the program.
        layer: name of the sublayer that computes the operator; None for other operators.
    """

    type: str
    inputs: Dict[str, List[str]]
    outputs: Dict[str, List[str]]
    attributes: Dict[str, Any]
    block: int
    position: int
    layer: Optional[str] = None

    def input(self, slot: str) -> Optional[str]:
        """Return the variable in an input slot, None if the slot is empty."""
        names = self.inputs.get(slot)
        return names[0] if names else None

    def output(self, slot: str) -> Optional[str]:
        """Return the variable in an output slot, None if the slot is empty."""
        names = self.outputs.get(slot)
        return names[0] if names else None


@dataclass
class Arguments:
    """Values of the inputs and attributes of one call of an operator.

    Attributes:
        type: the operator type.
        inputs: slot -> list of tensors.
        attributes: name -> value.
        counts: output slot -> number of variables.
        read: output slots that another operator or the user of the model reads.
    """

    type: str
    inputs: Dict[str, list]
    attributes: Dict[str, Any]
    counts: Dict[str, int] = field(default_factory=dict)
    read: Tuple[str, ...] = ()

    def tensor(self, slot: str) -> Any:
        """Return the only tensor of a slot, None if the slot is empty."""
        values = self.inputs.get(slot)
        return values[0] if values else None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


def read_operators(block) -> List[Operator]:
    """Return the operators of a BlockDesc."""
    return [Operator(op.type, _slots(op.inputs), _slots(op.outputs),
                     {attr.name: _value(attr) for attr in op.attrs
                      if attr.name not in _ANNOTATIONS},
                     block.idx, position)
            for position, op in enumerate(block.ops)]


def _slots(entries):
    return {entry.parameter: list(entry.arguments) for entry in entries if entry.arguments}


def _value(attr):
    if attr.type == _SCALAR:
        return _scalar(attr.scalar)
    if attr.type == _SCALARS:
        return [_scalar(each) for each in attr.scalars]
    if attr.type not in _FIELDS:
        return None
    value = getattr(attr, _FIELDS[attr.type])
    return list(value) if attr.type in _REPEATED else value


def _scalar(scalar):
    return getattr(scalar, _SCALAR_FIELDS.get(scalar.type, "i"))
