"""Interface of the layers of deployed models, and plain descriptions of them and of specs.

Checkpoints describe a layer by plain values (numbers, strings, lists, dicts). To add a type, derive
from :class:`DeployableLayer` and register it with :func:`~paddleq.nn.layer_types.frozen_form`.
"""

import abc
import inspect
from dataclasses import asdict, fields
from typing import Any

from .._checks import check_known_keys
from ..errors import FormatError
from ..spec import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

_GRANULARITIES = {"per_tensor": PerTensor, "per_channel": PerChannel, "per_group": PerGroup,
                  "per_block": PerBlock, "per_token": PerToken}
_SPEC_FIELDS = [field.name for field in fields(QuantSpec) if field.init]


class DeployableLayer(abc.ABC):
    """Interface of layers that checkpoints describe.

    Attributes:
        initialized: True if the tensors are set, False for a structure that awaits a checkpoint.
        data_dependent: fields of :meth:`description` that may differ in a checkpoint.
        spec_fields: fields that describe a :class:`~paddleq.QuantSpec`.
    """

    initialized = True
    data_dependent = ()
    spec_fields = ()

    @abc.abstractmethod
    def description(self):
        """Return plain values from which :meth:`in_place_of` builds the layer."""

    @property
    @abc.abstractmethod
    def quant_type(self):
        """Scheme in short, such as ``W8-per_channel-A8-per_tensor``."""

    @classmethod
    def prepare_model(cls, model, name):
        """Prepare a float ``model`` that lacks the layer ``name`` for its replacement."""
        return None

    @classmethod
    def from_description(cls, description):
        """Return the layer of a :meth:`description`, whose tensors are not loaded yet.

        The fields are the arguments of the constructor.

        Raises:
            ConfigError, ConfigTypeError, FormatError: the description is invalid.
        """
        fields = check_fields(f"an {cls.__name__}", description, inspect.signature(cls).parameters)
        return cls(**{name: spec_from(value) if name in cls.spec_fields else value
                      for name, value in fields.items()})

    @classmethod
    def in_place_of(cls, layer, description):
        """Return :meth:`from_description` to replace ``layer``, which is not changed.

        Raises:
            ConfigError, ConfigTypeError, FormatError: the description is invalid.
            ModelError: ``layer`` does not fit the description.
        """
        return cls.from_description(description)


def deployable_layers(model):
    """Return (name, layer) pairs of all deployable layers, in order of definition."""
    return [(name, layer) for name, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, DeployableLayer)]


def describe_spec(spec) -> Any:
    """Convert a :class:`~paddleq.QuantSpec` to a dict of plain values; None stays None.

    The dict has no ``dtype`` for integers, as files of versions without float data types.
    """
    if spec is None:
        return None
    names = [name for name in _SPEC_FIELDS if name != "dtype" or spec.dtype is not None]
    return {**{name: getattr(spec, name) for name in names},
            "granularity": {"kind": _kind_of(spec.granularity), **asdict(spec.granularity)},
            "limits": None if spec.limits is None else list(spec.limits)}


def spec_from(description) -> Any:
    """Convert a dict of :func:`describe_spec` to a :class:`~paddleq.QuantSpec`, or raise."""
    if description is None:
        return None
    if isinstance(description, dict):
        description = {"dtype": None, **description}
    values = check_fields("a spec", description, _SPEC_FIELDS)
    granularity, limits = values["granularity"], values["limits"]
    kind = granularity.get("kind") if isinstance(granularity, dict) else None
    if not isinstance(kind, str) or kind not in _GRANULARITIES:
        raise FormatError(f"there is no granularity {granularity!r}")
    cls = _GRANULARITIES[kind]
    arguments = dict(check_fields("a granularity", granularity,
                                  ("kind", *(field.name for field in fields(cls)))))
    del arguments["kind"]
    return QuantSpec(**{**values, "granularity": cls(**arguments),
                        "limits": tuple(limits) if isinstance(limits, list) else limits})


def check_fields(owner, description, names):
    """Return the dict ``description`` if its keys are ``names``, else raise."""
    if not isinstance(description, dict):
        raise FormatError(f"{owner} must be described by a dict, but is by {description!r}")
    check_known_keys(f"the description of {owner}", description, names)
    missing = [name for name in names if name not in description]
    if missing:
        raise FormatError(f"the description of {owner} lacks {', '.join(missing)}")
    return description


def spec_name(spec):
    """Return bits or data type, and granularity: ``8-per_channel``, ``(nf4)-per_group``."""
    name = spec.bits if spec.dtype is None else f"({spec.dtype})"
    return f"{name}-{_kind_of(spec.granularity)}"


def _kind_of(granularity):
    return next(kind for kind, cls in _GRANULARITIES.items() if isinstance(granularity, cls))
