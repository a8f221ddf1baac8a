"""Converter of a PIR program to a ProgramDesc, operation by operation."""

from ...errors import ExportError, FormatError
from ..program.validate import CONTRADICTIONS
from .attributes import get
from .convert_row import write_by_row
from .operator_table import ROWS
from .special_operators import SPECIALS
from .values import Values


class Converter(Values):
    def run(self, block):
        """Convert the main block and return the :class:`~..program.program.Program`."""
        self.uses.update(number for operation in block.all_operations()
                         for number in operation.operands)
        self.changing = _overwritten_inside(block)
        self.wanted = _reserve_fetches(block, self.builder)
        self.block(block)
        self.scope.finish()
        for name, version in sorted(self.versions.items()):
            pair = self.program.desc.op_version_map.pair.add()
            pair.op_name, pair.op_version.version = name, version
        return self.program

    def block(self, block):
        """Convert the operations of a block into the current scope."""
        for operation in block.operations:
            try:
                self.operation(operation)
            except ExportError:
                raise
            except CONTRADICTIONS as error:
                raise damaged(operation.place, error) from error

    def operation(self, operation):
        for number in operation.operands:
            self.uses[number] -= 1
        name = operation.name
        in_place = (name.endswith("_") and name not in ROWS and name not in SPECIALS
                    and bool(operation.operands))
        if in_place:
            name = name[:-1]
        if name in SPECIALS:
            if in_place and self.read_later(operation.operands[0]):
                raise operation.unsupported("changes a value that is read later")
            SPECIALS[name](self, operation)
        elif name in ROWS:
            write_by_row(self, operation, ROWS[name], in_place)
        else:
            raise operation.unsupported("is not in paddleq's operator table")


def damaged(place, error):
    """FormatError for an error that an inconsistent program causes."""
    reason = error if isinstance(error, FormatError) else (
        f"the program contradicts itself: {type(error).__name__}: {error}")
    return FormatError(f"{place}: {reason}")


def _overwritten_inside(block):
    """Return the values that inner blocks of ``block`` overwrite."""
    return {number for outer in block.operations for inner in outer.blocks
            for operation in inner.all_operations() if operation.name.endswith("_")
            for number in _overwritten(operation)}


def _overwritten(operation):
    row = ROWS.get(operation.name)
    if row is None:
        return operation.operands[:1]
    aliases = {slot.alias for slot in row.outputs}
    return [number for number, slot in zip(operation.operands, row.inputs) if slot.pir in aliases]


def _reserve_fetches(block, builder):
    """Reserve the names of outputs for the fetched values, value -> name."""
    wanted, names = {}, set()
    fed = {value.number: get(operation, "name", str) for operation in block.operations
           if operation.name == "data" for value in operation.results}
    for operation in block.operations:
        if operation.name != "fetch":
            continue
        name = get(operation, "name", str)
        if operation.operands and fed.get(operation.operands[0]) == name:
            continue  # Paddle keeps the name of an input that is fetched directly
        if name in names:
            raise FormatError(f"two outputs have the name {name!r}")
        names.add(name)
        number = operation.operands[0] if operation.operands else 0
        if number not in wanted and name not in builder.names:
            builder.fresh(name)
            wanted[number] = name
    return wanted
