"""Operators that are written without paddle2onnx.

Each is cut out of the program before the conversion: its outputs become inputs of the program, and
its inputs become outputs. Its ONNX form is inserted into the converted graph in its place.
"""

from typing import Any, Callable, Container, Dict, List, NamedTuple, Optional

import numpy as np

from ...errors import ExportError
from ..program.graph_view import GraphView, Names
from ..program.inference import feed_names, fetch_names, set_feeds_and_fetches
from ..program.op_builder import OpBuilder
from ..program.op_desc import (
    all_inputs,
    all_outputs,
    attribute,
    dtype_of,
    inputs,
    make_op,
    outputs,
    shape_of,
)
from .graph import captured, make_node

FORMS: Dict[str, Callable] = {}
"""Type of an operator of Paddle -> function (:class:`PaddleOperator`) that returns a function that
writes its form with an :class:`OnnxBuilder`, or None if paddle2onnx converts the operator right."""


def exact_form(*types: str) -> Callable:
    """Function decorator that registers the form of operators of Paddle."""
    def register(form):
        for each in types:
            FORMS[each] = form
        return form

    return register


class PaddleOperator:
    """Operator of a block of a program (default: the main one), with access to its variables."""

    def __init__(self, program: Any, op: Any, read: Container[Optional[str]] = (),
                 block: Any = None):
        self.program, self.op, self.type, self._read = program, op, op.type, read
        self._block = block

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute."""
        return attribute(self.op, name, default)

    def input(self, slot: str) -> Optional[str]:
        """Name of the first variable of an input slot, None if the slot is empty."""
        return next(iter(inputs(self.op, slot)), None)

    def inputs(self, slot: str) -> List[str]:
        """Names of the variables of an input slot."""
        return inputs(self.op, slot)

    def output(self, slot: str = "Out") -> Optional[str]:
        """Name of the first variable of an output slot, None if the slot is empty."""
        return next(iter(outputs(self.op, slot)), None)

    def outputs(self, slot: str) -> List[str]:
        """Names of the variables of an output slot."""
        return outputs(self.op, slot)

    def used(self, name: Optional[str]) -> bool:
        """Return True if another operator reads an output of the operator."""
        return name in self._read

    def shape(self, name: str) -> List[int]:
        """Dimensions of a variable, -1 for dynamic ones."""
        return shape_of(self.program.variable(name, self._block))

    def dtype(self, name: str) -> str:
        """Name of the data type of a variable."""
        return dtype_of(self.program.variable(name, self._block))

    def value(self, name: str) -> Optional[np.ndarray]:
        """Value of a parameter, None for another variable."""
        return self.program.arrays.get(name)


class OnnxBuilder:
    """Adds the nodes and constants of a form to a graph."""

    def __init__(self, names: Names, opset: int):
        self.names, self.opset = names, opset
        self.nodes: List[Any] = []
        self.constants: Dict[str, np.ndarray] = {}

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant and return its name."""
        name = self.names.fresh("form.constant")
        self.constants[name] = np.asarray(value, dtype)
        return name

    def node(self, kind: str, *ins: Any, output: Optional[str] = None, **attributes: Any) -> str:
        """Add a node and return its output.

        Inputs are names, None for an absent one, or values of constants.
        """
        names = ["" if each is None else each if isinstance(each, str) else self.constant(each)
                 for each in ins]
        output = output or self.names.fresh(f"form.{kind}")
        self.nodes.append(make_node(kind, names, output, **attributes))
        return output

    def reduce(self, kind: str, x: str, axis: int) -> str:
        """Add a reduction of one axis, which later opsets take as an input."""
        if self.opset < 18:
            return self.node(kind, x, axes=[axis], keepdims=0)
        return self.node(kind, x, np.array([axis]), keepdims=0)

    def several(self, kind: str, *ins: Any, outputs: List[str], **attributes: Any) -> None:
        """Add a node with several outputs, "" for those that are not needed."""
        self.node(kind, *ins, output=next(filter(None, outputs)), **attributes)
        self.nodes[-1].output[:] = outputs

    def require_opset(self, opset: int, operator: str) -> None:
        """Raise ExportError if the model has a lower opset."""
        if self.opset < opset:
            raise ExportError(f"the operator {operator} needs opset {opset}, but the model has "
                              f"opset {self.opset}; leave opset out, or give {opset}")


class Cut(NamedTuple):
    """Operators that were cut out of a program."""

    feeds: List[Any]  # inputs of the program before: name, data type, dimensions
    outputs: int  # their number before
    renamed: Dict[str, str]  # name of an output in the converted program -> before
    found: List[Any]  # pairs (operator, writer)


def cut(program: Any) -> Optional[Cut]:
    """Cut operators and unused inputs out of the main block in place; None if there are none.

    paddle2onnx 2.x refuses inputs that no operator reads.
    """
    block, found, kept = program.desc.blocks[0], [], []
    view = GraphView.of_program(program)
    for op in block.ops:
        form = None if view.rewritten.intersection(all_outputs(op)) else FORMS.get(op.type)
        # A copy: the operators of the block are replaced below.
        operator = form and PaddleOperator(program, type(op).FromString(op.SerializeToString()),
                                           view.consumers)
        writer = form and form(operator)
        if writer is not None:
            found.append((operator, writer))
        elif op.type not in ("feed", "fetch"):
            kept.append(op)
    feeds, fetches, builder = feed_names(program), fetch_names(program), OpBuilder(program)
    used = {name for op in kept for name in all_inputs(op)}.union(fetches)
    if not found and used.issuperset(feeds):
        return None
    made = [name for operator, _ in found for name in all_outputs(operator.op)]
    read = dict.fromkeys(name for operator, _ in found for name in all_inputs(operator.op))
    wanted = [name for name in read if name not in {*made, *feeds, *fetches, *program.arrays}]
    ends = []
    for name in fetches:  # an output that is an input has no node in ONNX
        if name in made:
            ends.append(builder.variable_like(block, name, f"{name}.cut",
                                              dtype_of(program.variable(name))))
            kept.append(make_op("assign", {"X": name}, {"Out": ends[-1]}))
        else:
            ends.append(name)
    set_feeds_and_fetches(program, kept, [name for name in [*feeds, *made] if name in used],
                          [*ends, *wanted])
    return Cut([(name, dtype_of(program.variable(name)), shape_of(program.variable(name)))
                for name in feeds], len(fetches),
               {end: name for end, name in zip(ends, fetches) if end != name}, found)


def splice(model: Any, operators: Optional[Cut]) -> None:
    """Insert the forms of operators that were cut out into ``model``, in place."""
    if operators is None:
        return
    from onnx import numpy_helper

    graph = model.graph
    kept = {each.name: each for each in graph.input}
    _keep(graph.input, [kept[name] if name in kept else _input(name, dtype, shape)
                        for name, dtype, shape in operators.feeds])
    _keep(graph.output, list(graph.output)[:operators.outputs])
    known = {each.name for each in graph.initializer}
    known.update(name for node in graph.node for name in node.output)
    names = Names(known.union(*(node.input for node in graph.node),
                              *(all_inputs(each.op) + all_outputs(each.op)
                                for each, _ in operators.found)))
    nodes, constants = list(graph.node), {}
    for operator, writer in operators.found:
        builder = OnnxBuilder(names, model.opset_import[0].version)
        writer(builder)
        nodes += builder.nodes
        constants.update(builder.constants)
        read = {name for node in builder.nodes for name in node.input}
        constants.update((name, operator.value(name)) for name in read - known
                         if operator.value(name) is not None)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value, order="C"), name)
                             for name, value in constants.items())
    _rename_outputs(graph, nodes, operators.renamed, names)
    _keep(graph.node, sorted_nodes(nodes))


def _input(name, dtype, shape):
    from onnx import helper

    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
        [f"{name}.{i}" if size < 0 else size for i, size in enumerate(shape)])


def _keep(field, messages):
    kept = [type(each).FromString(each.SerializeToString()) for each in messages]
    del field[:]
    field.extend(kept)


def _rename_outputs(graph, nodes, renamed, names):
    """Give the outputs ``renamed`` their names, and the tensors with these names others."""
    inner = {name: names.fresh(f"{name}.inner") for name in renamed.values()}
    both = {**inner, **renamed}
    for node in nodes:
        for field in (node.input, node.output):
            field[:] = [both.get(name, name) for name in field]
    for value in graph.output:
        value.name = renamed.get(value.name, value.name)


def sorted_nodes(nodes: List[Any]) -> List[Any]:
    """Return nodes in topological order."""
    producers = {name: node for node in nodes for name in node.output if name}
    done, result = set(), []
    for root in nodes:
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [] if id(node) in done else [
                producers[name] for name in [*node.input, *captured(node)]
                if name in producers and id(producers[name]) not in done]
            if waiting:
                stack += waiting
                if len(stack) > 2 * len(nodes) + 2:
                    raise ExportError("the ONNX form of the model has a cycle")
                continue
            stack.pop()
            if id(node) not in done:
                done.add(id(node))
                result.append(node)
    return result
