"""Write a :class:`~.saved_model.SavedModel` back into the program that was read."""

from ..export.program.program import Program


def build_program(model) -> Program:
    """Return the float program with the current values of the model's parameters."""
    program = model.parsed_program()
    program.arrays.update(model.parameter_arrays())
    return program
