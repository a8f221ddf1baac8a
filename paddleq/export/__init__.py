"""Ways out: from a quantized model to files that runtimes load."""

from .program_desc import to_program_desc
from .save import save

__all__ = ["save", "to_program_desc"]
