"""``if`` and ``while``.

In PIR a block yields values. In the legacy format it assigns to variables of the enclosing block.
"""

from ....errors import FormatError
from ...program.op_desc import set_block
from ..attributes import op


def write_if(converter, operation):
    """Convert ``if`` to two ``conditional_block`` and a ``select_input`` for each value."""
    (condition,), label = operation.operands, f"if_{converter.next()}"
    condition = converter.name_of(condition)
    if len(operation.blocks) != 2:
        raise FormatError(f"has {len(operation.blocks)} blocks instead of two")
    scope = converter.scope
    opposite = converter.builder.variable(scope.desc, f"{label}.not", [], "bool")
    mask = converter.builder.variable(scope.desc, f"{label}.mask", [], "int32")
    branches = []
    for name, block in zip(("true", "false"), operation.blocks):
        targets = [converter.builder.variable(scope.desc, f"{label}.{name}.{i}",
                                           value.shape or [], value.dtype)
                   for i, value in enumerate(operation.results)]
        if name == "false":
            converter.write(op("logical_not", {"X": [condition]}, {"Out": [opposite]}, []))
        _conditional(converter, condition if name == "true" else opposite, block, targets,
                     f"{label}.{name}")
        branches.append(targets)
    converter.cast(condition, "bool", mask, "int32")
    for value, when_true, when_false in zip(operation.results, *branches):
        target = converter.define(value, f"{label}.tmp")
        converter.write(op("select_input", {"X": [when_false, when_true], "Mask": [mask]},
                           {"Out": [target]}, []))


def _conditional(converter, condition, block, targets, label):
    written, outside = _block(converter, block, targets)
    scopes = converter.builder.fresh(f"{label}.scopes")
    converter.program.add_variable(converter.scope.desc, scopes, None, None, kind="scopes")
    conditional = op("conditional_block", {"Cond": [condition], "Input": outside},
                     {"Out": targets, "Scope": [scopes]}, [("is_scalar_condition", "bool", True)])
    set_block(conditional, "sub_block", written.idx)
    converter.write(conditional)


def _block(converter, block, targets, first=0):
    """Convert a block whose yielded values are assigned to ``targets``.

    Returns:
        Tuple (block, names of the outer variables that it reads).
    """
    outer = converter.scope
    converter.scope = scope = converter.open_block()
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
        converter.write(op("assign", {"X": [name]}, {"Out": [target]}, []))
    converter.scope = outer
    scope.finish()
    own = {var.name for var in scope.desc.vars}
    read = [name for each in scope.desc.ops for slot in each.inputs for name in slot.arguments]
    return scope.desc, sorted(set(read) - own - set(targets))


def _copied(converter, number, name):
    source = converter.types[number]
    copy = converter.temporary("yielded", source.dtype, source.shape or [])
    converter.write(op("assign", {"X": [name]}, {"Out": [copy]}, []))
    return copy


def write_while(converter, operation):
    """Convert ``while``; its variables are assigned at the end of its block."""
    condition, *initial = operation.operands
    label = f"while_{converter.next()}"
    (block,) = operation.blocks
    if not len(initial) == len(block.arguments) == len(operation.results):
        raise FormatError("has another number of variables than its block")
    scope, variables = converter.scope, []
    going = converter.builder.variable(scope.desc, f"{label}.condition",
                                    converter.types[condition].shape or [], "bool")
    converter.write(op("assign", {"X": [converter.name_of(condition)]}, {"Out": [going]}, []))
    for i, (number, argument, value) in enumerate(
            zip(initial, block.arguments, operation.results)):
        source = converter.types[number]
        if source.array:  # always written in place
            name = converter.name_of(number)
        else:
            name = converter.define(value, f"{label}.{i}")
            converter.write(op("assign", {"X": [converter.name_of(number)]}, {"Out": [name]}, []))
        converter.bind(value, name)
        converter.bind(argument, name)
        variables.append(name)
    # The next iteration reads the same values again.
    again = [number for each in block.all_operations() for number in each.operands]
    converter.expect(again, 1)
    written, outside = _block(converter, block, [going, *variables])
    converter.expect(again, -1)
    scopes = converter.builder.fresh(f"{label}.scopes")
    converter.program.add_variable(scope.desc, scopes, None, None, kind="scopes")
    loop = op("while", {"Condition": [going], "X": sorted({*outside, *variables})},
              {"Out": [*variables, going], "StepScopes": [scopes]}, [("is_test", "bool", True)])
    set_block(loop, "sub_block", written.idx)
    converter.write(loop)
