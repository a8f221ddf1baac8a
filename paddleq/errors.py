"""Errors of paddleq.

All of them derive from :class:`PaddleqError`, so ``except paddleq.errors.PaddleqError`` catches
the library's own errors only. Errors about arguments also derive from the corresponding built-in
class (``ValueError``, ``TypeError``).
"""

from typing import Any, List, Optional, Tuple


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
        problems: list of (line, key, message), sorted by line.
        source: the name of the file.
    """

    def __init__(self, problems: List[Tuple[int, str, str]], source: str) -> None:
        self.problems, self.source = sorted(problems), source
        super().__init__("\n".join(f"{source}:{line}: {key}: {message}"
                                   for line, key, message in self.problems))


class ModelError(PaddleqError, ValueError):
    """The model cannot be quantized (already quantized, unsupported dtype, ...)."""


class FusionError(PaddleqError, ValueError):
    """A pair of layers that was named for fusion cannot be fused."""


class CalibrationError(PaddleqError, RuntimeError):
    """Calibration is missing, had no data or had invalid data."""


class DistributedError(PaddleqError, RuntimeError):
    """The processes of a distributed run disagree, or one of them failed."""


class StateError(PaddleqError, RuntimeError):
    """A method was called on an object that is not initialized."""


class NonFiniteError(CalibrationError):
    """A calibration batch contains, or produces, NaN or infinity."""


class AccuracyError(PaddleqError, RuntimeError):
    """No quantized model within the allowed drop of a metric was found.

    Attributes:
        report: the :class:`~paddleq.analysis.AccuracyReport` of the best model.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class ExportError(PaddleqError, RuntimeError):
    """The model cannot be written in the requested format."""


class TraceError(ExportError):
    """Paddle could not trace the model."""


class FormatError(PaddleqError, ValueError):
    """A saved model on disk is missing, damaged or of an unsupported kind."""


class InferenceError(PaddleqError, RuntimeError):
    """A runtime failed to load or run a model."""


class DependencyError(PaddleqError, ImportError):
    """A required package is not installed."""


class UnsupportedOperatorError(ExportError):
    """An operator of the model has no counterpart in the requested format.

    Attributes:
        operator: name of the operator in PIR.
        struct_name: name of its layer as Paddle saved it, or None.
    """

    def __init__(self, message: str, operator: Optional[str] = None,
                 struct_name: Optional[str] = None) -> None:
        super().__init__(message)
        self.operator, self.struct_name = operator, struct_name
