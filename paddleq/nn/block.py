"""Blocks of layers that are quantized as one: a producer, its batch norm, its ReLU.

A block has one output quantizer. Its first layer holds the quantizer, its last layer applies it.
The layers stay in their places in the model. The class of the norm and of the ReLU becomes a
subclass of their own class (:class:`BlockMember`).
"""

import paddle
from paddle import nn

from .._layer_state import state_of
from ..fake_quant.recompute import in_first_pass, is_repeated_pass
from .class_swap import swapped_class


class Block:
    """A quantized layer and the layers fused with it: a batch norm, a ReLU, or both.

    Each is the only reader of the output before it. A ReLU may end several blocks; it finds the
    current one by its input, which shares the memory of the output before it: ``recompute`` may
    begin or end between them, and hands over another tensor object.
    """

    def __init__(self, producer, norm=None, relu=None):
        self.producer, self.norm, self.relu = producer, norm, relu
        self.layers = [layer for layer in (producer, norm, relu) if layer is not None]
        self.folded = False  # True if the producer computes the norm too
        self._relu_input = None  # until the ReLU receives it

    def attach(self):
        """Register the block with its layers."""
        self.producer._paddleq.block = self
        for member in self.layers[1:]:
            if not isinstance(member, BlockMember):
                member.__class__ = swapped_class(BlockMember, type(member))
            state_of(member).member_of.append(self)

    def detach(self):
        """Remove the block from its layers."""
        self.producer._paddleq.block = None
        for member in self.layers[1:]:
            member._paddleq.member_of.remove(self)
            if not member._paddleq.member_of:
                member.__class__ = member._float_class

    def output_of(self, member, y):
        """Return the output of ``member``, given the ``y`` that its own forward computed."""
        if member is self.layers[-1]:
            return self.producer.quantize_output(y)
        expected = self.relu is not None and member is self.layers[-2] and not is_repeated_pass()
        self._relu_input = y if expected else None
        return y

    def receive(self, x):
        """Return True if ``x`` is the tensor that the ReLU expects, and expect no other."""
        if not _same_memory(x, self._relu_input):
            return False
        self._relu_input = None
        return True


class BlockMember(nn.Layer):
    """Mixin of the batch norms and ReLUs that are part of a block."""

    prefix = "Fused"

    def swapped_forward(self, args, kwargs):
        """Compute the layer's forward and the block's output quantizer if the layer ends it."""
        x = args[0] if args else next(iter(kwargs.values()))
        block = in_first_pass((id(self), "block"), self._current_block, x)
        if block is not None and block.norm is self and block.folded:
            return block.output_of(self, x)
        y = self.float_forward(*args, **kwargs)
        return y if block is None else block.output_of(self, y)

    def _current_block(self, x):
        return next((block for block in self._paddleq.member_of
                     if block.norm is self or block.receive(x)), None)

    def float_forward(self, *args, **kwargs):
        """Compute the forward of the layer's own class."""
        return self._float_class.forward(self, *args, **kwargs)


def _same_memory(x, expected):
    if x is expected or expected is None or not paddle.in_dynamic_mode():
        return x is expected
    return x.shape == expected.shape and x.data_ptr() == expected.data_ptr()


def block_output(layer, y):
    """Return the output of the quantized ``layer``, given the ``y`` that its forward computed."""
    block = layer._paddleq.block
    return layer.quantize_output(y) if block is None else block.output_of(layer, y)
