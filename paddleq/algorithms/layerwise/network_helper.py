"""Description of the architecture of a network for the layer-by-layer algorithms."""

import abc
import re
from typing import Sequence, Set, Tuple

from paddle import nn

from ..._checks import check_layer
from ...errors import ModelError
from ...nn import KVCache
from ...nn.integer_linear import linear_skip_reason
from ...nn.kv_cache import supports_cache

ROUTER = re.compile("gat(e|ing)|router|switch|wg")
"""Matches names of layers that choose experts."""


class NetworkHelper(abc.ABC):
    """Locates the parts of a network. Derive a class for your architecture.

    Examples:
        >>> import paddle
        >>> from paddleq.algorithms import NetworkHelper
        >>> class Named(NetworkHelper):
        ...     def decoder_layers(self, network):
        ...         return [(name, getattr(network, name)) for name in ("first", "second")]
        >>> network = paddle.nn.Layer()
        >>> network.first, network.second = paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2)
        >>> [name for name, _ in Named().decoder_layers(network)]
        ['first', 'second']
    """

    @abc.abstractmethod
    def decoder_layers(self, network) -> Sequence[Tuple[str, nn.Layer]]:
        """Return the layers to quantize one after the other, including those of encoders.

        Returns:
            A list of (name in ``network.named_sublayers()``, layer), in any order. None is part of
            another.
        """

    def kv_caches(self, network) -> Sequence[Tuple[str, nn.Layer]]:
        """Return the KV caches: ``MultiHeadAttention`` and ``paddleq.nn.KVCache`` layers.

        Returns:
            A list of (name in ``network.named_sublayers()``, layer).
        """
        attentions = [(name, layer) for name, layer in network.named_sublayers(include_self=True)
                      if supports_cache(layer)]
        contained = {id(getattr(attention, "kv_cache", None)) for _, attention in attentions}
        return attentions + [
            (name, layer) for name, layer in network.named_sublayers(include_self=True)
            if isinstance(layer, KVCache) and id(layer) not in contained]


class StackHelper(NetworkHelper):
    """Default helper: decoder layers are the layers of stacks.

    A stack is a ``LayerList`` or ``Sequential`` whose layers are all of one class and contain
    ``paddle.nn.Linear``. Stacks within the layers of a stack (the experts of a mixture) are
    ignored. If a network has several stacks, such as an encoder and a decoder, the layers of all
    of them are decoder layers.

    Examples:
        >>> import paddle
        >>> from paddleq.algorithms import StackHelper
        >>> encoder = paddle.nn.TransformerEncoder(
        ...     paddle.nn.TransformerEncoderLayer(8, 2, 16), num_layers=2)
        >>> [name for name, _ in StackHelper().decoder_layers(encoder)]
        ['layers.0', 'layers.1']
    """

    def decoder_layers(self, network):
        """Return the layers of all stacks.

        Raises:
            ModelError: there is no stack.
        """
        check_layer("network", network)
        inside, found = set(), []
        # named_sublayers() yields parents before their children.
        for name, layer in network.named_sublayers(include_self=True):
            if id(layer) not in inside and _is_stack(layer):
                inside.update(id(each) for each in layer.sublayers())
                found += [(f"{name}.{key}" if name else key, each)
                          for key, each in layer.named_children()]
        if not found:
            raise ModelError(
                f"no decoder layers found in {type(network).__name__}: there is no LayerList or "
                "Sequential whose layers are of one class and hold paddle.nn.Linear; pass a "
                "NetworkHelper whose decoder_layers() returns them")
        return found


def routers(network: nn.Layer) -> Set[str]:
    """Return the names of Linear layers that choose the experts of a mixture.

    A router has as many outputs as a list of layers with Linear layers beside it has members, and
    :data:`ROUTER` matches its name.
    """
    found = set()
    for name, layer in network.named_sublayers(include_self=True):
        lists = [child for child in layer.children()
                 if isinstance(child, (nn.LayerList, nn.Sequential)) and len(child) > 1
                 and all(any(map(is_linear, each.sublayers(include_self=True)))
                         for each in child)]
        sizes, inside = {len(each) for each in lists}, {
            id(part) for each in lists for part in each.sublayers()}
        for part, each in layer.named_sublayers() if sizes else ():
            if (id(each) not in inside and is_linear(each) and ROUTER.search(part)
                    and each.weight.shape[1] in sizes):
                found.add(f"{name}.{part}" if name else part)
    return found


def is_linear(layer):
    """Return True if this is a ``paddle.nn.Linear`` with the forward of that class."""
    return linear_skip_reason(layer) is None


def _is_stack(layer):
    if not isinstance(layer, (nn.LayerList, nn.Sequential)):
        return False
    layers = list(layer.children())
    if len({type(each) for each in layers}) != 1 or not all(map(_contains_linear, layers)):
        return False
    # The stages of a network, or a wrapper around a network: search inside.
    if len(layers) == 1:
        return not any(_is_stack(part) for part in layers[0].sublayers(include_self=True))
    return not all(map(_is_stack, layers))


def _contains_linear(layer):
    return not is_linear(layer) and any(is_linear(part) for part in layer.sublayers())
