"""Registry of export formats, and their base class."""

import abc
from typing import TYPE_CHECKING, Callable, List, Optional, Tuple, Type

from .._registry import Registry
from ..spec import QuantSpec

if TYPE_CHECKING:
    from .provenance_file import Provenance

FORMATS: "Registry[Type[Format]]" = Registry("format")
register_format = FORMATS.register


class Format(abc.ABC):
    """File format that :func:`paddleq.export.save` writes.

    A subclass is registered with ``@register_format("name")``.

    Attributes:
        endings: of the files; the model is the first one.
        read: function (model_path, params_path) that reads the program that Paddle traced. None:
            as :class:`~paddleq.export.program.program.Program`.
        targets: values of the option ``target`` of :meth:`write`, the default first.
    """

    endings: Tuple[str, ...] = ()
    read: Optional[Callable] = None
    targets: Tuple[str, ...] = ()

    def versions(self):
        """Return versions that the provenance file records, by the name of a package."""
        return {}

    def require(self) -> None:  # noqa: B027 (optional to override)
        """Raise :class:`~paddleq.errors.DependencyError` if a package is missing."""

    def check_spec(  # noqa: B027 (optional to override)
            self, name: str, spec: QuantSpec, is_weight: bool) -> None:
        """Raise ExportError, with the ``name`` of the tensor, if ``spec`` cannot be represented."""

    def stores_integers_of(self, layer) -> bool:
        """Return True if the format can store the weights of an IntegerLayer as constants.

        Otherwise the operators that compute the float weight are traced.
        """
        return True

    def lowering(self, program, marks):
        """Return the :class:`~paddleq.export.markers.MarkerLowering` of what ``read`` returns.

        None: a format with its own ``read`` does not say; layers that a trace lost are not found.
        """
        if self.read is not None:
            return None
        from .paddle.lower import ProgramLowering

        return ProgramLowering(program, marks)

    @abc.abstractmethod
    def write(self, program, marks: List, path: str, provenance: "Optional[Provenance]" = None,
              **options) -> None:
        """Lower the markers of a traced program and write the files at the prefix ``path``.

        Args:
            program: the result of ``read``; may be changed.
            marks: the quantizers of the markers in ``program``.
            provenance: a :class:`~paddleq.export.provenance_file.Provenance`, or None.

        Raises:
            ExportError: a target cannot be written.
        """
