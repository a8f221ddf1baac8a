"""Registry of the checkpoint formats that servers load, and their base class."""

import abc
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Type

from ..._registry import Registry
from .linear_weight import LinearWeight, Scheme

CHECKPOINT_FORMATS: "Registry[Type[CheckpointFormat]]" = Registry("checkpoint format")
register_checkpoint_format = CHECKPOINT_FORMATS.register


class CheckpointFormat(abc.ABC):
    """Layout of the quantized Linear layers of a checkpoint and its ``quantization_config``.

    A subclass is registered with ``@register_checkpoint_format("name")``.

    Attributes:
        servers: programs that load the files, for the documentation.
        transposed: True if float weights of Linear layers are stored as [out, in], as PyTorch's.
        marker: suffix of a tensor that only quantized layers have.
        beside: name of a file besides config.json that holds the configuration too, or None.
    """

    servers: ClassVar[str]
    transposed: ClassVar[bool] = True
    marker: ClassVar[str]
    beside: ClassVar[Optional[str]] = None

    @classmethod
    @abc.abstractmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """Return True if ``config`` is a quantization_config of this format."""

    @abc.abstractmethod
    def check(self, name: str, weight: LinearWeight) -> None:
        """Raise ExportError, with ``name`` and the reason, if the layer cannot be represented."""

    @abc.abstractmethod
    def config(self, schemes: Mapping[str, Scheme], floats: List[str]) -> Dict[str, Any]:
        """Return the quantization_config.

        Args:
            schemes: name of a quantized layer -> its scheme; not empty.
            floats: names of the Linear layers that stay float.

        Raises:
            ExportError: the format cannot represent this combination of schemes.
        """

    @abc.abstractmethod
    def encode(self, weight: LinearWeight, config: Mapping[str, Any]) -> Dict[str, Any]:
        """Return suffix -> numpy array of the tensors of a layer, without its bias."""

    @abc.abstractmethod
    def decode(self, name: str, tensors: Mapping[str, Any], config: Mapping[str, Any],
               features: int) -> LinearWeight:
        """Return the numbers of a layer.

        Args:
            tensors: suffix -> numpy array of the tensors of the layer.
            config: the quantization_config.
            features: number of input features.

        Raises:
            FormatError: the tensors or the configuration are not of this format.
        """
