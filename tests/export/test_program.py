"""Editing a ProgramDesc: cost of the edits and the use-def view."""

import sys

import numpy as np
import pytest

from paddleq.export.program.graph_view import GraphView
from paddleq.export.program.op_builder import OpBuilder
from paddleq.export.program.op_desc import attribute, inputs, make_op, rename_inputs, shape_of
from paddleq.export.program.passes.runtime_workarounds import apply_runtime_workarounds
from paddleq.export.program.program import Program


def program_of(count):
    """A program of ``count`` chained additions, each with a parameter."""
    program = Program.empty()
    block = program.desc.blocks[0]
    for i in range(count):
        program.add_parameter(f"w{i}", np.float32([i]))
        program.add_variable(block, f"x{i}", "float32", [-1, 1])
        block.ops.append(make_op("elementwise_add", {"X": f"x{i - 1}" if i else "w0",
                                                     "Y": f"w{i}"}, {"Out": f"x{i}"}))
    return program


def set_all(program, count):
    for i in range(count):
        program.set_parameter(f"w{i}", np.int8([[i % 100]]))


def variables_like_all(program, count):
    builder, block = OpBuilder(program), program.desc.blocks[0]
    for i in range(count):
        builder.variable_like(block, f"x{i}", "copy")


def parameters_of_one_name(program, count):
    builder = OpBuilder(program)
    for i in range(count):
        builder.parameter("same", np.float32([i]))


def executed(function, *args):
    """Count the bytecode instructions that a call executes."""
    counted = 0

    def trace(frame, event, arg):
        nonlocal counted
        frame.f_trace_opcodes = True
        counted += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return counted


@pytest.mark.parametrize("edit", [set_all, variables_like_all, parameters_of_one_name])
def test_cost_of_an_edit_does_not_grow_with_the_program(edit):
    few, many = (executed(edit, program_of(count), count) for count in (50, 400))
    assert many < 10 * few  # linear: 8 times; quadratic: up to 64 times


class CountingName(str):
    """String that counts its comparisons."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountingName.compared += 1
        return str.__eq__(self, other)


def test_cost_of_removing_unused_parameters_is_linear():
    compared = {}
    for count in (50, 400):
        program = program_of(count)
        del program.desc.blocks[0].ops[:]
        program.arrays = {CountingName(name): array for name, array in program.arrays.items()}
        CountingName.compared = 0
        program.remove_unused_parameters()
        compared[count] = CountingName.compared
        assert not program.arrays and len(program.desc.blocks[0].vars) == count + 2
    assert compared[400] < 10 * max(compared[50], 50)


def test_variables_are_found_after_any_edit():
    program = program_of(3)
    main, inner = program.desc.blocks[0], program.add_block(program.desc.blocks[0])
    program.add_variable(inner, "y", "float32", [2, 3])
    assert shape_of(program.variable("y", inner)) == [2, 3]
    assert shape_of(program.variable("x1", inner)) == [-1, 1]  # of the enclosing block
    with pytest.raises(KeyError):
        program.variable("y")
    main.ops.pop()
    program.remove_unused_parameters()
    assert set(program.variables()) == {"feed", "fetch", "w0", "w1", "x0", "x1", "x2"}
    assert set(program.arrays) == {"w0", "w1"}
    program.set_parameter("w1", np.zeros([4, 5], "int8"))
    assert [shape_of(var) for var in main.vars if var.name == "w1"] == [[4, 5]]


def test_graph_view():
    program = program_of(3)
    ops = list(program.desc.blocks[0].ops)
    view = GraphView.of_program(program)
    assert view.producers["x1"] is not None and "w1" not in view.producers
    assert view.producers["x1"] == ops[1] and view.sole_consumer("x1") == ops[2]
    assert view.consumers["w0"] == [ops[0], ops[0]] and view.sole_consumer("w0") is None
    assert view.sole_consumer("x2") is None
    rename_inputs(ops, {"w0": "w9"})
    assert GraphView(ops).consumers["w9"] == [ops[0], ops[0]]


@pytest.mark.parametrize("shape, fused", [([1, 8, 1, 1], True), ([8], False), ([1, 8, 1], False)])
def test_only_a_bias_along_the_channels_is_added_as_a_vector(shape, fused):
    """A vector along the height or the width of an image as high as its channels are many."""
    program = Program.empty()
    block = program.desc.blocks[0]
    program.add_parameter("w", np.zeros([8, 8, 1, 1], np.float32))
    program.add_parameter("b", np.zeros([8], np.float32))
    for name, dims in (("x", [-1, 8, 8, 8]), ("c", [-1, 8, 8, 8]), ("r", shape),
                       ("y", [-1, 8, 8, 8])):
        program.add_variable(block, name, "float32", dims)
    block.ops.extend([
        make_op("conv2d", {"Input": "x", "Filter": "w"}, {"Output": "c"}, data_format="NCHW"),
        make_op("reshape2", {"X": "b"}, {"Out": "r"}, shape=shape),
        make_op("elementwise_add", {"X": "c", "Y": "r"}, {"Out": "y"}, axis=-1),
    ])
    apply_runtime_workarounds(program)
    add = block.ops[-1]
    assert (inputs(add, "Y"), attribute(add, "axis")) == ((["b"], 1) if fused else (["r"], -1))
