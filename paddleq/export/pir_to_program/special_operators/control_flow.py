"""``if`` and ``while``.

In PIR a block yields values. In the legacy format it assigns to variables of the enclosing block.
"""

from ....errors import FormatError
from ...program.op_desc import all_inputs, set_attribute
from ..values import Scope


def write_if(converter, operation):
    """Convert ``if`` to two ``conditional_block`` and a ``select_input`` for each value."""
    (condition,), label = operation.operands, f"if_{converter.next()}"
    condition = converter.name_of(condition)
    if len(operation.blocks) != 2:
        raise FormatError(f"has {len(operation.blocks)} blocks instead of two")
    scope, variable = converter.scope, converter.builder.variable
    opposite = variable(scope.desc, f"{label}.not", [], "bool")
    mask = variable(scope.desc, f"{label}.mask", [], "int32")
    branches = []
    for name, block in zip(("true", "false"), operation.blocks):
        targets = [variable(scope.desc, f"{label}.{name}.{i}", value.shape or [], value.dtype)
                   for i, value in enumerate(operation.results)]
        if name == "false":
            converter.write("logical_not", {"X": condition}, {"Out": opposite})
        inner, outside = _block(converter, block, targets)
        _write(converter, "conditional_block",
               {"Cond": condition if name == "true" else opposite, "Input": outside},
               {"Out": targets, "Scope": f"{label}.{name}.scopes"}, inner,
               is_scalar_condition=True)
        branches.append(targets)
    converter.cast(condition, "bool", mask, "int32")
    for value, when_true, when_false in zip(operation.results, *branches):
        converter.write("select_input", {"X": [when_false, when_true], "Mask": mask},
                        {"Out": converter.define(value, f"{label}.tmp")})


def _write(converter, kind, ins, outs, inner, **values):
    """Write an operator with the block ``inner``. Its last output is a new variable for scopes."""
    slot, name = outs.popitem()
    scopes = converter.program.add_variable(converter.scope.desc, converter.builder.fresh(name),
                                            None, None, kind="scopes")
    converter.write(kind, ins, {**outs, slot: scopes}, **values)
    set_attribute(converter.scope.ops[-1], "sub_block", inner.idx, "block")


def _block(converter, block, targets):
    """Convert a block that assigns its values to ``targets``; return it and outer inputs."""
    outer = converter.scope
    converter.scope = scope = Scope(converter.program.add_block(outer.desc))
    if not block.operations or block.operations[-1].name != "cf.yield":
        raise FormatError("has a block that yields nothing")
    *operations, last = block.operations
    for operation in operations:
        converter.operation(operation)
    if len(last.operands) != len(targets):
        raise FormatError(f"has a block that yields {len(last.operands)} values instead of "
                          f"{len(targets)}")
    sources = []
    for number in last.operands:
        converter.uses[number] -= 1
        sources.append(converter.name_of(number))
    if set(sources) & set(targets):
        # An assignment may overwrite the source of a later one.
        sources = [_copied(converter, number, name) if name in targets else name
                   for number, name in zip(last.operands, sources)]
    for name, target in zip(sources, targets):
        converter.write("assign", {"X": name}, {"Out": target})
    converter.scope = outer
    scope.finish()
    read = {name for each in scope.desc.ops for name in all_inputs(each)}
    return scope.desc, sorted(read.difference(targets, (var.name for var in scope.desc.vars)))


def _copied(converter, number, name):
    source = converter.types[number]
    copy = converter.temporary("yielded", source.dtype, source.shape)
    converter.write("assign", {"X": name}, {"Out": copy})
    return copy


def write_while(converter, operation):
    """Convert ``while``; its variables are assigned at the end of its block."""
    condition, *initial = operation.operands
    label = f"while_{converter.next()}"
    (block,) = operation.blocks
    if not len(initial) == len(block.arguments) == len(operation.results):
        raise FormatError("has another number of variables than its block")
    variables = []
    going = converter.builder.variable(converter.scope.desc, f"{label}.condition",
                                       converter.types[condition].shape or [], "bool")
    converter.write("assign", {"X": converter.name_of(condition)}, {"Out": going})
    for i, (number, argument, value) in enumerate(
            zip(initial, block.arguments, operation.results)):
        if converter.types[number].array:  # always written in place
            name = converter.name_of(number)
        else:
            name = converter.define(value, f"{label}.{i}")
            converter.write("assign", {"X": converter.name_of(number)}, {"Out": name})
        converter.bind(value, name)
        converter.bind(argument, name)
        variables.append(name)
    # The next iteration reads the same values again.
    again = [number for each in block.all_operations() for number in each.operands]
    converter.uses.update(again)
    inner, outside = _block(converter, block, [going, *variables])
    converter.uses.subtract(again)
    _write(converter, "while", {"Condition": going, "X": sorted({*outside, *variables})},
           {"Out": [*variables, going], "StepScopes": f"{label}.scopes"}, inner, is_test=True)
