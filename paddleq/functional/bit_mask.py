"""Which values get a gradient, remembered in one bit each."""

import paddle

_BITS = [1 << i for i in range(8)]


class BitMask:
    """A boolean tensor in an eighth of its memory.

    Its eight parts, one behind the other, are a bit each of the packed bytes: whole parts are
    combined, so that no element is moved by itself.

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
    """A boolean tensor as it is; what :class:`BitMask` does, without its arithmetic."""

    def __init__(self, mask):
        self._mask = mask

    def unpacked(self):
        """The boolean tensor."""
        return self._mask


def masked(mask, grad):
    """``grad`` where ``mask`` is set, 0 elsewhere, as a new tensor."""
    # where() costs three times as much. In place: a fresh tensor costs more than the arithmetic.
    return mask.unpacked().astype(grad.dtype).multiply_(grad)
