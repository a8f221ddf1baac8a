"""Operators without weights as sublayers of a saved model, which can be quantized.

Each is a :class:`~paddleq.QuantizableFunction` that calls the operator. :data:`OPERATOR_RULES` says
which operators have quantized inputs.
"""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Tuple

from ..nn.layer_types import QuantizableFunction
from .functions import FUNCTIONS
from .operators import Arguments, Operator


@dataclass(frozen=True)
class OperatorRule:
    """Quantization of the inputs of an operator.

    Attributes:
        slots: input slots to quantize. The tensors of one slot share a scale.
        every: True if the operator is quantized only where all its inputs come from operators
            that are; False if one suffices.
        applies: function that returns True if an operator is of the kind that the rule is for.
    """

    slots: Tuple[str, ...]
    every: bool = True
    applies: Callable[[Operator], bool] = lambda op: True


def _averages(op):
    return op.get("pooling_type") == "avg"


OPERATOR_RULES: Dict[str, OperatorRule] = {
    "elementwise_add": OperatorRule(("X", "Y")),
    "elementwise_mul": OperatorRule(("X", "Y"), every=False),
    "concat": OperatorRule(("X",)),
    "pool2d": OperatorRule(("X",), applies=_averages),
    "matmul_v2": OperatorRule(("X", "Y"), every=False),
    "matmul": OperatorRule(("X", "Y"), every=False),
    "bmm": OperatorRule(("X", "Y"), every=False),
}


class ProgramOperator:
    """Function that runs an operator on the tensors of its input slots.

    Args:
        operator: it has an entry in :data:`~.functions.FUNCTIONS`.
        slots: names of the slots in the order of the arguments; lists for several tensors.
    """

    def __init__(self, operator: Operator, slots: Tuple[str, ...]):
        self.operator, self.slots = operator, slots
        self.__name__ = operator.type

    def __call__(self, *values: Any) -> Any:
        inputs = {slot: list(value) if isinstance(value, (list, tuple)) else [value]
                  for slot, value in zip(self.slots, values)}
        return FUNCTIONS[self.operator.type](Arguments(self.operator, inputs, ("Out",)))


def operator_layer(operator: Operator) -> QuantizableFunction:
    """Return a new layer that runs ``operator`` on the tensors of its slots."""
    slots = tuple(operator.inputs)
    return QuantizableFunction(ProgramOperator(operator, slots), len(slots))


def call_operator_layer(layer: QuantizableFunction, operator: Operator,
                        values: Dict[str, Any]) -> Any:
    """Return the output of the layer of ``operator`` for the variables of a run."""
    arguments: List[Any] = []
    for names in operator.inputs.values():
        tensors = [values[name] for name in names]
        arguments.append(tensors if len(tensors) > 1 else tensors[0])
    return layer(*arguments)
