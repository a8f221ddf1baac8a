"""Gradient masks, packed to one bit per value."""

import paddle

_BITS = [1 << i for i in range(8)]


class BitMask:
    """Boolean tensor packed to an eighth of its memory.

    The flattened mask is split into eight consecutive parts; part ``i`` is stored in bit ``i``.

    Args:
        mask: tensor of booleans, not empty.

    Examples:
        >>> import paddle
        >>> from paddleq.functional.bit_mask import BitMask
        >>> mask = BitMask(paddle.to_tensor([True, False, True]))
        >>> mask.packed.tolist(), mask.unpacked().tolist()
        ([5], [True, False, True])
    """

    def __init__(self, mask):
        self.shape = mask.shape
        flat = mask.reshape([-1])
        self.count = flat.shape[0]
        if self.count % 8:
            flat = paddle.concat([flat, paddle.zeros([-self.count % 8], dtype="bool")])
        parts = flat.astype("uint8").reshape([8, -1])
        self.packed = parts[0]
        for bit, part in zip(_BITS[1:], parts[1:]):
            self.packed = self.packed.bitwise_or(paddle.scale(part, bit))

    def unpacked(self):
        """The boolean tensor."""
        parts = [self.packed.bitwise_and(paddle.full([1], bit, dtype="uint8")).astype("bool")
                 for bit in _BITS]
        return paddle.concat(parts)[:self.count].reshape(self.shape)


class BoolMask:
    """Boolean tensor with the interface of :class:`BitMask`, not packed."""

    def __init__(self, mask):
        self._mask = mask

    def unpacked(self):
        """The boolean tensor."""
        return self._mask


def masked(mask, grad):
    """Return ``grad`` where ``mask`` is set and 0 elsewhere, as a new tensor."""
    # where() costs three times as much. In place: a fresh tensor costs more than the arithmetic.
    return mask.unpacked().astype(grad.dtype).multiply_(grad)
