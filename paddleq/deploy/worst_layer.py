"""Search of the layer at which the error of a runtime increases most.

The model is cut after its layers, one cut at a time. Each part is computed by the runtime with all
its optimizations, and operator by operator. So fusions are those of the whole model up to the cut.
"""

import os

import numpy as np

from .._atomic_write import temporary_folder
from ..export.onnx.graph import OnnxGraph
from ..export.openvino import require_openvino
from ..export.program.op_desc import (
    DENSE_TENSOR,
    all_inputs,
    all_outputs,
    dtype_of,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
)
from ..export.program.passes.stored_weights import stored_weights
from .metrics import relative_error
from .model_file import ModelFile
from .runtimes.base import load_reference

_MAX_CUTS = 16  # in each of two passes
# Operators that belong to the layer before them.
_FUSED = {"QuantizeLinear", "DequantizeLinear", "Clip", "MaxPool", "Relu", "Add", "Sub"}


def worst_layer(file, runtime, threads, batch):
    """Return (name of the layer's weight, error before, error after); None without layers."""
    places = {".onnx": _onnx_layer_outputs, ".xml": _openvino_layer_outputs}.get(
        file.kind, _paddle_layer_outputs)(file)
    return _search(places, file, runtime, threads, batch)


def worst_operator(file, runtime, threads, batch):
    """Return (type of an operator and its output, error before, error after), or None."""
    if file.kind == ".xml":
        ops = [(node.get_type_name(), _sources(node), *[[node.get_friendly_name()]] * 2)
               for node in _openvino_nodes(file.path)]
    elif file.kind == ".onnx":
        model = file.onnx_model()
        floats = _onnx_floats(model)
        ops = [(node.op_type, node.input, node.output,
                [name for name in node.output if name in floats])
               for node in OnnxGraph(model).nodes]
    else:
        block = file.program.desc.blocks[0]
        floats = {var.name for var in block.vars if var.type.type == DENSE_TENSOR
                  and dtype_of(var) == "float32"}
        for op in block.ops:
            # Shapes and integers are declared as floats. A runtime does not round what ends in a
            # quantizer.
            floats.difference_update(outputs(op, "XShape"), all_outputs(op) if op.type in (
                "quantize_linear", "dequantize_linear") else ())
        ops = [(op.type, all_inputs(op), all_outputs(op),
                [name for name in all_outputs(op) if name in floats])
               for op in block.ops if op.type not in ("feed", "fetch")]
    varying, places = {info.name for info in file.inputs}, []
    for kind, read, written, made in ops:
        if not varying.isdisjoint(read):
            varying.update(written)
        if made and not varying.isdisjoint(made):
            places.append((f"{kind} ({made[0]})", made[0]))
    return _search(places, file, runtime, threads, batch)


def _onnx_floats(model):
    """Return the names of the float tensors of an ``onnx.ModelProto``."""
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    return {value.name for value in (*graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _search(places, file, runtime, threads, batch):
    """Find the place, of (name, tensor) in order, at which the error increases most."""
    if not places:
        return None
    errors, before, after = {}, 0, len(places) - 1
    for _ in range(2):
        first = max(before, 0)
        cuts = np.linspace(first, after, min(_MAX_CUTS, after - first + 1)).round().astype(int)
        for number in sorted({*cuts.tolist()} - errors.keys()):
            errors[number] = _error(file, places[number][1], runtime, threads, batch)
        numbers = sorted(errors)  # -1: before the first layer
        before, after = max(zip([-1, *numbers], numbers), key=lambda pair: (
            errors[pair[1]] - errors.get(pair[0], 0.0)))
    return places[after][0], errors.get(before, 0.0), errors[after]


def _error(file, tensor, runtime, threads, batch):
    with temporary_folder() as folder:
        part = {".onnx": _cut_onnx, ".xml": _cut_openvino}.get(file.kind, _cut_paddle)(
            file, tensor, folder)
        found = []
        for session in (runtime.load(part, threads), load_reference(part)):
            given = {info.name: array for info, array in zip(file.inputs, batch)}
            found.append([session.run([given[info.name] for info in session.inputs])])
            session.close()
        return relative_error(*found)


def _layer_outputs(ops, weights, inputs):
    """Return (name of a weight, output of its operator) pairs in order.

    An output that depends on no input (positions of an embedding) is folded into a constant by
    Paddle Inference, which refuses to fetch it. The first operator that combines it with an input
    takes its place. ``weights`` maps variables to the weight that they are made of.
    """
    weights, varying, places = dict(weights), set(inputs), []
    for read, made in ops:
        if not varying.isdisjoint(read):
            varying.update(made)
        weight = next((weights[name] for name in read if name in weights), None)
        if weight is not None and made[0] in varying:
            places.append((weight, made[0]))
        elif weight is not None:
            weights[made[0]] = weight
    return places


def _paddle_layer_outputs(file):
    ops = list(file.program.desc.blocks[0].ops)
    weights = {target: weight.name
               for target, weight in stored_weights(file.program, ops).items()}
    return _layer_outputs([(all_inputs(op), all_outputs(op)) for op in ops], weights,
                          [info.name for info in file.inputs])


def _cut_paddle(file, tensor, folder):
    part = file.program.copy()
    block = part.desc.blocks[0]
    fetch = next(op for op in block.ops if op.type == "fetch")
    set_input(fetch, "X", tensor)
    set_attribute(fetch, "col", 0)
    needed, kept = {tensor}, [fetch]
    for op in reversed(block.ops):
        # Every feed operator stays: without one the places of the others have gaps.
        if op.type == "feed" or (op.type != "fetch" and not needed.isdisjoint(all_outputs(op))):
            needed.update(all_inputs(op))
            kept.append(op)
    replace_ops(block, kept[::-1])
    part.remove_unused_parameters()
    path = os.path.join(folder, "part")
    part.save(path + ".pdmodel", path + ".pdiparams", workarounds=False)
    return ModelFile(path + ".pdmodel")


def _onnx_layer_outputs(file):
    graph = OnnxGraph(file.onnx_model())
    view = graph.view()
    weights = {name: name.partition(".packed")[0] for node in graph.nodes
               if node.op_type in ("DequantizeLinear", "Cast", "MatMulNBits")
               for name in node.input if name in graph.constants
               and graph.constants[name].ndim > 1 and graph.constants[name].dtype.kind != "f"}
    places = _layer_outputs([(node.input, node.output) for node in graph.nodes], weights,
                            graph.inputs)
    return [(weight, _after_fused(view, name)) for weight, name in places]


def _after_fused(view, name):
    """Return the last output of the operators that are fused with the one that writes ``name``."""
    reader = view.sole_consumer(name)
    while reader is not None and reader.op_type in _FUSED:
        name = reader.output[0]
        if reader.op_type == "DequantizeLinear":
            break
        reader = view.sole_consumer(name)
    return name


def _cut_onnx(file, tensor, folder):
    from onnx import TensorProto, helper

    model = file.onnx_model()
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    graph = OnnxGraph(model)
    graph.remove_unused()
    read = {name for node in graph.nodes for name in node.input}
    for each in [each for each in model.graph.input if each.name not in read]:
        model.graph.input.remove(each)
    path = os.path.join(folder, "part.onnx")
    with open(path, "wb") as out:
        out.write(graph.finish(model.opset_import[0].version).SerializeToString())
    return ModelFile(path, trusted=True)


def _openvino_nodes(path):
    """Return the nodes of an ``.xml`` with one float output, constants left out, in order."""
    openvino = require_openvino()
    return [node for node in openvino.Core().read_model(path).get_ordered_ops()
            if node.get_type_name() not in ("Constant", "Parameter", "Result")
            and node.get_output_size() == 1 and node.get_output_element_type(0).is_real()]


def _sources(node):
    return [value.get_node().get_friendly_name() for value in node.input_values()]


def _openvino_layer_outputs(file):
    """Nodes stand for their outputs; weights are named after the constant of integers."""
    nodes, weights = _openvino_nodes(file.path), {}
    for node in nodes:
        sources = [value.get_node() for value in node.input_values()]
        constant = sources[0]
        if node.get_type_name() == "Convert" and constant.get_type_name() == "Constant" and len(
                constant.get_output_shape(0)) > 1:
            weights[node.get_friendly_name()] = constant.get_friendly_name()
    return _layer_outputs([(_sources(node), [node.get_friendly_name()]) for node in nodes], weights,
                          [info.name for info in file.inputs])


def _cut_openvino(file, tensor, folder):
    openvino = require_openvino()
    model = openvino.Core().read_model(file.path)
    node = next(each for each in model.get_ops() if each.get_friendly_name() == tensor)
    needed, stack = set(), [node]
    while stack:
        for value in stack.pop().input_values():
            if value.get_node().get_friendly_name() not in needed:
                needed.add(value.get_node().get_friendly_name())
                stack.append(value.get_node())
    part = openvino.Model([node.output(0)], [each for each in model.get_parameters()
                                             if each.get_friendly_name() in needed])
    path = os.path.join(folder, "part.xml")
    openvino.serialize(part, path)
    return ModelFile(path)
