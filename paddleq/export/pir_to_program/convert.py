"""From a PIR program to a ProgramDesc, operation by operation."""

from ...errors import ExportError, FormatError
from ..program.program import Program
from .convert_row import write_by_row
from .prepass import count_uses, overwritten_inside, reserve_fetches
from .shape_values import Numbers
from .unsupported import unsupported

# What a program that contradicts itself runs into.
CONTRADICTIONS = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


class Converter(Numbers):
    """Writes one program.

    What it puts into blocks is in :class:`~.writer.Writer`, what became of each value in
    :class:`~.values.Values`, and what is known of those that are numbers in
    :class:`~.shape_values.Numbers`.
    """

    def __init__(self, parameters, rows, specials):
        super().__init__(parameters)
        self.rows, self.specials = rows, specials

    def run(self, pir):
        """Write the program of ``pir``."""
        self.uses = count_uses(pir.block)
        self.changing = overwritten_inside(pir.block, self.rows)
        self.wanted = reserve_fetches(pir.block, self.emit)
        self.block(pir.block)
        return self.finish()

    def block(self, block):
        """Write the operations of a block into the scope that is open."""
        for operation in block.operations:
            try:
                self.operation(operation)
            except ExportError:
                raise
            except CONTRADICTIONS as error:
                said = error if isinstance(error, FormatError) else (
                    f"the program contradicts itself: {type(error).__name__}: {error}")
                raise FormatError(f"{operation.place}: {said}") from error

    def operation(self, operation):
        """Write one operation."""
        for number in operation.operands:
            self.uses[number] -= 1
        name = operation.name
        in_place = (name.endswith("_") and name not in self.rows and name not in self.specials
                    and bool(operation.operands))
        if in_place:
            name = name[:-1]
        if name in self.specials:
            if in_place and self.read_later(operation.operands[0]):
                raise unsupported(operation, "changes a value that is read later")
            self.specials[name](self, operation)
        elif name in self.rows:
            write_by_row(self, operation, self.rows[name], in_place)
        else:
            raise unsupported(operation, "is not in paddleq's operator table")


def convert(pir, parameters, rows, specials) -> Program:
    """The :class:`~paddleq.export.program.program.Program` that computes what ``pir`` does.

    Args:
        pir: a :class:`~.pir_graph.PirProgram`.
        parameters: name -> (array, dtype name).
        rows: the operator table, PIR name -> :class:`~.row_syntax.Row`.
        specials: PIR name -> function that writes it.

    Raises:
        FormatError: the PIR program contradicts itself.
        UnsupportedOperatorError: an operation has no legacy counterpart.
    """
    return Converter(parameters, rows, specials).run(pir)
