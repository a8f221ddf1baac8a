"""Layers that a quantized model is deployed with, known by a name to checkpoints.

Such a layer can say in plain values (numbers, strings, lists, dicts) how it is built, and be built
from that without the data that its integers come from. A new kind is a class with the methods of
:class:`DeployableLayer` under the decorator :func:`deployable`.
"""

import abc

from .._checks import check_known_keys, hint
from ..errors import FormatError
from ..spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

_KINDS = {}
_GRANULARITIES = {"per_tensor": (PerTensor, None), "per_channel": (PerChannel, "axis"),
                  "per_group": (PerGroup, "size"), "per_token": (PerToken, None)}


class DeployableLayer(abc.ABC):
    """What a layer class that checkpoints describe must have."""

    @property
    def kind(self):
        """Name of the class under which checkpoints know the layer."""
        return type(self).__name__

    @abc.abstractmethod
    def description(self):
        """A dict of plain values from which :meth:`from_description` builds an empty layer."""

    @classmethod
    @abc.abstractmethod
    def from_description(cls, description):
        """A layer of this structure, its tensors yet to be loaded.

        Raises:
            ConfigError, ConfigTypeError, FormatError: no layer is described so.
        """

    @property
    @abc.abstractmethod
    def quant_type(self):
        """How it is quantized, in short: ``W8-per_channel-A8-per_tensor``."""

    @property
    def filled(self):
        """Whether it has its numbers: not a structure that awaits a checkpoint."""
        return True

    @property
    def data_dependent(self):
        """Names in :meth:`description` of what a checkpoint may say otherwise."""
        return ()

    @classmethod
    def prepare_model(cls, model, name):
        """Called before the layer ``name`` of a float ``model`` is looked up, which may lack it."""
        return None

    @classmethod
    def in_place_of(cls, layer, description):
        """The layer of this structure that takes the place of ``layer``, which is not changed.

        Raises:
            ModelError: it does not fit there.
        """
        return cls.from_description(description)


def deployable(cls):
    """Class decorator: checkpoints know the class by its name from then on."""
    _KINDS[cls.__name__] = cls
    return cls


def deployable_class(kind):
    """The class of that name.

    Raises:
        FormatError: there is none.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FormatError(f"there is no kind of layer {kind!r}{hint(kind, _KINDS)}; known: "
                          f"{', '.join(sorted(_KINDS))}")
    return _KINDS[kind]


def deployable_layers(model):
    """(name, layer) of every deployable layer, in order of definition."""
    return [(name, layer) for name, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, DeployableLayer)]


def describe_spec(spec):
    """A :class:`~paddleq.QuantSpec` as a dict of plain values; None stays None."""
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
    """The :class:`~paddleq.QuantSpec` that :func:`describe_spec` described.

    Raises:
        ConfigError, ConfigTypeError, FormatError: it describes none.
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


def check_fields(what, description, fields):
    """Return the dict ``description`` if it has these keys and no others.

    Raises:
        ConfigError, FormatError: it has not.
    """
    if not isinstance(description, dict):
        raise FormatError(f"{what} must be described by a dict, but is by {description!r}")
    check_known_keys(f"the description of {what}", description, fields)
    missing = [field for field in fields if field not in description]
    if missing:
        raise FormatError(f"the description of {what} lacks {', '.join(missing)}")
    return description


def spec_name(spec):
    """``8-per_channel``, as the names of schemes have it: bits and granularity."""
    return f"{spec.bits}-{_granularity_name(spec.granularity)[0]}"


def _granularity_name(granularity):
    return next((name, field) for name, (cls, field) in _GRANULARITIES.items()
                if isinstance(granularity, cls))
