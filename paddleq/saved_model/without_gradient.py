"""Run operators of a saved program that have no public differentiable function.

Most are called through their dygraph function. Some dygraph functions take fewer inputs than the
operator, or abort; those operators run in Paddle Inference as programs of one operator.
"""

import functools
from typing import Any, Dict, Optional

import numpy as np
import paddle
from paddle.autograd import PyLayer

from .._paddle_compat import (
    framework_proto,
    legacy_operator,
    operator_slots,
)
from ..engine.calibration import map_leaves
from ..errors import DependencyError, ModelError
from ..export.program.inference import (
    load_as_it_stands,
    run_predictor,
    set_feeds_and_fetches,
)
from ..export.program.op_desc import dtype_of
from ..export.program.program import Program
from .operators import Arguments, Operator

# Dygraph functions that abort the process or reject the attributes of saved programs.
_UNUSABLE = ("fake_", "kthvalue", "set_value")


def program_of_operator(op: Operator, desc: Any) -> Optional[bytes]:
    """Return a serialized program of one operator of ``desc``; None if it runs in dygraph."""
    if _has_dygraph_form(op):
        return None
    program, block = Program.empty(), desc.blocks[op.block]
    program.desc.op_version_map.CopyFrom(desc.op_version_map)
    alone = program.desc.blocks[0]
    alone.ops.append(block.ops[op.position])
    dtypes = {var.name: dtype_of(var) for var in block.vars}
    for name in set(op.all_outputs()).difference(op.all_inputs()):
        dtype = dtypes.get(name, "?")
        program.add_variable(alone, name, "float32" if dtype == "?" else dtype, [])
    return program.desc.SerializeToString()


def run_without_gradient(a: Arguments) -> Dict[str, Any]:
    """Return output slot -> tensor or list of tensors of one call.

    A gradient through outputs that depend on tensors with gradient raises an error that names the
    operator. (Paddle turns an exception in a backward pass into OSError, with the message in it.)
    """
    sources = [x for values in a.inputs.values() for x in values
               if isinstance(x, paddle.Tensor) and not x.stop_gradient]
    with paddle.no_grad():
        try:
            outputs = _run_dygraph(a) if a.operator.alone is None else _run_program(a)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"Paddle {paddle.__version__} cannot run the operator {a.type} of "
                             f"the saved model: {error}") from error
    if not sources or not paddle.is_grad_enabled():
        return outputs
    return map_leaves(lambda output: _refuse(output, a.type, sources),
                      {slot: value for slot, value in outputs.items() if slot in a.read})


def _has_dygraph_form(op):
    if op.type.startswith(_UNUSABLE):
        return False
    try:
        legacy_operator(op.type)
    except DependencyError:
        return False
    slots = operator_slots("args")
    return op.type in slots and set(op.inputs) <= set(slots[op.type])


def _run_dygraph(a):
    slots, kinds, results = (
        operator_slots(table)[a.type] for table in ("args", "args_type", "returns"))
    counts = {slot: len(names) for slot, names in a.operator.outputs.items()}
    arguments = []
    for slot, kind in zip(slots, kinds):
        values = a.inputs.get(slot)
        if kind == "int":  # number of tensors in an output slot, e.g. StateNum
            arguments.append(counts.get(slot[:-len("Num")], 1))
        elif slot in results and not values:
            tensors = [paddle.Tensor() for _ in range(counts.get(slot, 1))]
            arguments.append(tensors if kind == "list" else tensors[0])
        elif kind == "list":
            arguments.append(list(values or []))
        else:
            arguments.append(values[0] if values else None)
    for name, value in a.operator.attributes.items():
        if value is not None:
            arguments += [name, value]
    found = legacy_operator(a.type)(*arguments)
    found = list(found) if isinstance(found, (tuple, list)) and len(results) > 1 else [found]
    return dict(zip(results, found))


def _run_program(a):
    op = a.operator
    tensors = {name: value for slot, names in op.inputs.items()
               for name, value in zip(names, a.inputs[slot])}
    kinds = {name: (str(value.dtype).rpartition(".")[2], len(value.shape))
             for name, value in tensors.items()}
    fetched = tuple(name for slot in a.read for name in op.outputs[slot])
    predictor = _predictor(op.alone, tuple(sorted(kinds.items())), fetched)
    outputs = run_predictor(predictor, {name: value.numpy() for name, value in tensors.items()})
    found = dict(zip(fetched, map(paddle.to_tensor, outputs)))
    return {slot: [found[name] for name in op.outputs[slot]] for slot in a.read}


@functools.lru_cache(maxsize=128)
def _predictor(alone, inputs, fetched):
    """Return the predictor of a program of one operator; inputs are (name, (dtype, rank))."""
    program = Program(framework_proto().ProgramDesc.FromString(alone), {})
    block = program.desc.blocks[0]
    for name, (dtype, rank) in inputs:
        program.add_variable(block, name, dtype, [-1] * rank)
    program.add_parameter("paddleq.unused", np.zeros([1], np.float32))  # Paddle 2.6 needs one
    set_feeds_and_fetches(program, list(block.ops), [name for name, _ in inputs], list(fetched))
    return load_as_it_stands(program)


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
