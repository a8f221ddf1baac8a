"""Operators of a saved program as plain Python values."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..export.program.op_desc import attribute_value

# Attributes that no kernel reads.
_ANNOTATIONS = {"op_role", "op_role_var", "op_namescope", "op_callstack", "op_device",
                "with_quant_attr", "struct_name"}


@dataclass
class Operator:
    """One operator of a program; slots without variables are left out."""

    type: str
    inputs: Dict[str, List[str]]
    outputs: Dict[str, List[str]]
    attributes: Dict[str, Any]
    block: int
    position: int
    layer: Optional[str] = None  # name of the sublayer that computes it
    alone: Optional[bytes] = None  # serialized program, if there is no dygraph function

    @property
    def place(self) -> Tuple[int, int]:
        """Block and position of the operator in the program."""
        return self.block, self.position

    def input(self, slot: str) -> Optional[str]:
        """Return the variable in an input slot, None if the slot is empty."""
        names = self.inputs.get(slot)
        return names[0] if names else None

    def output(self, slot: str) -> Optional[str]:
        """Return the variable in an output slot, None if the slot is empty."""
        names = self.outputs.get(slot)
        return names[0] if names else None

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, ``default`` if the operator lacks it."""
        return self.attributes.get(name, default)

    def all_inputs(self) -> List[str]:
        """Return the variables in all input slots, in order."""
        return [name for names in self.inputs.values() for name in names]

    def all_outputs(self) -> List[str]:
        """Return the variables in all output slots, in order."""
        return [name for names in self.outputs.values() for name in names]


@dataclass
class Arguments:
    """Values of the inputs of one call of an operator, slot -> list of tensors."""

    operator: Operator
    inputs: Dict[str, list]
    read: Tuple[str, ...] = ()  # output slots that an operator or the user of the model reads

    @property
    def type(self) -> str:
        """The operator type."""
        return self.operator.type

    def tensor(self, slot: str) -> Any:
        """Return the only tensor of a slot, None if the slot is empty."""
        values = self.inputs.get(slot)
        return values[0] if values else None

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, ``default`` if the operator lacks it."""
        return self.operator.get(name, default)


def logits_of(operators: Sequence[Operator], name: str) -> Optional[str]:
    """Return the input of the softmax along the last axis whose output is ``name``, or None."""
    for op in reversed(operators):
        if name in op.all_outputs():
            if op.type == "softmax" and op.get("axis", -1) == -1:
                return op.input("X")
            if not _is_identity(op):
                return None
            name = op.all_inputs()[0]
    return None


def _is_identity(op):
    # Paddle 2.6 writes each output with a multiplication by 1.
    return op.type == "assign" or (op.type == "scale" and len(op.all_inputs()) == 1
                                   and op.get("scale", 1.0) == 1.0 and op.get("bias", 0.0) == 0.0)


def read_operators(block) -> List[Operator]:
    """Return the operators of a BlockDesc."""
    return [Operator(op.type, _slots(op.inputs), _slots(op.outputs),
                     {attr.name: attribute_value(attr) for attr in op.attrs
                      if attr.name not in _ANNOTATIONS},
                     block.idx, position)
            for position, op in enumerate(block.ops)]


def _slots(entries):
    return {entry.parameter: list(entry.arguments) for entry in entries if entry.arguments}
