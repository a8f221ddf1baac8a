"""What has to be known of a whole program before its first operation is written."""

from ...errors import FormatError
from . import attributes


def count_uses(block):
    """value -> how many operands name it, in a block and in those inside of it."""
    uses = {}
    for operation in each_operation(block):
        for number in operation.operands:
            uses[number] = uses.get(number, 0) + 1
    return uses


def overwritten_inside(block, rows):
    """Values that a block inside of ``block`` overwrites."""
    return {number for outer in block.operations for inner in outer.blocks
            for operation in each_operation(inner) if operation.name.endswith("_")
            for number in _overwritten(operation, rows.get(operation.name))}


def each_operation(block):
    """The operations of a block, each followed by those of the blocks inside of it."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from each_operation(inner)


def _overwritten(operation, row):
    aliases = {slot.alias for slot in row.outputs if slot.alias} if row else None
    return [number for i, number in enumerate(operation.operands)
            if (i == 0 if aliases is None else row.inputs[i].pir in aliases)]


def reserve_fetches(block, emit):
    """Let what is fetched have the name of its fetch: value -> name, kept in ``emit``."""
    wanted, names = {}, set()
    fed = {value.number: attributes.text(operation, "name") for operation in block.operations
           if operation.name == "data" for value in operation.results}
    for operation in block.operations:
        if operation.name != "fetch":
            continue
        name = attributes.text(operation, "name")
        if operation.operands and fed.get(operation.operands[0]) == name:
            continue  # Paddle lets an input that is fetched directly keep its name
        if name in names:
            raise FormatError(f"two outputs have the name {name!r}")
        names.add(name)
        number = operation.operands[0] if operation.operands else 0
        if number not in wanted and not emit.taken(name):
            emit.fresh(name)
            wanted[number] = name
    return wanted
