"""Every error that paddleq raises on purpose.

All of them derive from :class:`PaddleqError`, so ``except paddleq.errors.PaddleqError``
catches what the library refuses and nothing else. Errors about an argument also derive
from the built-in class a Python programmer would expect (``ValueError``, ``TypeError``).
"""


class PaddleqError(Exception):
    """Base class of all errors of this library.

    Examples:
        >>> import paddleq
        >>> issubclass(paddleq.errors.ConfigError, paddleq.errors.PaddleqError)
        True
    """


class ConfigError(PaddleqError, ValueError):
    """An argument or a configuration entry has a value that cannot be used.

    A path to write that is a folder is one. A file to read that is missing or damaged raises
    :class:`FormatError`, a file that cannot be written :class:`ExportError`.
    """


class ConfigTypeError(PaddleqError, TypeError):
    """An argument or a configuration entry has the wrong type."""


class RecipeError(ConfigError):
    """A recipe has mistakes.

    Attributes:
        problems: list of (line, key, what is wrong), by their lines.
        source: the name of the file.
    """

    def __init__(self, problems, source):
        self.problems, self.source = sorted(problems), source
        super().__init__("\n".join(f"{source}:{line}: {key}: {what}"
                                   for line, key, what in self.problems))


class ModelError(PaddleqError, ValueError):
    """The model cannot be quantized as asked (already quantized, wrong dtype, ...)."""


class FusionError(PaddleqError, ValueError):
    """A pair of layers that was named for fusion must not be fused."""


class CalibrationError(PaddleqError, RuntimeError):
    """Calibration is missing, saw no data or saw data that cannot be used."""


class StateError(PaddleqError, RuntimeError):
    """A method is called on an object that is not ready for it."""


class NonFiniteError(CalibrationError):
    """A calibration batch produced NaN or infinity at the input of a layer."""


class AccuracyError(PaddleqError, RuntimeError):
    """No model within a stated drop of a metric was found.

    Attributes:
        report: the :class:`~paddleq.analysis.AccuracyReport` of what came nearest.
    """

    def __init__(self, message, report=None):
        super().__init__(message)
        self.report = report


class ExportError(PaddleqError, RuntimeError):
    """The model cannot be written in the format that was asked for."""


class TraceError(ExportError):
    """Paddle could not trace the model."""


class FormatError(PaddleqError, ValueError):
    """A saved model on disk is missing, damaged or of an unsupported kind."""


class InferenceError(PaddleqError, RuntimeError):
    """A runtime refused to load or to run a model."""


class DependencyError(PaddleqError, ImportError):
    """A package that the call needs is not installed."""


class UnsupportedOperatorError(ExportError):
    """An operator of the model has no counterpart in the format that was asked for.

    Attributes:
        operator: its name in PIR.
        struct_name: the layer that it comes from, as Paddle saved it; None if it did not.
    """

    def __init__(self, message, operator=None, struct_name=None):
        super().__init__(message)
        self.operator = operator
        self.struct_name = struct_name
