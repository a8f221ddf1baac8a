"""Builder of the operators and variables that quantize a program."""

import numpy as np

from .op_desc import make_op, shape_of

_BOOL, _INT16, _FLOAT32, _INT8 = 0, 1, 5, 21  # VarType.Type of framework.proto, for cast


class OpBuilder:
    """Creates operators and adds the variables that they need to a :class:`~.program.Program`.

    Methods that create operators return them as a list; the caller inserts them into a block.
    """

    def __init__(self, program):
        self.program = program
        self._numbers = {}  # name -> last number appended to it
        self._names = {var.name for block in program.desc.blocks for var in block.vars}

    def fresh(self, name):
        """Reserve and return ``name``, with a number appended if it is in use."""
        unique, number = name, self._numbers.get(name, 0)
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        self._numbers[name] = number
        return unique

    def taken(self, name):
        return name in self._names

    def variable(self, block, name, shape, dtype="float32"):
        return self.program.add_variable(block, self.fresh(name), dtype, shape)

    def variable_like(self, block, other, name, dtype="float32"):
        """Add a variable of the shape of ``other`` and return its name."""
        return self.variable(block, name, shape_of(self.program.variable(other, block)), dtype)

    def parameter(self, name, array):
        return self.program.add_parameter(self.fresh(name), array)

    def quantize_dequantize(self, block, source, target, abs_max, bits):
        scale = self.parameter(f"{target}.scale", abs_max)
        quantized = self.variable_like(block, target, f"{target}.quantized")
        zero = self._zero()
        return [self._linear("quantize_linear", source, scale, zero, quantized, bits, -1),
                self._linear("dequantize_linear", quantized, scale, zero, target, bits, -1)]

    def fake_quantize(self, source, target, abs_max, bits):
        """Quantize and dequantize an activation with a ``fake_*`` operator."""
        scale = self.parameter(f"{target}.scale", abs_max)
        return [make_op("fake_quantize_dequantize_moving_average_abs_max",
                        {"X": source, "InScale": scale}, {"Out": target, "OutScale": scale},
                        bit_length=bits, moving_rate=0.9, is_test=True, round_type=0)]

    def fake_quantize_weight(self, source, target, abs_max, bits, axis):
        """Quantize and dequantize a float weight with the max|weight| that the operator computes.

        ``abs_max`` is that value.
        """
        # Paddle computes the scale into this variable; Paddle-Lite reads it from the file.
        outputs = {"Out": target, "OutScale": self.parameter(f"{target}.scale", abs_max)}
        if axis is None:
            return [make_op("fake_quantize_dequantize_abs_max", {"X": source}, outputs,
                            bit_length=bits, round_type=0)]
        return [make_op("fake_channel_wise_quantize_dequantize_abs_max", {"X": source}, outputs,
                        bit_length=bits, quant_axis=axis, round_type=0)]

    def dequantize_weight(self, block, integers, abs_max, target, bits, axis):
        """Dequantize a weight from the parameters ``integers`` and ``abs_max``."""
        bits, axis = max(bits, 2), -1 if axis is None else axis
        # Binary weights are stored as -1 and +1, which 2 bits (1 level) dequantize correctly.
        if self.program.arrays[integers].dtype == np.int16:
            # Paddle has no dequantize_linear kernel for int16.
            return self.multiply_weight(block, integers, abs_max, target, bits, axis)
        # One zero point per weight: Paddle-Lite removes it together with the operator, and aborts
        # if another weight shares it.
        channels = len(self.program.arrays[abs_max])
        zero = self.parameter(f"{target}.zero_point", np.zeros([channels], np.float32))
        return [self._linear("dequantize_linear", integers, abs_max, zero, target, bits, axis)]

    def multiply_weight(self, block, integers, abs_max, target, bits, axis):
        """Dequantize a weight bit-exactly with cast, elementwise_mul and elementwise_div.

        Runtimes do not recognize these as quantization.
        """
        array = self.program.arrays[integers]
        code = _INT16 if array.dtype == np.int16 else _INT8
        converted, product = (self.variable(block, f"{target}.{name}", array.shape)
                              for name in ("converted", "product"))
        return [
            make_op("cast", {"X": integers}, {"Out": converted}, in_dtype=code,
                    out_dtype=_FLOAT32),
            make_op("elementwise_mul", {"X": converted, "Y": abs_max}, {"Out": product}, axis=axis),
            make_op("elementwise_div", {"X": product, "Y": self._levels(bits)}, {"Out": target},
                    axis=-1),
        ]

    def sign(self, block, source, target, size):
        """Binarize: -size for x < 0, +size for x >= 0."""
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
        # Paddle 3 clips to qmin and qmax and ignores bit_length; Paddle 2.6 the opposite.
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
