"""Dense packing of unsigned integers of 1 to 8 bits into 32-bit words."""

import numpy as np

_WORD = 32


def pack_words(values, bits):
    """Pack integers along the last axis, the first one into the lowest bits of the first word.

    The bits of consecutive integers follow each other without gaps, across words too.

    Args:
        values: unsigned integers [..., n] below 2**bits, of any integer dtype.
        bits: width of an integer, 1 to 8.

    Returns:
        int32 [..., ceil(n * bits / 32)].

    Examples:
        >>> import numpy as np
        >>> from paddleq.checkpoint.formats.packing import pack_words, unpack_words
        >>> words = pack_words(np.arange(8), 4)
        >>> [hex(word) for word in words]
        ['0x76543210']
        >>> unpack_words(words, 4, 8).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    *lead, count = values.shape
    blocks = -(-count // _WORD)
    if count % _WORD:
        values = np.concatenate(
            [values, np.zeros([*lead, blocks * _WORD - count], values.dtype)], axis=-1)
    values = values.reshape([*lead, blocks, _WORD])
    words = np.zeros([*lead, blocks, bits], "uint64")
    for index in range(_WORD):
        word, offset = divmod(index * bits, _WORD)
        moved = values[..., index].astype("uint64") << np.uint64(offset)
        words[..., word] |= moved & np.uint64(0xFFFFFFFF)
        if offset + bits > _WORD:
            words[..., word + 1] |= moved >> np.uint64(_WORD)
    words = words.astype("uint32").view("int32").reshape([*lead, blocks * bits])
    return np.ascontiguousarray(words[..., :-(-count * bits // _WORD)])


def unpack_words(words, bits, count):
    """Unpack the ``count`` integers of :func:`pack_words` as uint8 [..., count]."""
    *lead, length = words.shape
    words = np.ascontiguousarray(words).view("uint32")
    blocks = -(-count // _WORD)
    if length < blocks * bits:
        words = np.concatenate(
            [words, np.zeros([*lead, blocks * bits - length], "uint32")], axis=-1)
    words = words.reshape([*lead, blocks, bits])
    values = np.empty([*lead, blocks, _WORD], "uint8")
    for index in range(_WORD):
        word, offset = divmod(index * bits, _WORD)
        value = words[..., word].astype("uint64")
        if offset + bits > _WORD:
            value |= words[..., word + 1].astype("uint64") << np.uint64(_WORD)
        values[..., index] = (value >> np.uint64(offset)) & np.uint64(2 ** bits - 1)
    return values.reshape([*lead, blocks * _WORD])[..., :count]
