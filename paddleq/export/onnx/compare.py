"""Comparison of a float ONNX graph with the program from which it was converted.

Both compute the same random inputs: the program in Paddle Inference as it stands, the graph in ONNX
Runtime without optimization. Quantizers are left out, so that no rounding border hides a
difference.
"""

import importlib.util
import logging
from typing import Any, Dict, List, Optional

import numpy as np

from ...errors import ExportError
from ..program.graph_view import GraphView
from ..program.inference import (
    feed_names,
    fetch_names,
    load_as_it_stands,
    run_predictor,
    set_feeds_and_fetches,
)
from ..program.op_desc import (
    DENSE_TENSOR,
    all_inputs,
    all_outputs,
    attribute,
    dtype_of,
    shape_of,
)
from .graph import OnnxGraph, captured
from .random_inputs import random_inputs

_logger = logging.getLogger("paddleq")

_TOLERANCE = 2e-5  # of the largest absolute value
_FLOOR = 5e-3  # of the largest input of an operator; results below it need not be more exact
_SAME = 1e-6  # for the same operators with fewer copies between them
_CHANGE = 1e-6  # relative change of inputs; an operator may amplify rounding as much as that
_AMPLIFIED = 16.0
_MOST_ELEMENTS = 1 << 28  # of an input, and of the intermediate tensors that are compared
_RANDOM = ("uniform_random", "gaussian_random", "randint", "randperm", "multinomial", "bernoulli",
           "truncated_gaussian_random", "gumbel_softmax", "poisson", "exponential", "sampling_id")
_REMEDY = "write format='pdmodel', or give verify=False to write the file nevertheless"


def compare(program: Any, model: Any, simplified: Any,
            path: str) -> Optional[Dict[str, np.ndarray]]:
    """Compare a float ``onnx.ModelProto`` with the float program; return the inputs.

    Returns None, and logs the reason, if no comparison is possible.

    Args:
        model: with a tensor for each variable of the program.
        simplified: another form of ``model``, with the same outputs.

    Raises:
        ExportError: they differ by more than rounding. Names the operator.
    """
    obstacle, compared = _obstacle(program), None
    for inner in (True, False):
        if obstacle is None and compared is None:
            try:
                compared = _Comparison(program, OnnxGraph(model), inner)
            except Exception as error:  # of Paddle, of several classes
                if not inner:
                    obstacle = f"Paddle Inference does not run it on random inputs: {_short(error)}"
    if compared is None:
        _logger.warning("%s: the ONNX form was not compared with the model: %s", path, obstacle)
        return None
    compared.check_operators()
    expected = compared.onnx_outputs()
    try:
        found = run_onnx(simplified.SerializeToString(), compared.arrays)
    except _ort_errors() as error:
        raise ExportError(f"ONNX Runtime refuses the simplified ONNX form: {_short(error)}; "
                          f"{_REMEDY}") from error
    for name, a, b in zip(fetch_names(program), found, expected):
        if not (_distance(a, b) <= _SAME or compared.is_rounding_of_outputs(found, expected)):
            raise ExportError(f"the simplified ONNX form computes another {name}; {_REMEDY}")
    return compared.arrays


def check_final(content: bytes, arrays: Dict[str, np.ndarray]) -> None:
    """Load and run the serialized final model.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    try:
        run_onnx(content, arrays)
    except _ort_errors() as error:
        if "Unsupported model IR version" in str(error) or "nly *guarantees* support" in str(error):
            _logger.warning("the installed ONNX Runtime is older than the file: %s", _short(error))
            return
        raise ExportError(f"ONNX Runtime refuses the file: {_short(error)}; "
                          f"{_REMEDY}") from error


def run_onnx(content: bytes, arrays: Dict[str, np.ndarray]) -> List[np.ndarray]:
    """Compute a serialized model in ONNX Runtime, operator by operator in one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    given = {name: array for name, array in arrays.items() if name in wanted}
    found: Any = session.run(None, given)
    return found


def _ort_errors():
    import onnxruntime.capi.onnxruntime_pybind11_state as states

    return (RuntimeError, ValueError, states.Fail, states.InvalidArgument, states.NotImplemented,
            states.RuntimeException, states.InvalidGraph, states.InvalidProtobuf)


def _obstacle(program):
    """Return the reason why a program cannot be compared, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    for block in program.desc.blocks:
        for op in block.ops:
            if op.type in _RANDOM or (op.type == "dropout" and not attribute(op, "is_test", True)):
                return f"the operator {op.type} draws random numbers"
    variables = program.variables()
    for name in feed_names(program):
        shape = shape_of(variables[name])
        if np.prod(np.maximum(shape, 1), dtype=float) > _MOST_ELEMENTS:
            return (f"the input {name!r} of the shape {shape} has more than {_MOST_ELEMENTS} "
                    "elements")
    return None


class _Comparison:
    """Values of a program for random inputs, by the name of a variable."""

    def __init__(self, program, graph, inner):
        """Compute the program; ``inner``: also the variables between its operators."""
        self.program, self.graph = program, graph
        block, uses = program.desc.blocks[0], graph.view()
        self.ops = [op for op in block.ops if op.type not in ("feed", "fetch")]
        self.producers, self.consumers = uses.producers, uses.consumers
        self.rewritten = GraphView(self.ops).rewritten
        self.outputs, fetches = fetch_names(program), dict.fromkeys(fetch_names(program))
        if inner:
            dense = {var.name: shape_of(var) for var in block.vars
                     if var.type.type == DENSE_TENSOR and dtype_of(var) != "?"}
            made = [name for op in self.ops for name in all_outputs(op)
                    if name in dense and name in self.producers and name not in self.rewritten]
            if sum(np.prod(np.abs(dense[name]), dtype=float) for name in made) < _MOST_ELEMENTS:
                fetches.update(dict.fromkeys(made))
        whole = program.copy()
        set_feeds_and_fetches(whole, self.ops, feed_names(program), list(fetches))
        predictor = load_as_it_stands(whole)
        self.arrays, values = random_inputs(
            program, lambda arrays: run_predictor(predictor, arrays))
        self.values = {**self.arrays, **dict(zip(fetches, values))}

    def onnx_outputs(self):
        """Outputs of the ONNX form."""
        return [self.found[name] for name in self.outputs]

    def is_rounding_of_outputs(self, found, expected):
        """Return True if two results of the model differ by no more than its rounding."""
        return self._is_rounding(self.ops, self.arrays, self.outputs, found, expected)

    def check_operators(self):
        """Raise ExportError that names the first operator that is wrong."""
        names = [name for name in self.values if name in self.producers or name in self.outputs]
        try:
            found = run_onnx(self._part(self.arrays, names), self.arrays)
        except _ort_errors() as error:
            for op in self.ops:
                self._check(op, {})
            raise ExportError(f"ONNX Runtime refuses the ONNX form: {_short(error)}; "
                              f"{_REMEDY}") from error
        self.found = dict(zip(names, found))
        checked = [self._check(op, self.found) for op in self.ops]
        found, expected = ([values[name] for name in self.outputs]
                           for values in (self.found, self.values))
        floor = _FLOOR * _largest(self.arrays)
        distance = max((_distance(a, b, floor) for a, b in zip(found, expected)), default=0.0)
        if not (distance <= _TOLERANCE or all(checked)
                or self.is_rounding_of_outputs(found, expected)):
            raise ExportError(f"the outputs of the ONNX form differ from the model's by "
                              f"{distance:.1e} of the largest value; {_REMEDY}")

    def _check(self, op, found):
        """Compare the outputs of an operator, ``found`` or else computed alone.

        Returns False if the graph has no tensor for them.
        """
        made = [name for name in dict.fromkeys(all_outputs(op)) if name in self.values]
        missing = [name for name in all_outputs(op) if name in self.consumers
                   and name not in self.producers and name not in self.graph.constants]
        if missing:
            raise _wrong(op, missing[0], "it is missing")
        if all(name in found and _distance(found[name], self.values[name]) <= _TOLERANCE
               for name in made):
            return bool(made)
        read = [name for name in dict.fromkeys(all_inputs(op)) if name not in self.program.arrays]
        made = [name for name in made if name in self.producers]
        if not made or not all(name in self.values for name in read) or (
                self.rewritten.intersection(read + made)):
            return False
        problem = self._problem(op, read, made)
        if problem:
            raise _wrong(op, made[0], problem)
        return True

    def _problem(self, op, read, made):
        """Return the difference of an operator that reads the values of Paddle, or None."""
        inner = {name: self.values[name] for name in read}
        try:
            found = run_onnx(self._part({**self.arrays, **inner}, made), {**self.arrays, **inner})
        except _ort_errors() as error:
            return f"ONNX Runtime refuses it: {_short(error)}"
        expected = [self.values[name] for name in made]
        # Functions such as sigmoid are exact to the last digit of 1, not of their result.
        floor = _FLOOR * _largest(inner)
        different = [(a, b) for a, b in zip(found, expected)
                     if not _distance(a, b, floor) <= _TOLERANCE]
        if not different or self._is_rounding([op], inner, made, found, expected):
            return None
        a, b = different[0]
        if np.shape(a) != np.shape(b):
            return f"it returns the shape {list(np.shape(a))}, the model {list(np.shape(b))}"
        return f"it differs by {_distance(a, b):.1e} of the largest value"

    def _is_rounding(self, ops, inner, made, found, expected):
        """Return True if a change of the inputs in the last digits has as large an effect."""
        alone, random = self.program.copy(), np.random.default_rng(1)
        set_feeds_and_fetches(alone, ops, list(inner), made)
        changed = {
            name: (array * (1 + _CHANGE * random.choice([-1, 1], array.shape))).astype(array.dtype)
            if array.dtype.kind == "f" else array for name, array in inner.items()}
        try:
            again = run_predictor(load_as_it_stands(alone), changed)
        except Exception as error:  # of Paddle, of several classes
            _logger.info("%s does not run alone: %s", ops[0].type, _short(error))
            return False
        return all(_distance(a, b) <= _TOLERANCE + _AMPLIFIED * _distance(c, b)
                   for a, b, c in zip(found, expected, again))

    def _part(self, available, wanted):
        """Serialize the nodes between the tensors ``available`` and ``wanted``."""
        from onnx import ValueInfoProto, helper

        needed, nodes = set(wanted), []
        for node in reversed(self.graph.nodes):
            if needed.intersection(node.output):
                needed.update(name for name in [*node.input, *captured(node)]
                              if name and name not in available)
                nodes.append(node)
        used = {name for node in nodes for name in [*node.input, *captured(node)]}.union(wanted)
        made = {name for node in nodes for name in node.output}
        constants = [self.graph.tensor(name, value) for name, value in self.graph.constants.items()
                     if name in used and name not in available]
        ins = [helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in available.items() if name in used and name not in made]
        part = helper.make_graph(nodes[::-1], "part", ins,
                                 [ValueInfoProto(name=name) for name in wanted], constants)
        model = self.graph.model
        return helper.make_model(part, opset_imports=model.opset_import,
                                 ir_version=model.ir_version).SerializeToString()


def _wrong(op, output, problem):
    return ExportError(f"the ONNX form of the operator {op.type} (output {output}) is wrong: "
                       f"{problem}. Replace the operator in the model, {_REMEDY}")


def _largest(arrays):
    return max((np.abs(array[np.isfinite(array)]).max(initial=0.0) for array in arrays.values()
                if array.dtype.kind == "f"), default=0.0)


def _distance(found, expected, floor=1e-30):
    """Largest difference, as a share of the largest value or ``floor``.

    Infinite if shapes differ.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape and not found.size == expected.size == 1:
        return np.inf
    found, expected = (np.asarray(each, np.float64).reshape(-1) for each in (found, expected))
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    if same.all():
        return 0.0
    finite = np.abs(expected[np.isfinite(expected)])
    return np.abs(found - expected)[~same].max() / max(finite.max(initial=0.0), floor, 1e-30)


def _short(error):
    """First lines of an error that name its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [line for line in lines if "Error:" in line or "[Hint:" in line] or lines
    return " ".join(found[:2])[:300] or type(error).__name__
