"""Writing quantization ops into a program."""

import numpy as np

from .program import make_op, shape_of

_BOOL, _INT16, _FLOAT32, _INT8 = 0, 1, 5, 21  # paddle.framework.proto.VarType.Type, for cast


class Emitter:
    """Makes ops, and the variables that they need, in a :class:`~.program.Program`."""

    def __init__(self, program):
        self.program = program
        self._numbers = {}  # name -> the last number that was put behind it
        self._names = {var.name for block in program.desc.blocks for var in block.vars}

    def fresh(self, name):
        """``name``, or it with a number where it is taken."""
        unique, number = name, self._numbers.get(name, 0)
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        self._numbers[name] = number
        return unique

    def taken(self, name):
        """Whether a variable has this name, or it is kept for one."""
        return name in self._names

    def variable(self, block, name, shape, dtype="float32"):
        """A new variable; returns its name."""
        return self.program.add_variable(block, self.fresh(name), dtype, shape)

    def variable_like(self, block, other, name, dtype="float32"):
        """A new variable of the shape of ``other``; returns its name."""
        var = next(var for var in block.vars if var.name == other)
        return self.variable(block, name, shape_of(var), dtype)

    def parameter(self, name, array):
        """A new parameter; returns its name."""
        return self.program.add_parameter(self.fresh(name), array)

    def quantize_dequantize(self, block, source, target, threshold, bits):
        """Ops that take an activation through integers."""
        scale = self.parameter(f"{target}.scale", threshold)
        quantized = self.variable_like(block, target, f"{target}.quantized")
        zero = self._zero()
        return [self._linear("quantize_linear", source, scale, zero, quantized, bits, -1),
                self._linear("dequantize_linear", quantized, scale, zero, target, bits, -1)]

    def fake_quantize(self, source, target, threshold, bits):
        """The ``fake_*`` form of :meth:`quantize_dequantize`."""
        scale = self.parameter(f"{target}.scale", threshold)
        return [make_op("fake_quantize_dequantize_moving_average_abs_max",
                        {"X": source, "InScale": scale}, {"Out": target, "OutScale": scale},
                        bit_length=bits, moving_rate=0.9, is_test=True, round_type=0)]

    def fake_quantize_weight(self, source, target, threshold, bits, axis):
        """The op that finds max|weight|, which is ``threshold``, and quantizes with it."""
        # Paddle computes the scale into this variable; Paddle-Lite reads it from the file.
        outputs = {"Out": target, "OutScale": self.parameter(f"{target}.scale", threshold)}
        if axis is None:
            return [make_op("fake_quantize_dequantize_abs_max", {"X": source}, outputs,
                            bit_length=bits, round_type=0)]
        return [make_op("fake_channel_wise_quantize_dequantize_abs_max", {"X": source}, outputs,
                        bit_length=bits, quant_axis=axis, round_type=0)]

    def dequantize_weight(self, block, integers, scale, target, bits, axis):
        """Ops that make a float weight from the parameters ``integers`` and ``scale``."""
        bits, axis = max(bits, 2), -1 if axis is None else axis
        # One bit is stored as -1 and +1, which two bits' levels / 1 give back.
        if self.program.arrays[integers].dtype == np.int16:
            # Paddle has no kernel that dequantizes it.
            return self.multiply_weight(block, integers, scale, target, bits, axis)
        # A zero point of its own: Paddle-Lite removes it together with the op, and aborts when
        # another weight still needs it.
        channels = len(self.program.arrays[scale])
        zero = self.parameter(f"{target}.zero_point", np.zeros([channels], np.float32))
        return [self._linear("dequantize_linear", integers, scale, zero, target, bits, axis)]

    def multiply_weight(self, block, integers, scale, target, bits, axis):
        """Ops that compute the same, to the bit, and are not known for quantization."""
        array = self.program.arrays[integers]
        code = _INT16 if array.dtype == np.int16 else _INT8
        converted, product = (self.variable(block, f"{target}.{name}", array.shape)
                              for name in ("converted", "product"))
        return [
            make_op("cast", {"X": integers}, {"Out": converted}, in_dtype=code,
                    out_dtype=_FLOAT32),
            make_op("elementwise_mul", {"X": converted, "Y": scale}, {"Out": product}, axis=axis),
            make_op("elementwise_div", {"X": product, "Y": self._levels(bits)}, {"Out": target},
                    axis=-1),
        ]

    def sign(self, block, source, target, size):
        """-size below 0, +size from 0 on."""
        above = self.variable_like(block, target, f"{target}.above", "bool")
        number = self.variable_like(block, target, f"{target}.number")
        return [
            make_op("greater_equal", {"X": source, "Y": self._zero()}, {"Out": above},
                    axis=-1, force_cpu=False),
            make_op("cast", {"X": above}, {"Out": number}, in_dtype=_BOOL, out_dtype=_FLOAT32),
            make_op("scale", {"X": number}, {"Out": target}, scale=2.0 * size, bias=-size,
                    bias_after_scale=True),
        ]

    def _linear(self, kind, source, scale, zero, target, bits, axis):
        # Paddle 3 clips to qmin and qmax, whatever bit_length says; Paddle 2.6 the other way.
        top = 2 ** (bits - 1) - 1
        return make_op(
            kind, {"X": source, "Scale": scale, "ZeroPoint": zero}, {"Y": target},
            quant_axis=axis, bit_length=bits, qmin=-top - 1, qmax=top, round_type=0,
            is_test=True, only_observer=False)

    def _zero(self):
        return self._constant("paddleq.zero_point", 0)

    def _levels(self, bits):
        levels = 2 ** (bits - 1) - 1
        return self._constant(f"paddleq.levels_{levels}", levels)

    def _constant(self, name, value):
        if name not in self.program.arrays:
            self.parameter(name, np.array([value], np.float32))
        return name


def replace_ops(block, ops):
    """Give a block another list of ops."""
    # extend() copies, and what it copies from must outlive the emptying of the block.
    kept = [type(op).FromString(op.SerializeToString()) for op in ops]
    del block.ops[:]
    block.ops.extend(kept)
