"""Weighted operators of a saved program as ordinary layers of ``paddle.nn``.

:func:`plan_layers` decides from the program alone which operators become layers. A bias add that
only follows its operator is part of the layer. Exporting reads the same plan to put the layers'
values and quantizers back into the program.
"""

from dataclasses import dataclass, field
from itertools import chain, count
from typing import Dict, List, Optional, Tuple

import numpy as np
from paddle import ParamAttr, nn
from paddle.nn.initializer import Constant

from .._paddle_compat import RUNNING_STATISTICS
from ..export.program.graph_view import GraphView
from ..export.program.op_desc import DENSE_TENSOR, shape_of
from ..export.program.program import Program
from ..nn.tracing import MARKER_FACTOR
from .functions import unless_minus_one
from .nn_functions import convolution_options, norm_layout
from .operators import Operator

_CONVOLUTIONS = {"conv2d": (nn.Conv2D, 2), "depthwise_conv2d": (nn.Conv2D, 2),
                 "conv3d": (nn.Conv3D, 3), "conv2d_transpose": (nn.Conv2DTranspose, 2),
                 "depthwise_conv2d_transpose": (nn.Conv2DTranspose, 2),
                 "conv3d_transpose": (nn.Conv3DTranspose, 3)}
_PRODUCTS = ("mul", "matmul", "matmul_v2")
_BATCH_NORMS = {2: nn.BatchNorm1D, 3: nn.BatchNorm1D, 4: nn.BatchNorm2D, 5: nn.BatchNorm3D}


@dataclass
class LayerBinding:
    """The connection of a layer with its operators in the program."""

    name: str
    operator: Operator  # the weighted one
    source: str  # slot of the data
    target: str  # variable that the layer computes
    parameters: Dict[str, str]  # attribute of the layer -> parameter of the program
    # Operator and slot that read the weight from its parameter: the operator itself, or the first
    # of the operators that reshape it (the weight of a Conv1D).
    weight_reader: Tuple[Operator, str]
    bias_add: Optional[Operator] = None
    merged: List[int] = field(default_factory=list)  # positions in the block of further operators
    transposed: bool = False  # the layer's weight is the transpose of the parameter
    flattened: Optional[int] = None  # leading axes that stay when the data of a mul is flattened

    @property
    def weight(self) -> str:
        """The parameter of the program that the layer is named after."""
        return next(iter(self.parameters.values()))


class ProgramGraph(GraphView):
    """View of a whole program with the shapes and values of its variables."""

    def __init__(self, program: Program, blocks: List[List[Operator]]):
        super().__init__(chain.from_iterable(blocks), Operator.all_inputs, Operator.all_outputs)
        self.arrays = program.arrays
        self.shapes = {var.name: shape_of(var) for block in program.desc.blocks
                       for var in block.vars if var.type.type == DENSE_TENSOR}

    def is_parameter(self, name):
        return name in self.arrays and name not in self.producers

    def unmarked(self, name):
        """Return the variable before the markers of an export, where each is read only once."""
        maker = self.producers.get(name)
        while maker is not None and is_marker(maker) and self.sole_consumer(name) is not None:
            name = maker.input("X")
            maker = self.producers.get(name)
        return name

    def is_float_parameter(self, name):
        return self.is_parameter(name) and self.arrays[name].dtype.kind != "i"

    def sole_consumer(self, name):
        return None if name in self.rewritten else super().sole_consumer(name)


def is_marker(op: Operator) -> bool:
    """Return True for the operator that stands for a quantizer while an export is traced."""
    return op.type == "scale" and op.get("scale") == MARKER_FACTOR


def plan_layers(program: Program, blocks: List[List[Operator]]) -> Dict[str, LayerBinding]:
    """Return the name of each sublayer -> its :class:`LayerBinding`, in the order of execution."""
    graph, bindings = ProgramGraph(program, blocks), {}
    for op in chain.from_iterable(blocks):
        binding = _BINDERS[op.type](graph, op) if op.type in _BINDERS else None
        if binding is not None:
            stem = layer_name(binding.weight)
            names = chain([stem], (f"{stem}_{number}" for number in count(2)))
            op.layer = binding.name = next(name for name in names if name not in bindings)
            bindings[binding.name] = binding
    return bindings


def layer_name(parameter: str) -> str:
    """Return the name of the layer of a weight: ``conv2d_0.w_0`` belongs to ``conv2d_0``."""
    stem, _, ending = parameter.rpartition(".")
    return (stem if stem and ending.startswith("w_") else parameter).replace(".", "_")


def _bind_convolution(graph, op):
    reader, slot, merged = op, "Filter", []
    while True:
        weight = reader.input(slot)
        maker = graph.producers.get(weight)
        if maker is None or not (maker.type in ("unsqueeze2", "assign") or is_marker(maker)) or (
                graph.sole_consumer(weight) is None or maker.block != op.block):
            break
        merged.append(maker.position)
        reader, slot = maker, "X"
    if not graph.is_float_parameter(weight):
        return None
    if op.inputs.get("OutputSizeTensor") or op.get("output_size"):
        return None  # the layers take it as an argument of each call
    binding = LayerBinding("", op, "Input", op.output("Output"), {"weight": weight},
                           (reader, slot), merged=merged)
    last = str(op.get("data_format", "NCHW")).endswith("C")
    rank, shape = _CONVOLUTIONS[op.type][1] + 2, graph.arrays[weight].shape
    channels = shape[1] * (op.get("groups", 1) or 1) if "transpose" in op.type else shape[0]
    _bind_bias(graph, binding, rank - 1 if last else 1, rank, channels)
    return binding


def _bind_product(graph, op):
    weight, shape = graph.unmarked(op.input("Y")), graph.shapes.get(op.input("X"))
    if not graph.is_float_parameter(weight) or graph.arrays[weight].ndim != 2 or shape is None:
        return None
    rank, transposed = len(shape), False
    if op.type == "mul":
        if op.get("y_num_col_dims", 1) != 1:
            return None
        rank = op.get("x_num_col_dims", 1) + 1
    else:
        stem, (x, y) = ("trans_", "xy") if op.type == "matmul_v2" else ("transpose_", "XY")
        if op.get(stem + x, False) or op.get("alpha", 1.0) != 1.0:
            return None
        transposed = op.get(stem + y, False)
        if transposed and graph.sole_consumer(weight) is None:
            return None  # one parameter cannot be the weight of a Linear and its transpose
    binding = LayerBinding("", op, "X", op.output("Out"), {"weight": weight}, (op, "Y"),
                           transposed=transposed,
                           flattened=None if rank == len(shape) else rank - 1)
    if rank >= 2:
        channels = graph.arrays[weight].shape[0 if transposed else 1]
        _bind_bias(graph, binding, rank - 1, rank, channels)
    return binding


def _bind_bias(graph, binding, axis, rank, channels):
    """Make the addition of a bias part of the layer if it is the only reader of the product."""
    add = graph.sole_consumer(binding.target)
    if (add is None or add.type != "elementwise_add" or add.block != binding.operator.block
            or add.input("X") != binding.target):
        return
    bias, merged, shape = add.input("Y"), [], None
    if graph.is_parameter(bias):
        if graph.arrays[bias].ndim != 1:
            shape = graph.arrays[bias].shape
        elif add.get("axis", -1) not in ((axis, -1) if axis == rank - 1 else (axis,)):
            return
    else:
        reshape = graph.producers.get(bias)
        if (reshape is None or reshape.type not in ("reshape2", "reshape")
                or graph.sole_consumer(bias) is None or reshape.block != add.block
                or not graph.is_parameter(reshape.input("X"))
                or reshape.inputs.get("Shape") or reshape.inputs.get("ShapeTensor")):
            return
        shape = reshape.get("shape", [])
        bias, merged = reshape.input("X"), [reshape.position]
    if shape is not None and (len(shape) != rank or any(
            size != 1 for i, size in enumerate(shape) if i != axis)):
        return
    array = graph.arrays[bias]
    if array.size != channels or array.dtype != graph.arrays[binding.weight].dtype:
        return
    binding.parameters["bias"], binding.bias_add = bias, add
    binding.merged += [*merged, add.position]
    binding.target = add.output("Out")


def _bind_embedding(graph, op):
    weight = op.input("W")
    if not graph.is_float_parameter(weight):
        return None
    return LayerBinding("", op, "Ids", op.output("Out"), {"weight": weight}, (op, "W"))


def _bind_batch_norm(graph, op):
    names = {attribute: op.input(slot) for attribute, slot in zip(
        ("weight", "bias", *RUNNING_STATISTICS), ("Scale", "Bias", "Mean", "Variance"))}
    shape = graph.shapes.get(op.input("X"))
    if (not op.get("is_test", False) or shape is None or len(shape) not in _BATCH_NORMS
            or any(name not in graph.arrays for name in names.values())):
        return None
    return LayerBinding("", op, "X", op.output("Y"), names, (op, "Scale"))


def _bind_layer_norm(graph, op):
    names = {"weight": op.input("Scale"), "bias": op.input("Bias")}
    shape = graph.shapes.get(op.input("X"))
    if (shape is None or len(shape) - op.get("begin_norm_axis", 1) != 1
            or not all(map(graph.is_parameter, names.values()))):
        return None
    return LayerBinding("", op, "X", op.output("Y"), names, (op, "Scale"))


def _bind_recurrent(graph, op):
    names, a = op.inputs.get("WeightList", []), op.attributes
    if not names or not all(graph.is_parameter(name) for name in names):
        return None
    parts = [f"l{layer}{suffix}" for layer in range(a.get("num_layers", 1))
             for suffix in ["", "_reverse"][:1 + a.get("is_bidirec", False)]]
    attributes = [f"{kind}_{where}_{part}" for kind in ("weight", "bias") for part in parts
                  for where in ("ih", "hh")]
    if len(attributes) != len(names) or len(set(names)) != len(names):
        return None
    return LayerBinding("", op, "Input", op.output("Out"), dict(zip(attributes, names)),
                        (op, "WeightList"))


_BINDERS = {**dict.fromkeys(_CONVOLUTIONS, _bind_convolution),
            **dict.fromkeys(_PRODUCTS, _bind_product), "lookup_table_v2": _bind_embedding,
            "batch_norm": _bind_batch_norm, "layer_norm": _bind_layer_norm, "rnn": _bind_recurrent}


def make_layer(binding: LayerBinding, program: Program) -> nn.Layer:
    """Return a new layer for a binding; its parameters have no values of the program yet."""
    op, arrays = binding.operator, program.arrays
    weight = arrays[binding.weight]
    if op.type == "rnn":
        a, mode = op.attributes, op.get("mode", "RNN_TANH")
        cls = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(mode, nn.SimpleRNN)
        options = {"activation": mode[4:].lower()} if cls is nn.SimpleRNN else {}
        return cls(a["input_size"], a["hidden_size"], a.get("num_layers", 1),
                   "bidirect" if a.get("is_bidirec", False) else "forward", time_major=True,
                   dropout=a.get("dropout_prob", 0.0), **options)
    zero = ParamAttr(initializer=Constant(0.0))
    bias = ParamAttr(initializer=Constant(0.0)) if "bias" in binding.parameters else False
    if op.type in _CONVOLUTIONS:
        cls, rank = _CONVOLUTIONS[op.type]
        options = {**convolution_options(op), "weight_attr": zero, "bias_attr": bias}
        # Conv1D: the weight gets its missing axis of size 1.
        kernel = [1] * (rank + 2 - weight.ndim) + list(weight.shape[2:])
        channels = weight.shape[0], weight.shape[1] * options["groups"]
        return cls(*(channels if "transpose" in op.type else channels[::-1]), kernel, **options)
    if op.type in _PRODUCTS:
        inner, outer = weight.shape[::-1] if binding.transposed else weight.shape
        return nn.Linear(inner, outer, weight_attr=zero, bias_attr=bias)
    if op.type == "lookup_table_v2":
        return nn.Embedding(*weight.shape, weight_attr=zero,
                            padding_idx=unless_minus_one(op.get("padding_idx", -1)))
    if op.type == "batch_norm":
        rank = len(shape_of(program.variable(op.input("X"), program.desc.blocks[op.block])))
        return _BATCH_NORMS[rank](
            weight.size, momentum=op.get("momentum", 0.9), epsilon=op.get("epsilon", 1e-5),
            weight_attr=zero, bias_attr=bias,
            data_format=norm_layout(op, rank))  # use_global_stats is set by each evaluation
    return nn.LayerNorm(weight.size, epsilon=op.get("epsilon", 1e-5), weight_attr=zero,
                        bias_attr=bias)


def transposed_to(shape: List[int], array: np.ndarray, binding: LayerBinding,
                  attribute: str) -> np.ndarray:
    """Return a parameter of the program as the layer keeps it, or the reverse, in ``shape``."""
    array = array.T if binding.transposed and attribute == "weight" else array
    return np.ascontiguousarray(array).reshape(shape)
