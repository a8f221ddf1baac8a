"""Report of the operators that a runtime computes in float, and why."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import List, Optional, Union

from .._checks import check_int
from ..engine.summary import table
from ..errors import ConfigError
from .model_file import model_files
from .runtimes.base import RUNTIMES, CompiledOperator


@dataclass(frozen=True)
class ExplainedOperator:
    """Operator of a runtime's compiled graph.

    Attributes:
        name: of the node, or of its first output.
        type: the runtime's name of the operator.
        precision: "int8" or "float".
        reason: why it is computed in float; "" for int8.

    Examples:
        >>> from paddleq.deploy import ExplainedOperator
        >>> row = ExplainedOperator("y", "softmax", "float", "no int8 kernel of softmax")
        >>> row.precision
        'float'
    """

    name: str
    type: str
    precision: str
    reason: str = ""


@dataclass(frozen=True)
class Explanation:
    """Result of :func:`explain`. ``str()`` is a table.

    Attributes:
        file: path of the model.
        runtime: name and version of the runtime.
        operators: list of :class:`ExplainedOperator`, in the order of the compiled graph.
            Conversions between precisions or layouts, and operators on shapes, are not listed.
        conversions: number of the conversions.
        fallback: reason why the runtime computes the whole model in float; "" if it does not.

    Examples:
        >>> from paddleq.deploy import ExplainedOperator, Explanation
        >>> row = ExplainedOperator("y", "softmax", "float", "no int8 kernel of softmax")
        >>> print(str(Explanation("m.xml", "OpenVINO", [row], 0)).splitlines()[0])
        m.xml in OpenVINO: 0 operators in int8, 1 in float, 0 conversions
    """

    file: str
    runtime: str
    operators: List[ExplainedOperator]
    conversions: int
    fallback: str = ""

    @property
    def in_float(self) -> List[ExplainedOperator]:
        """The operators that are computed in float."""
        return [each for each in self.operators if each.precision == "float"]

    def __str__(self) -> str:
        counts = Counter(each.precision for each in self.operators)
        head = (f"{self.file} in {self.runtime}: {counts['int8']} operators in int8, "
                f"{counts['float']} in float, {self.conversions} conversions")
        rows = [["operator", "type", "precision", "reason"]] + [
            [each.name, each.type, each.precision, each.reason] for each in self.operators]
        return "\n".join([head, *([self.fallback] if self.fallback else []), table(rows)])


def explain(path: Union[str, "os.PathLike[str]"], runtime: Optional[str] = None,
            threads: int = 1) -> Explanation:
    """Compile a saved model in a runtime and tell which operators it computes in float, and why.

    The operators are those of the runtime's own graph, after its fusions: for OpenVINO the runtime
    model, for ONNX Runtime the optimized model, for Paddle Inference the program after its passes.
    The model is loaded as :class:`Predictor` does, and not run.

    Args:
        path: prefix of the files, or one file.
        runtime: "openvino", "onnxruntime" or "paddle". Default: the first one that is installed
            and reads the model.
        threads: number of threads that the model is compiled for. Default 1.

    Raises:
        ConfigError: ``runtime`` is not known, does not read the model, or does not show the graph
            that it compiles.
        DependencyError: the runtime is not installed.
        FormatError: the model is missing or damaged.
        InferenceError: the runtime refuses the model.

    Examples:
        >>> import tempfile, paddle, paddleq
        >>> net, x = paddle.nn.Sequential(paddle.nn.Linear(16, 4)), paddle.rand([8, 16])
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [x])
        >>> path = tempfile.mkdtemp() + "/net"
        >>> ptq.save_quantized_model(quantized, path, format="onnx")
        >>> [each.precision for each in paddleq.deploy.explain(path, "onnxruntime").operators][0]
        'int8'
    """
    files, threads = model_files(path), check_int("threads", threads, 1)
    if runtime is None:
        runtime = next((name for name, each in RUNTIMES.items()
                        if each.automatic and each.installed() and each.choose(files)), "openvino")
    chosen = RUNTIMES[RUNTIMES.check(runtime, "runtime")]
    chosen.require()
    file = chosen.choose(files)
    if file is None:
        raise ConfigError(f"{chosen.title} reads {', '.join(chosen.kinds)}, but the model at "
                          f"{os.fspath(path)} is {', '.join(each.kind for each in files)}")
    compiled, fallback = chosen.compiled_operators(file, threads)
    by_name = {each.name: each for each in compiled}
    operators = [ExplainedOperator(each.name, each.type, each.precision,
                                   _reason(each, by_name, chosen, fallback))
                 for each in compiled if not each.converts]
    return Explanation(file.path, f"{chosen.title} {chosen.version()}", operators,
                       len(compiled) - len(operators), fallback)


def _reason(operator: CompiledOperator, by_name, runtime, fallback):
    if operator.precision == "int8":
        return ""
    if operator.type not in runtime.int8_types:
        return f"{runtime.title} has no int8 kernel of {operator.type}"
    if fallback:
        return "the whole model is computed in float"
    made, quantized = set(), False
    todo = list(operator.sources)
    while todo:
        source = by_name.get(todo.pop())
        if source is None:  # an input of the model, or an operator on shapes
            continue
        if not source.converts:
            made.add(source.type)
        elif source.precision == "int8":
            quantized = True
        else:
            todo += source.sources
    if quantized:
        condition = f"; {runtime.int8_condition}" if runtime.int8_condition else ""
        return f"its input is quantized, but {runtime.title} selected a float kernel{condition}"
    return ("its input is not quantized: it comes from "
            f"{', '.join(sorted(made)) or 'an input of the model'}")
