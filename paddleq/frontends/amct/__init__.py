"""AMCT's interface: ``quantize(model, config)`` and ``convert(model)``."""

from .quantize import convert, quantize

__all__ = ["convert", "quantize"]
