"""Blocks of layers that compute as one: a producer, its batch norm, its ReLU.

A block has one output quantizer, which its first layer holds and its last one applies. The layers
stay where the model has them; each is given a subclass of its own class that knows of its blocks.
"""

from paddle import nn

from .._layer_state import state_of
from .class_swap import swapped_class


class Block:
    """A quantized layer and what follows it.

    Args:
        producer: a :class:`~paddleq.nn.QuantizedLayer`.
        norm: the batch norm that alone reads its output, or None.
        relu: the ``nn.ReLU`` that alone reads what comes before it, or None. It may end several
            blocks: it knows them by the tensors that come.

    Attributes:
        folded: the producer computes the norm too, and the norm hands its input on.
    """

    def __init__(self, producer, norm=None, relu=None):
        self.producer, self.norm, self.relu = producer, norm, relu
        self.folded = False
        self._on_its_way = None  # the tensor between the last two layers, until the last takes it

    def join(self):
        """Make the layers know of the block."""
        self.producer._paddleq.block = self
        for member in (self.norm, self.relu):
            if member is not None:
                _make_member(member).append(self)

    def dissolve(self):
        """Make the layers forget the block."""
        self.producer._paddleq.block = None
        for member in (self.norm, self.relu):
            if member is not None:
                _forget(member, self)

    def after(self, member, y):
        """What leaves ``member``, whose own output is ``y``."""
        last = self.relu if self.relu is not None else self.norm
        if member is last or last is None:
            return self.producer.quantize_output(y)
        self._on_its_way = y if self.relu is not None and (
            member is self.norm or self.norm is None) else None
        return y

    def takes(self, x):
        """Whether ``x`` is the tensor that the last layer is to take; it is taken then."""
        if x is not self._on_its_way:
            return False
        self._on_its_way = None
        return True


class BlockMember(nn.Layer):
    """Mixin of the batch norms and ReLUs that are part of a block."""

    prefix = "Fused"

    def swapped_forward(self, args, kwargs):
        """Compute the layer's forward, and what the blocks that it is part of need."""
        blocks = self._paddleq.member_of
        as_norm = [block for block in blocks if block.norm is self]
        if as_norm:
            (block,) = as_norm
            y = args[0] if block.folded else self.float_forward(*args, **kwargs)
            return block.after(self, y)
        y = self.float_forward(*args, **kwargs)
        for block in blocks:
            if block.takes(args[0]):
                return block.after(self, y)
        return y

    def float_forward(self, *args, **kwargs):
        """The layer's own forward."""
        return self._float_class.forward(self, *args, **kwargs)


def leave_block(layer, y):
    """What leaves the quantized ``layer``, whose own output is ``y``."""
    block = layer._paddleq.block
    return layer.quantize_output(y) if block is None else block.after(layer, y)


def _make_member(layer):
    if not isinstance(layer, BlockMember):
        layer.__class__ = swapped_class(BlockMember, type(layer))
    return state_of(layer).member_of


def _forget(layer, block):
    blocks = layer._paddleq.member_of
    blocks.remove(block)
    if not blocks:
        layer.__class__ = layer._float_class
