"""Packing of two 4-bit integers into a byte.

Byte [i, n] holds rows 2i (low half) and 2i + 1 (high half) of column n. Signed integers are stored
with an offset of 8, -8..7 as 0..15: unpacking is one subtraction, while two's complement would
need a comparison.
"""

import paddle

from .._checks import wrong_value


def pack_int4(integers, signed=True):
    """Pack integers of 4 bits along the rows.

    Args:
        integers: [K, N] of any dtype, in [-8, 7] if ``signed``, else in [0, 15].
        signed: default True.

    Returns:
        uint8 [ceil(K / 2), N].

    Raises:
        ConfigError: an integer is out of range.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import pack_int4, unpack_int4
        >>> packed = pack_int4(paddle.to_tensor([[-8], [7], [1]], dtype="int8"))
        >>> packed.tolist()
        [[240], [9]]
        >>> unpack_int4(packed, rows=3).tolist()
        [[-8.0], [7.0], [1.0]]
    """
    low, high = (-8, 7) if signed else (0, 15)
    with paddle.no_grad():
        integers = integers.astype("float32")
        rows, columns = integers.shape
        if integers.size:
            found = [int(integers.min().item()), int(integers.max().item())]
            if found[0] < low or found[1] > high:
                raise wrong_value("integers", found, f"in [{low}, {high}]")
        nibbles = integers - float(low)
        if rows % 2:
            nibbles = paddle.concat([nibbles, paddle.zeros([1, columns], dtype="float32")])
        halves = nibbles.reshape([-1, 2, columns])
        return (halves[:, 0] + halves[:, 1] * 16.0).astype("uint8")


def unpack_int4(packed, rows, signed=True):
    """Unpack the integers of :func:`pack_int4`.

    A traced program contains casts, sums, a floor, a stack and a reshape, which other runtimes
    support.

    Args:
        packed: uint8 [ceil(rows / 2), N].
        rows: number of rows before packing.
        signed: as given to :func:`pack_int4`.

    Returns:
        float32 [rows, N].

    Examples:
        >>> import paddle
        >>> from paddleq.functional import unpack_int4
        >>> packed = paddle.to_tensor([[0x21]], dtype="uint8")
        >>> unpack_int4(packed, rows=2, signed=False).tolist()
        [[1.0], [2.0]]
    """
    offset = -8.0 if signed else 0.0
    low = packed.astype("float32")
    if paddle.in_dynamic_mode():
        with paddle.no_grad():  # in place: allocating tensors costs more than the arithmetic
            high = low.scale(1.0 / 16.0).floor_()
            low.subtract_(high.scale_(16.0)).scale_(1.0, offset)
            high.scale_(1.0 / 16.0, offset)
    else:
        high = paddle.floor(low / 16.0)
        low, high = (low - high * 16.0) + offset, high + offset
    integers = paddle.stack([low, high], axis=1).reshape([-1, packed.shape[1]])
    return integers[:rows] if rows % 2 else integers
