"""Registry of the layers of deployed models that checkpoints describe.

A layer is described by plain values (numbers, strings, lists, dicts), from which an empty layer is
built. To add a type, derive from :class:`DeployableLayer` and decorate it with :func:`deployable`.
"""

import abc

from .._checks import check_known_keys, hint
from ..errors import FormatError
from ..spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

_KINDS = {}
_GRANULARITIES = {"per_tensor": (PerTensor, None), "per_channel": (PerChannel, "axis"),
                  "per_group": (PerGroup, "size"), "per_token": (PerToken, None)}


class DeployableLayer(abc.ABC):
    """Interface of layers that checkpoints describe."""

    @property
    def kind(self):
        """Name of the layer type in checkpoints."""
        return type(self).__name__

    @abc.abstractmethod
    def description(self):
        """Return plain values from which :meth:`from_description` builds an empty layer."""

    @classmethod
    @abc.abstractmethod
    def from_description(cls, description):
        """Return a layer of this structure whose tensors are not loaded yet.

        Raises:
            ConfigError, ConfigTypeError, FormatError: the description is invalid.
        """

    @property
    @abc.abstractmethod
    def quant_type(self):
        """Scheme in short, such as ``W8-per_channel-A8-per_tensor``."""

    @property
    def initialized(self):
        """True if the tensors are set, False for a structure that awaits a checkpoint."""
        return True

    @property
    def data_dependent(self):
        """Fields of :meth:`description` that may differ in a checkpoint."""
        return ()

    @classmethod
    def prepare_model(cls, model, name):
        """Prepare a float ``model`` that lacks the layer ``name`` for its replacement."""
        return None

    @classmethod
    def in_place_of(cls, layer, description):
        """Return a layer of this structure to replace ``layer``, which is not changed.

        Raises:
            ModelError: ``layer`` does not fit the description.
        """
        return cls.from_description(description)


def deployable(cls):
    """Register a class under its name; a class decorator."""
    _KINDS[cls.__name__] = cls
    return cls


def deployable_class(kind):
    """Return the registered class named ``kind``.

    Raises:
        FormatError: there is none.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FormatError(f"there is no kind of layer {kind!r}{hint(kind, _KINDS)}; known: "
                          f"{', '.join(sorted(_KINDS))}")
    return _KINDS[kind]


def deployable_layers(model):
    """Return (name, layer) pairs of all deployable layers, in order of definition."""
    return [(name, layer) for name, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, DeployableLayer)]


def describe_spec(spec):
    """Convert a :class:`~paddleq.QuantSpec` to a dict of plain values; None stays None."""
    if spec is None:
        return None
    name, field = _granularity_name(spec.granularity)
    granularity = {"kind": name} if field is None else {
        "kind": name, field: getattr(spec.granularity, field)}
    return {"bits": spec.bits, "signed": spec.signed, "symmetric": spec.symmetric,
            "narrow_range": spec.narrow_range, "rounding": spec.rounding,
            "granularity": granularity,
            "limits": None if spec.limits is None else list(spec.limits)}


def spec_from(description):
    """Convert a dict of :func:`describe_spec` to a :class:`~paddleq.QuantSpec`.

    Raises:
        ConfigError, ConfigTypeError, FormatError: the description is invalid.
    """
    if description is None:
        return None
    fields = dict(check_fields("a spec", description, (
        "bits", "signed", "symmetric", "narrow_range", "rounding", "granularity", "limits")))
    granularity = fields["granularity"]
    kind = granularity.get("kind") if isinstance(granularity, dict) else None
    if not isinstance(kind, str) or kind not in _GRANULARITIES:
        raise FormatError(f"there is no granularity {granularity!r}")
    cls, field = _GRANULARITIES[kind]
    check_fields("a granularity", granularity, ("kind", *([field] if field else [])))
    fields["granularity"] = cls(granularity[field]) if field else cls()
    limits = fields["limits"]
    fields["limits"] = tuple(limits) if isinstance(limits, list) else limits
    return QuantSpec(**fields)


def check_fields(owner, description, fields):
    """Return the dict ``description`` if its keys are ``fields``.

    Raises:
        ConfigError, FormatError: it has other keys.
    """
    if not isinstance(description, dict):
        raise FormatError(f"{owner} must be described by a dict, but is by {description!r}")
    check_known_keys(f"the description of {owner}", description, fields)
    missing = [field for field in fields if field not in description]
    if missing:
        raise FormatError(f"the description of {owner} lacks {', '.join(missing)}")
    return description


def spec_name(spec):
    """Return bits and granularity, such as ``8-per_channel``."""
    return f"{spec.bits}-{_granularity_name(spec.granularity)[0]}"


def _granularity_name(granularity):
    return next((name, field) for name, (cls, field) in _GRANULARITIES.items()
                if isinstance(granularity, cls))
