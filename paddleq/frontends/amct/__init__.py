"""The front door of AMCT: ``quantize(model, config)`` and ``convert(model)``."""
