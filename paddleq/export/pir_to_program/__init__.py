"""Conversion of PIR programs (``.json``) to ProgramDescs (``.pdmodel``)."""

from .reader import from_pir, load_program, to_program_desc

__all__ = ["from_pir", "load_program", "to_program_desc"]
