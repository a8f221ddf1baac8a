"""Editable ONNX graph with a use-def view."""

from operator import attrgetter

import numpy as np

from ..program.graph_view import GraphView, Names

# (onnx is imported where it is needed: it is optional, importing this file is not.)


class OnnxGraph:
    """Nodes and constants of an ``onnx.ModelProto``, whose inputs and outputs are kept."""

    def __init__(self, model):
        from onnx import numpy_helper

        self.model = model
        self.types = {}  # name -> element type, for constants of a type that numpy lacks (int4)
        self.inputs = [value.name for value in model.graph.input]
        self._results = [value.name for value in model.graph.output]
        self.constants = {each.name: numpy_helper.to_array(each)  # and values of Constant nodes
                          for each in model.graph.initializer}
        self.nodes = []  # in topological order
        for node in model.graph.node:
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
            elif (node.op_type == "Identity" and node.output[0] not in self._results
                    and self.scalar(node.input[0]) is not None):
                # paddle2onnx 2.x copies numbers, such as the factor of a marker.
                self.constants[node.output[0]] = self.constants[node.input[0]]
            else:
                self.nodes.append(node)
        inner = [graph for node in self.nodes for graph in all_subgraphs(node)]
        for graph in inner:
            self._move_constants(graph)
        names = Names(name for part in [model.graph, *inner] for node in part.node
                      for name in [*node.input, *node.output])
        self.keep_captured()
        names.update(self.inputs, self.outputs, self.constants)
        self.fresh = names.fresh

    def _move_constants(self, graph):
        """Move constants of a subgraph to the outer graph."""
        from onnx import numpy_helper

        self.constants.update((each.name, numpy_helper.to_array(each))
                              for each in graph.initializer)
        del graph.initializer[:]
        kept = []
        for node in graph.node:
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is None or node.output[0] in {each.name for each in graph.output}:
                kept.append(node)
            else:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        set_nodes(graph, kept)

    def keep_captured(self):
        """Update ``outputs``: names that must remain.

        They are those of the outputs and of tensors that branches and loop bodies read.
        """
        self.outputs = dict.fromkeys(self._results)
        self.outputs.update(dict.fromkeys(name for node in self.nodes for name in captured(node)))

    def constant(self, name, array, element_type=None):
        """Add a constant and return its name."""
        name = self.fresh(name)
        self.constants[name] = np.asarray(array)
        if element_type is not None:
            self.types[name] = element_type
        return name

    def scalar(self, name):
        """Value of the constant ``name`` if it is a single number, else None."""
        array = self.constants.get(name)
        return array.reshape(-1)[0].item() if array is not None and array.size == 1 else None

    def addends(self, node):
        """Names of the tensor and the constant that an Add adds, (None, None) for other nodes."""
        pairs = (node.input, node.input[::-1]) if node.op_type == "Add" else ()
        return next(((x, added) for x, added in pairs if added in self.constants), (None, None))

    def view(self):
        """Use-def view of the nodes; None consumes the outputs of the model."""
        return GraphView(self.nodes, attrgetter("input"), attrgetter("output"), self.outputs)

    def rename_inputs(self, renamed, nodes=None):
        """Replace inputs ``name`` of all nodes, or of ``nodes``, by ``renamed[name]``."""
        for node in self.nodes if nodes is None else nodes:
            for i, name in enumerate(node.input):
                while name in renamed:
                    name = node.input[i] = renamed[name]

    def replace(self, replaced):
        """Replace nodes by ``replaced[id(node)]``, a list of nodes."""
        self.nodes = [new for node in self.nodes for new in replaced.get(id(node), [node])]

    def remove(self, nodes):
        self.replace({id(node): [] for node in nodes})

    def remove_unused(self):
        """Remove nodes and constants that no output depends on."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items()
                          if name in needed}

    def finish(self, opset):
        """Write nodes and constants into the model and return it."""
        from onnx import helper

        self.remove_unused()
        graph = self.model.graph
        nodes = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        for field in (graph.node, graph.initializer, graph.value_info):
            del field[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self.tensor(name, array)
                                 for name, array in self.constants.items())
        del self.model.opset_import[1:]
        self.model.opset_import[0].domain, self.model.opset_import[0].version = "", opset
        self.model.opset_import.extend(helper.make_opsetid(domain, 1)
                                       for domain in sorted({node.domain for node in nodes} - {""}))
        self.model.ir_version = max(self.model.ir_version, helper.find_min_ir_version_for(
            self.model.opset_import[:1]))
        return self.model

    def tensor(self, name, array):
        """Return the message of a constant."""
        from onnx import TensorProto, numpy_helper

        if name not in self.types:
            return numpy_helper.from_array(np.asarray(array, order="C"), name)
        # Two values per byte, the first one in the low bits.
        flat = array.reshape(-1).astype(np.uint8) & 15
        pairs = np.append(flat, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
        return TensorProto(name=name, dims=array.shape, data_type=self.types[name],
                           raw_data=(pairs[:, 0] | pairs[:, 1] << 4).tobytes())


def subgraphs(node):
    """Return the branches of an If or the body of a Loop or Scan; usually none."""
    return [graph for each in node.attribute
            for graph in ([each.g] if each.HasField("g") else each.graphs)]


def all_subgraphs(node):
    """Return the subgraphs of a node and of the nodes in them, inner ones first."""
    found = []
    for graph in subgraphs(node):
        for inner in graph.node:
            found += all_subgraphs(inner)
        found.append(graph)
    return found


def set_nodes(graph, nodes):
    """Replace the nodes of a subgraph."""
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def captured(node):
    """Return the names of the outer tensors that the subgraphs of a node read."""
    found = {}
    for graph in subgraphs(node):
        own = {each.name for each in [*graph.input, *graph.initializer]}
        own.update(name for inner in graph.node for name in inner.output)
        read = [name for inner in graph.node for name in [*inner.input, *captured(inner)]]
        read += [each.name for each in graph.output]
        found.update(dict.fromkeys(name for name in read if name and name not in own))
    return list(found)


def make_node(kind, inputs, output, **attributes):
    """Create a node with one output, named after the output."""
    from onnx import helper

    return helper.make_node(kind, list(inputs), [output], name=f"{kind}:{output}",
                            **attributes)


def attribute(node, name, default=None):
    """Value of an attribute, or ``default`` if the node lacks it."""
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name),
                default)


def set_attribute(node, name, value):
    from onnx import helper

    for each in [each for each in node.attribute if each.name == name]:
        node.attribute.remove(each)
    node.attribute.append(helper.make_attribute(name, value))
