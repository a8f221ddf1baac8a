"""Products with weights of 4 bits as ``MatMulNBits``, which ONNX Runtime computes in float.

ONNX Runtime fuses the DequantizeLinear of a weight and a MatMul into this operator itself, but then
rounds the other factor to 8 bits by default. The attribute ``accuracy_level`` prevents that.
"""

import numpy as np

from .graph import attribute, make_node

FLOAT_PRODUCTS = "session.qdq_matmulnbits_accuracy_level=1"
"""Entry of the session configuration with which ONNX Runtime fuses them into products in float."""

_DOMAIN = "com.microsoft"
_FLOAT = 1  # accuracy_level: compute in float32
_SIZES = (16, 32, 64, 128, 256)  # blocks that the operator supports


def use_matmul_nbits(graph):
    """Replace the MatMul of each weight of 4 bits that ONNX Runtime would fuse, in place."""
    view, stored, replaced = graph.view(), {}, {}
    for node in graph.nodes:
        weight = view.producers.get(node.input[1]) if node.op_type == "MatMul" else None
        size = None if weight is None else _block_size(graph, weight)
        if size is None:
            continue
        name = node.input[1]
        if name not in stored:
            stored[name] = _packed(graph, weight, size)
        inputs, rows, columns = stored[name]
        replaced[id(node)] = [make_node(
            "MatMulNBits", [node.input[0], *inputs], node.output[0], domain=_DOMAIN, K=rows,
            N=columns, bits=4, block_size=size, accuracy_level=_FLOAT)]
    graph.replace(replaced)


def has_products_to_fuse(graph):
    """Return True if a MatMul multiplies a float tensor by a dequantized weight."""
    view = graph.view()

    def dequantizes(name):
        return name in view.producers and view.producers[name].op_type == "DequantizeLinear"

    return any(dequantizes(node.input[1]) and not dequantizes(node.input[0])
               and view.producers[node.input[1]].input[0] in graph.constants
               for node in graph.nodes if node.op_type == "MatMul")


def _block_size(graph, node):
    """Return the block size if ``node`` dequantizes a weight of 4 bits, None for other nodes."""
    if node.op_type != "DequantizeLinear" or node.input[0] not in graph.types:
        return None
    rows = graph.constants[node.input[0]].shape
    if len(rows) != 2:
        return None
    size = attribute(node, "block_size")
    if size is not None:
        return size if size in _SIZES and attribute(node, "axis") == 0 else None
    if attribute(node, "axis", 1) != 1 and graph.constants[node.input[1]].size > 1:
        return None
    # The rows have one scale: blocks as large as possible need the fewest copies of it.
    return next((size for size in _SIZES if size >= rows[0]), _SIZES[-1])


def _packed(graph, node, size):
    """Add the constants of the weight; return (their names, rows, columns)."""
    integers, scale, zero = (graph.constants[name] for name in node.input)
    (rows, columns), blocks = integers.shape, -(-integers.shape[0] // size)
    # The operator's integers are unsigned, with 8 as the default of the zero point.
    shift = 8 if integers.dtype == np.int8 else 0
    scale, zero = (np.broadcast_to(each, [blocks, columns]) for each in (scale, zero))
    values = np.full([blocks * size, columns], shift, np.uint8)
    values[:rows] = integers.astype(np.int16) + shift
    # [columns, blocks, bytes of a block]
    packed = _pairs(values.T).reshape([columns, blocks, size // 2])
    name = node.input[0]
    names = [graph.constant(f"{name}.packed", packed),
             graph.constant(f"{name}.scales", np.ascontiguousarray(scale.T).reshape(-1))]
    if shift == 0 or zero.any():
        names.append(graph.constant(f"{name}.zero_points", _pairs(
            (zero.T.astype(np.int16) + shift).astype(np.uint8)).reshape(-1)))
    return names, rows, columns


def _pairs(values):
    """Store two values of the last axis in a byte, the first one in the low bits."""
    values = np.pad(values, [(0, 0), (0, values.shape[1] % 2)])
    return values[:, ::2] | values[:, 1::2] << 4
