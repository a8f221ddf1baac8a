"""Run operators of a saved program that have no public differentiable function.

Most are called through their dygraph function. Some dygraph functions take fewer inputs than the
operator, or abort; those operators run in Paddle Inference as programs of one operator.
"""

import functools
import os
import tempfile
from typing import Any, Callable, Dict

import numpy as np
import paddle
from paddle.autograd import PyLayer

from .._paddle_compat import (
    framework_proto,
    legacy_operator,
    operator_input_kinds,
    operator_inputs,
    operator_outputs,
)
from ..errors import DependencyError, ModelError
from ..export.program.op_desc import make_op, replace_ops
from ..export.program.program import Program
from .operators import Arguments, read_operators

# Dygraph functions that abort the process or reject the attributes of saved programs.
_UNUSABLE = ("fake_", "kthvalue", "set_value")


def run_without_gradient(a: Arguments, single: Callable[[], tuple]) -> Dict[str, Any]:
    """Return output slot -> tensor or list of tensors of one call.

    A gradient through outputs that depend on tensors with gradient raises an error that names the
    operator. (Paddle turns an exception in a backward pass into OSError, with the message in it.)

    Args:
        a: the arguments.
        single: returns a serialized program of the operator, (variable, (dtype, rank)) of its
            inputs and (variable, dtype) of its outputs.

    Raises:
        ModelError: the installed Paddle cannot run the operator.
    """
    sources = [x for values in a.inputs.values() for x in values
               if isinstance(x, paddle.Tensor) and not x.stop_gradient]
    with paddle.no_grad():
        try:
            outputs = _run_dygraph(a) if _has_dygraph_form(a) else _run_program(a, *single())
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"Paddle {paddle.__version__} cannot run the operator {a.type} of "
                             f"the saved model: {error}") from error
    if not sources or not paddle.is_grad_enabled():
        return outputs
    return {slot: [_refuse(each, a.type, sources) for each in value]
            if isinstance(value, list) else _refuse(value, a.type, sources)
            for slot, value in outputs.items() if slot in a.read}


def _has_dygraph_form(a):
    if a.type.startswith(_UNUSABLE):
        return False
    try:
        legacy_operator(a.type)
    except DependencyError:
        return False
    return a.type in operator_inputs() and all(
        slot in operator_inputs()[a.type] for slot, values in a.inputs.items() if values)


def _run_dygraph(a):
    slots, kinds = operator_inputs()[a.type], operator_input_kinds()[a.type]
    results = operator_outputs()[a.type]
    arguments = []
    for slot, kind in zip(slots, kinds):
        values = a.inputs.get(slot)
        if kind == "int":  # number of tensors in an output slot, e.g. StateNum
            arguments.append(a.counts.get(slot[:-len("Num")], 1))
        elif slot in results and not values:
            tensors = [paddle.Tensor() for _ in range(a.counts.get(slot, 1))]
            arguments.append(tensors if kind == "list" else tensors[0])
        elif kind == "list":
            arguments.append(list(values or []))
        else:
            arguments.append(values[0] if values else None)
    for name, value in a.attributes.items():
        if value is not None:
            arguments += [name, value]
    found = legacy_operator(a.type)(*arguments)
    found = list(found) if isinstance(found, (tuple, list)) and len(results) > 1 else [found]
    return dict(zip(results, found))


def _run_program(a, *described):
    predictor, feeds, fetches = _predictor(*described, a.read)
    arrays = {name: value for names, values in zip(feeds.values(), (
        a.inputs[slot] for slot in feeds)) for name, value in zip(names, values)}
    for name, value in arrays.items():
        predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(value.numpy()))
    predictor.run()
    found = [paddle.to_tensor(predictor.get_output_handle(name).copy_to_cpu())
             for name in predictor.get_output_names()]
    outputs, at = {}, 0
    for slot, names in fetches.items():
        values = found[at:at + len(names)]
        at += len(names)
        outputs[slot] = values if len(names) > 1 else values[0]
    return outputs


@functools.lru_cache(maxsize=128)
def _predictor(description, inputs, outputs, read):
    """(predictor, input slot -> names, output slot -> names) of a program of one operator."""
    import paddle.inference as inference

    program = Program(framework_proto().ProgramDesc.FromString(description), {})
    block = program.desc.blocks[0]
    (operator,) = read_operators(block)
    for name, (dtype, rank) in inputs:
        program.add_variable(block, name, dtype, [-1] * rank)
    for name, dtype in outputs:
        if name not in dict(inputs):
            program.add_variable(block, name, dtype, [])
    feeds = [make_op("feed", {"X": "feed"}, {"Out": name}, col=i)
             for i, (name, _) in enumerate(inputs)]
    names = [name for slot in read for name in operator.outputs[slot]]
    fetches = [make_op("fetch", {"X": name}, {"Out": "fetch"}, col=i)
               for i, name in enumerate(names)]
    program.add_parameter("paddleq.unused", np.zeros([1], np.float32))  # Paddle 2.6 needs one
    replace_ops(block, [*feeds, *block.ops, *fetches])
    with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
        paths = [os.path.join(folder, name) for name in ("m.pdmodel", "m.pdiparams")]
        program.save(*paths, workarounds=False)
        config = inference.Config(*paths)
        config.disable_glog_info()
        config.switch_ir_optim(False)
        fetched = {slot: operator.outputs[slot] for slot in read}
        return inference.create_predictor(config), operator.inputs, fetched


class _Refusal(PyLayer):
    @staticmethod
    def forward(ctx, output, operator, *sources):
        ctx.operator = operator
        return output.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise ModelError(
            f"the operator {ctx.operator} of the saved model has no gradient in paddleq; detach "
            "its inputs, or train the Layer that the model was saved from")


def _refuse(output, operator, sources):
    if not isinstance(output, paddle.Tensor) or not paddle.is_floating_point(output):
        return output
    return _Refusal.apply(output, operator, *sources)
