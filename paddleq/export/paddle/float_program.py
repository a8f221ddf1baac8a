"""The float program of a quantized model: what it would be with the markers taken out."""

import numpy as np

from .lower import Rewriter, simulated_weight


def take_marks_out(program, marks):
    """Leave activations as they are and weights in float, in place.

    Weights are those before quantization; of integers only, what they stand for.
    """
    _FloatRewriter(program, marks, onnx_format=True).run()


class _FloatRewriter(Rewriter):
    def activation(self, block, mark, source, target):
        self.renamed[target] = self.renamed.get(source, source)
        return []

    def weight(self, block, mark, source, target):
        value = simulated_weight(mark) if mark.value is None else mark.value
        if np.array_equal(self.program.arrays.get(source), value):  # not twice in the file
            self.renamed[target] = source
            return []
        return self.float_weight(mark, source, target, value)
