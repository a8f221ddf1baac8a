"""Ways out: from a quantized model to files that runtimes load."""

from .save import save

__all__ = ["save"]
