"""Registry of export formats, and their base class."""

import abc
from typing import Optional, Tuple, Type

from .._registry import Registry

FORMATS: "Registry[Type[Format]]" = Registry("format")
register_format = FORMATS.register


class Format(abc.ABC):
    """File format that :func:`paddleq.export.save` writes.

    A subclass is registered with ``@register_format("name")``.

    Attributes:
        endings: of the files; the model is the first one.
        packages: names of packages whose versions the provenance file records.
        read: function (model_path, params_path) that reads the program that Paddle traced. None:
            as :class:`~paddleq.export.program.program.Program`.
    """

    endings: Tuple[str, ...] = ()
    packages: Tuple[str, ...] = ()
    read: Optional[object] = None

    def require(self) -> None:
        """Raise :class:`~paddleq.errors.DependencyError` if a package is missing."""

    def check_spec(self, name, spec, is_weight) -> None:
        """Raise :class:`~paddleq.errors.ExportError` if the format cannot represent ``spec``.

        Args:
            name: of the quantized tensor, for the message.
            spec: a :class:`~paddleq.QuantSpec`.
            is_weight: weight or activation.
        """

    def stores_integers_of(self, layer) -> bool:
        """Return True if the format can store the weight of an IntegerLinear as one constant.

        Otherwise the operators that compute the float weight are traced.
        """
        return True

    @abc.abstractmethod
    def write(self, program, marks, path, provenance=None, **options) -> None:
        """Lower the markers of a traced program and write the files at the prefix ``path``.

        Args:
            program: what ``read`` returned; may be changed.
            marks: what the markers in ``program`` stand for.
            provenance: a :class:`~paddleq.export.provenance_file.Provenance`, or None.

        Raises:
            ExportError: a target cannot be written.
        """
