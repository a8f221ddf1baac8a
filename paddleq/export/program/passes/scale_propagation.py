"""Stop Paddle Inference from applying the scale of a quantizer to other tensors, by ``assign``.

In int8 mode, Paddle Inference (2.6 to 3.3) removes all quantization and keeps one scale for each
variable that a ``quantize_linear`` reads. It passes that scale on through operators that it takes
for neutral, and computes them, and the operator that writes the variable, with integers. An
``assign`` ends the propagation: the operators in front of it return floats.
"""

import numpy as np

from ..graph_view import GraphView
from ..op_desc import attribute, inputs, outputs

_NEUTRAL = ("transpose2", "reshape2", "pool2d", "slice", "nearest_interp", "nearest_interp_v2",
            "split")
_CHANGE_RANGE = ("scale", "dropout", "slice", "strided_slice", "split")
_PRODUCTS = ("matmul", "matmul_v2", "mul")
_ELEMENTWISE = ("elementwise_add", "elementwise_sub", "elementwise_mul")
_RELU = ("relu", "relu6")
# Fused with an elementwise operator in front of them.
ACTIVATIONS = (*_RELU, "tanh", "leaky_relu", "swish", "silu", "hard_swish", "sqrt", "abs", "clip",
                "gelu", "sigmoid", "hard_sigmoid", "mish")


class ScalePropagation:
    """Propagation of scales between the operators of a block of ``program``, as of its creation."""

    def __init__(self, program, ops):
        self._arrays, self._view = program.arrays, GraphView(ops)
        self._scaled, self._types = _variables_with_scale(ops), {}

    def slots_to_assign(self, op):
        """Return the slots of ``op`` whose variables must not get or pass on a scale."""
        if op.type == "elementwise_add":
            return self._convolutions_of_another_type(op)
        if _averages(op):
            # Its output would get the scale of its input, which is coarse for a mean.
            (source,) = inputs(op, "X")
            return ("X",) if self._unquantized(source) != source else ()
        if op.type in _PRODUCTS:
            # It is not quantized, but would be by the scale of another layer's quantizer: the mark
            # that excludes such operators is lost with the operator that replaces a product.
            return ("X",) if inputs(op, "X")[0] in self._scaled else ()
        producer = self._view.source(op, "X") if op.type == "quantize_linear" else None
        found = producer is not None and (
            self._changes_range(producer) or self._mixes_types(op) or self._multiplies(op)
            or self._combines(op))
        return ("X",) if found else ()

    @staticmethod
    def _changes_range(op):
        """Return True if the output of ``op`` has another range than its input.

        Paddle Inference clips the input to the range of the output: a squeeze-and-excitation block
        loses all values above the largest mean.
        """
        return op.type in _CHANGE_RANGE or _averages(op)

    def _mixes_types(self, quantize):
        """Return True if a concat in front of ``quantize`` cannot be computed with integers.

        Its inputs get its scale. Paddle Inference refuses the model if some are signed and others
        unsigned integers, and other operators that read the inputs get values on that scale.
        """
        names, concat = self._behind(inputs(quantize, "X")[0])
        if concat is None or concat.type != "concat":
            return False
        sources = inputs(concat, "X")
        types = {self._type(name) for name in sources}
        passed = [name for source in sources for name in self._behind(source)[0]]
        return (len(types) > 1 or None in types
                or not self._are_read_once([*names, *passed], quantize))

    def _multiplies(self, quantize):
        """Return True if a product of two activations takes the output of a relu.

        It needs signed integers, but the output of a relu is unsigned.
        """
        _, producer = self._behind(inputs(quantize, "X")[0])
        if producer is None or producer.type not in _RELU:
            return False
        return any(reader.type in _PRODUCTS
                   and all(self._is_activation(reader, slot) for slot in "XY")
                   for reader in self._view.readers_of_quantized(quantize))

    def _combines(self, quantize):
        """Return True if an addition, subtraction or product in front is computed with integers.

        Paddle Inference subtracts integers of different scales, and refuses operands that differ in
        type. A convolution with a fused addition needs the scale.
        """
        names, _ = self._behind(inputs(quantize, "X")[0])
        _, op = self._behind(names[-1], ACTIVATIONS)
        if op is None or op.type not in _ELEMENTWISE or not all(
                self._unquantized(inputs(op, slot)[0]) in self._scaled for slot in "XY"):
            return False
        return op.type != "elementwise_add" or not any(
            self._convolution_behind(inputs(op, slot)[0]) for slot in "XY")

    def _convolutions_of_another_type(self, addition):
        """Return slots of an addition that must not be fused with the convolution that writes it.

        Fused with an addition, a convolution returns integers of the type of the other operand,
        which is the wrong one if only one of that and the result is behind a relu.
        """
        (result,) = outputs(addition, "Out")
        reader = self._view.sole_consumer(result)
        kind = "s8"
        if reader is not None and reader.type in _RELU:
            kind, (result,) = "u8", outputs(reader, "Out")
        return [slot for slot, other in ("XY", "YX")
                for name in map(self._unquantized, inputs(addition, other))
                if {name, result} <= self._scaled and self._type(name) != kind
                and self._convolution_behind(inputs(addition, slot)[0]) is not None]

    def _convolution_behind(self, name):
        """The convolution whose output a batch norm and a bias make ``name``, which is read once.

        None if another operator makes it.
        """
        for _ in range(3):
            if self._view.sole_consumer(name) is None:
                return None
            name = self._unquantized(name)
            op = self._view.producers.get(name)
            if op is None or self._view.sole_consumer(name) is None:
                return None
            if op.type in ("conv2d", "depthwise_conv2d"):
                return op
            if op.type != "batch_norm" and not (
                    op.type == "elementwise_add" and inputs(op, "Y")[0] in self._arrays):
                return None
            (name,) = inputs(op, "X")
        return None

    def _is_activation(self, op, slot):
        dequantize = self._view.source(op, slot, "dequantize_linear")
        return dequantize is not None and inputs(dequantize, "X")[0] not in self._arrays

    def _behind(self, name, kinds=_NEUTRAL):
        """Return (variables from ``name`` to the first in front of ``kinds``, its producer)."""
        names = [self._unquantized(name)]
        producer = self._view.producers.get(names[0])
        while producer is not None and producer.type in kinds and _source(producer) not in names:
            names.append(self._unquantized(_source(producer)))
            producer = self._view.producers.get(names[-1])
        return names, producer

    def _unquantized(self, name):
        """Return the variable that is quantized and dequantized to ``name``, or ``name``."""
        dequantize = self._view.producers.get(name)
        if dequantize is None or dequantize.type != "dequantize_linear":
            return name
        quantize = self._view.source(dequantize, "X", "quantize_linear")
        return name if quantize is None else inputs(quantize, "X")[0]

    def _are_read_once(self, names, quantize):
        """Return True if only ``quantize``, and others of its scale, read the variables.

        One between operators that pass it on may be read once, by a quantizer of the same scale
        or by the next of them. With another scale in front of ``nearest_interp_v2``, Paddle
        Inference is wrong behind it: relative error 0.78 in a small network.
        """
        first, *others = names
        next_readers = [self._view.sole_consumer(name) for name in others]
        readers = [reader for reader in (*self._view.consumers[first], *next_readers)
                   if reader is not None]
        return (all(reader is not None and reader.type == "quantize_linear"
                    for reader in self._view.consumers[first])
                and None not in next_readers
                and all(np.array_equal(self._scale(reader), self._scale(quantize))
                        for reader in readers if reader.type == "quantize_linear"))

    def _scale(self, quantize):
        return self._arrays.get(inputs(quantize, "Scale")[0])

    def _type(self, name):
        """Return "s8" or "u8", as which Paddle Inference holds a variable, or None if unknown.

        Convolutions return unsigned integers if a relu is fused with them.
        """
        if name not in self._types:
            self._types[name] = None  # of a loop
            self._types[name] = self._find_type(name)
        return self._types[name]

    def _find_type(self, name):
        names, producer = self._behind(name)
        passed = [self._view.producers[each] for each in names[:-1]]
        if producer is None or producer.type == "concat" or any(map(self._changes_range, passed)):
            return None
        if producer.type not in _RELU:
            return "s8"
        (name,) = inputs(producer, "X")
        convolution, addition = self._convolution_behind(name), self._view.producers.get(name)
        if convolution is not None:
            return "u8" if self._is_activation(convolution, "Input") else None
        is_fused = addition is not None and addition.type == "elementwise_add" and (
            self._view.sole_consumer(name) is not None
            and any(self._convolution_behind(inputs(addition, slot)[0]) for slot in "XY")
            and not self._convolutions_of_another_type(addition))
        return "u8" if is_fused and self._is_quantized(names[-1]) else None

    def _is_quantized(self, name):
        return any(op is not None and op.type == "quantize_linear"
                   for op in self._view.consumers.get(name, ()))


def _averages(op):
    return op.type == "pool2d" and attribute(op, "pooling_type") == "avg"


def _variables_with_scale(ops):
    """Return the variables that get a scale from a ``quantize_linear``, by any propagation."""
    found = {inputs(op, "X")[0] for op in ops if op.type == "quantize_linear"}
    neutral = [{_source(op), *outputs(op, "Out")} for op in ops if op.type in (*_NEUTRAL, "scale")]
    concats = [op for op in ops if op.type == "concat"]
    size = -1
    while size != len(found):
        size = len(found)
        for names in neutral:
            if not found.isdisjoint(names):
                found |= names
        for op in concats:
            if outputs(op, "Out")[0] in found:
                found.update(inputs(op, "X"))
    return found


def _source(op):
    return inputs(op, "Input" if op.type == "slice" else "X")[0]
