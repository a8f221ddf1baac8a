"""Builder of the variables and operators that are added to a program."""

import numpy as np

from .graph_view import Names
from .op_desc import make_op, shape_of

BOOL, INT16, INT32, FLOAT32, INT8 = 0, 1, 2, 5, 21  # VarType.Type of framework.proto, for cast


class OpBuilder:
    """Adds variables to a :class:`~.program.Program`, and creates operators."""

    def __init__(self, program):
        self.program = program
        self.names = Names(var.name for block in program.desc.blocks for var in block.vars)
        self.fresh = self.names.fresh

    def variable(self, block, name, shape, dtype="float32"):
        return self.program.add_variable(block, self.fresh(name), dtype, shape)

    def variable_like(self, block, other, name, dtype="float32"):
        """Add a variable of the shape of ``other`` and return its name."""
        return self.variable(block, name, shape_of(self.program.variable(other, block)), dtype)

    def parameter(self, name, array):
        return self.program.add_parameter(self.fresh(name), array)

    def constant(self, name, value):
        """Return the parameter ``name`` with one float, which is added if it does not exist."""
        if name not in self.program.arrays:
            self.parameter(name, np.array([value], np.float32))
        return name

    def multiply_weight(self, block, integers, abs_max, target, bits, axis):
        """Dequantize a weight bit-exactly with cast, elementwise_mul and elementwise_div.

        Runtimes do not recognize these as quantization.
        """
        array = self.program.arrays[integers]
        code = INT16 if array.dtype == np.int16 else INT8
        converted, product = (self.variable(block, f"{target}.{name}", array.shape)
                              for name in ("converted", "product"))
        levels = 2 ** (bits - 1) - 1
        return [
            make_op("cast", {"X": integers}, {"Out": converted}, in_dtype=code, out_dtype=FLOAT32),
            make_op("elementwise_mul", {"X": converted, "Y": abs_max}, {"Out": product}, axis=axis),
            make_op("elementwise_div",
                    {"X": product, "Y": self.constant(f"paddleq.levels_{levels}", levels)},
                    {"Out": target}, axis=-1),
        ]


def linear_op(kind, source, scale, zero, target, bits, axis=-1):
    """Create the operator ``quantize_linear`` or ``dequantize_linear``."""
    # Paddle 3 clips to qmin and qmax and ignores bit_length; Paddle 2.6 the opposite.
    top = 2 ** (bits - 1) - 1
    return make_op(kind, {"X": source, "Scale": scale, "ZeroPoint": zero}, {"Y": target},
                   quant_axis=axis, bit_length=bits, qmin=-top - 1, qmax=top, round_type=0,
                   is_test=True, only_observer=False)
