"""Matrix products of tensors that oneDNN does not store contiguously.

oneDNN stores the output of a convolution in blocks of channels. Paddle Inference's matrix products,
and those with a reshape and a transpose fused into them, read it as if it were contiguous (2.6 to
3.3, in float too). The output of ``assign`` is contiguous.
"""

from ..graph_view import GraphView
from ..op_desc import all_inputs, inputs

_PRODUCTS = ("matmul", "matmul_v2")
_FUSED = ("reshape2", "transpose2")
_CONTIGUOUS = (*_PRODUCTS, "mul", "reshape2", "flatten_contiguous_range", "softmax", "layer_norm",
               "assign", "feed")
_BLOCKED = ("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose", "pool2d",
            "depthwise_conv2d_transpose", "conv3d_transpose")


class BlockedLayouts:
    """Layouts of the variables of a block with ``ops``."""

    def __init__(self, ops):
        self._view, self._known = GraphView(ops), {}

    def slots_to_assign(self, op):
        """Return the slots of a product, or of the quantizer in front of it, that need assign."""
        if op.type == "quantize_linear":
            readers = self._view.readers_of_quantized(op)
            slots = "X" if any(reader.type in _PRODUCTS for reader in readers) else ""
        else:
            slots = [slot for slot in ("XY" if op.type in _PRODUCTS else "")
                     if self._view.source(op, slot, "dequantize_linear") is None]
        return [slot for slot in slots if self._is_read_blocked(inputs(op, slot)[0])]

    def _is_read_blocked(self, name):
        """Return True if a product reads a blocked tensor, perhaps through fused operators."""
        names = {name}
        while True:
            op = self._view.producers.get(name)
            if op is None or op.type not in _FUSED or inputs(op, "X")[0] in names:
                return self._is_blocked(name)
            (name,) = inputs(op, "X")
            names.add(name)

    def _is_blocked(self, name):
        op = self._view.producers.get(name)
        if op is None or op.type in _CONTIGUOUS:
            return False
        if name not in self._known:
            self._known[name] = False  # of a loop
            self._known[name] = op.type in _BLOCKED or any(map(self._is_blocked, all_inputs(op)))
        return self._known[name]
