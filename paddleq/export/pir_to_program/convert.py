"""Converter of a PIR program to a ProgramDesc, operation by operation."""

from ...errors import ExportError, FormatError
from ..program.program import Program
from . import attributes
from .convert_row import write_by_row
from .shape_values import ShapeValues

# Errors that an inconsistent program causes.
CONTRADICTIONS = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


class Converter(ShapeValues):
    """Converter of one program.

    The base classes write operators to blocks (:class:`~.writer.Writer`), map PIR values to
    variables (:class:`~.values.Values`) and resolve shapes, axes and bounds
    (:class:`~.shape_values.ShapeValues`).
    """

    def __init__(self, parameters, rows, specials):
        super().__init__(parameters)
        self.rows, self.specials = rows, specials

    def run(self, pir):
        """Convert the program ``pir``."""
        self.uses = _count_uses(pir.block)
        self.changing = _overwritten_inside(pir.block, self.rows)
        self.wanted = _reserve_fetches(pir.block, self.builder)
        self.block(pir.block)
        return self.finish()

    def block(self, block):
        """Convert the operations of a block into the current scope."""
        for operation in block.operations:
            try:
                self.operation(operation)
            except ExportError:
                raise
            except CONTRADICTIONS as error:
                reason = error if isinstance(error, FormatError) else (
                    f"the program contradicts itself: {type(error).__name__}: {error}")
                raise FormatError(f"{operation.place}: {reason}") from error

    def operation(self, operation):
        for number in operation.operands:
            self.uses[number] -= 1
        name = operation.name
        in_place = (name.endswith("_") and name not in self.rows and name not in self.specials
                    and bool(operation.operands))
        if in_place:
            name = name[:-1]
        if name in self.specials:
            if in_place and self.read_later(operation.operands[0]):
                raise operation.unsupported("changes a value that is read later")
            self.specials[name](self, operation)
        elif name in self.rows:
            write_by_row(self, operation, self.rows[name], in_place)
        else:
            raise operation.unsupported("is not in paddleq's operator table")


def convert(pir, parameters, rows, specials) -> Program:
    """Convert a PIR program to a :class:`~paddleq.export.program.program.Program`.

    Args:
        pir: a :class:`~.pir_graph.PirProgram`.
        parameters: name -> (array, dtype name).
        rows: the operator table, PIR name -> :class:`~.row_syntax.Row`.
        specials: PIR name -> function (converter, operation) that converts it.

    Raises:
        FormatError: the PIR program is inconsistent.
        UnsupportedOperatorError: an operation has no legacy counterpart.
    """
    return Converter(parameters, rows, specials).run(pir)


def _count_uses(block):
    """Count the operands that refer to each value, in a block and its inner blocks."""
    uses = {}
    for operation in block.all_operations():
        for number in operation.operands:
            uses[number] = uses.get(number, 0) + 1
    return uses


def _overwritten_inside(block, rows):
    """Return the values that inner blocks of ``block`` overwrite."""
    return {number for outer in block.operations for inner in outer.blocks
            for operation in inner.all_operations() if operation.name.endswith("_")
            for number in _overwritten(operation, rows.get(operation.name))}


def _overwritten(operation, row):
    aliases = {slot.alias for slot in row.outputs if slot.alias} if row else None
    return [number for i, number in enumerate(operation.operands)
            if (i == 0 if aliases is None else row.inputs[i].pir in aliases)]


def _reserve_fetches(block, builder):
    """Reserve the names of outputs for the fetched values, value -> name."""
    wanted, names = {}, set()
    fed = {value.number: attributes.text(operation, "name") for operation in block.operations
           if operation.name == "data" for value in operation.results}
    for operation in block.operations:
        if operation.name != "fetch":
            continue
        name = attributes.text(operation, "name")
        if operation.operands and fed.get(operation.operands[0]) == name:
            continue  # Paddle keeps the name of an input that is fetched directly
        if name in names:
            raise FormatError(f"two outputs have the name {name!r}")
        names.add(name)
        number = operation.operands[0] if operation.operands else 0
        if number not in wanted and not builder.taken(name):
            builder.fresh(name)
            wanted[number] = name
    return wanted
