"""Run the operators of a saved model in dynamic mode."""

from typing import Any, Dict, FrozenSet, List, Optional, Set, Tuple

import numpy as np
import paddle

from ..errors import ModelError, PaddleqError
from ..export.program.validate import CONTRADICTIONS
from .control_flow import CONTROL_FLOW
from .functions import FUNCTIONS
from .operator_layers import call_operator_layer
from .operators import Arguments, Operator
from .program_layers import ProgramLayers
from .without_gradient import run_without_gradient

INTERFACE = ("feed", "fetch")


class OperatorRun(ProgramLayers):
    """Layers of a program, and the operators between them.

    Operators and variables are lists with one entry for each block of the program.
    """

    operator_layers: Dict[Tuple[int, int], str]
    _operators: List[List[Operator]]
    _local: List[List[str]]  # variables of each block that are not persistable
    _merged: Set[Tuple[int, int]]  # places of operators that the layer of another one computes
    _last_uses: List[List[str]]  # of each operator of the main block
    _recorded: Optional[Tuple[FrozenSet[str], Dict[str, Any]]] = None  # of SavedModel.recording()

    def _results(self, op):
        return op.all_outputs() if op.layer is None else [self.bindings[op.layer].target]

    def _run_block(self, index, values):
        if index:  # variables of a block do not survive from one run to the next
            for name in self._local[index]:
                values.pop(name, None)
        self._run_range(index, 0, len(self._operators[index]), values)

    def _run_range(self, index, start, stop, values):
        """Run the operators of a block from ``start`` up to ``stop``."""
        for position in range(start, stop):
            op = self._operators[index][position]
            if op.type in INTERFACE or (index, position) in self._merged:
                continue
            try:
                self._run_operator(op, values)
            except PaddleqError:
                raise
            except (*CONTRADICTIONS, RuntimeError, OSError) as error:
                raise ModelError(f"Paddle {paddle.__version__} cannot run the operator {op.type}, "
                                 f"number {position} of block {index} of the saved model: "
                                 f"{type(error).__name__}: {error}") from error
            if index == 0:
                self._record(self._results(op), values)
                for name in self._last_uses[position]:
                    values.pop(name, None)

    def _record(self, names, values):
        if self._recorded is not None:
            wanted, found = self._recorded
            found.update((name, values[name]) for name in names if name in wanted)

    def _run_operator(self, op, values):
        if op.layer is not None:
            self._run_layer(op, values)
        elif op.place in self.operator_layers:
            values[op.output("Out")] = call_operator_layer(
                getattr(self, self.operator_layers[op.place]), op, values)
        elif op.type in CONTROL_FLOW:
            CONTROL_FLOW[op.type](self._run_block, op, values)
        else:
            self._run_function(op, values)

    def _run_layer(self, op, values):
        binding, layer = self.bindings[op.layer], getattr(self, op.layer)
        x = values[op.input(binding.source)]
        if binding.flattened is not None:
            rows = x.shape[:binding.flattened]
            x = x.reshape([*rows, int(np.prod(x.shape[binding.flattened:]))])
        if op.type != "rnn":
            values[binding.target] = layer(x)
            return
        states = [values[name] for name in op.inputs["PreState"]]
        length = op.input("SequenceLength")
        length = None if length is None else values[length]
        values[binding.target], found = layer(x, states[0] if len(states) == 1 else tuple(states),
                                              length)
        values.update(zip(op.outputs.get("State", ()),
                          found if isinstance(found, (list, tuple)) else [found]))

    def _run_function(self, op, values):
        arguments = Arguments(
            op, {slot: [values[name] for name in names] for slot, names in op.inputs.items()},
            tuple(slot for slot, names in op.outputs.items()
                  if not self._read_names.isdisjoint(names)))
        found = FUNCTIONS[op.type](arguments) if op.type in FUNCTIONS else NotImplemented
        if found is NotImplemented:
            found = run_without_gradient(arguments)
        elif not isinstance(found, dict):
            slot = next(slot for slot in ("Out", "Y", "Output", "Result") if slot in op.outputs)
            found = {slot: found}
        for slot, names in op.outputs.items():
            value = found.get(slot)
            if value is not None:
                values.update(zip(names, value if isinstance(value, (list, tuple)) else [value]))


class Values(dict):
    """Variables of one run, name -> tensor; names without a value are parameters of the model."""

    def __init__(self, model, given):
        super().__init__(given)
        self._model = model

    def __missing__(self, name):
        return self._model._parameter(name)


def last_uses(blocks, kept):
    """For each operator of the main block, the variables that nothing after it reads."""
    def names_in(op):
        inner = blocks[op.attributes["sub_block"]] if "sub_block" in op.attributes else ()
        return {*op.all_inputs(), *op.all_outputs()}.union(*map(names_in, inner))

    last = {name: position for position, op in enumerate(blocks[0]) for name in names_in(op)}
    released = [[] for _ in blocks[0]]
    for name in last.keys() - kept:
        released[last[name]].append(name)
    return released
