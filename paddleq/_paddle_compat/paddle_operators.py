"""Operators of Paddle: tables, calls, errors and differences between versions."""

import functools
import inspect
import re
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

import paddle

from .lookup import private


def framework_proto() -> Any:
    """Return the module of Paddle's protobuf classes (``ProgramDesc``, ``OpDesc``, ...)."""
    return private("paddle.base.proto.framework_pb2", "read and write .pdmodel files")


def legacy_operator(name: str) -> Callable:
    """Return the dygraph function of a legacy operator, e.g. ``"conv2d"``.

    It takes the inputs in the order of :func:`operator_slots`, then attribute names and values in
    turn. It computes no gradient for some operators.
    """
    return private(f"paddle._legacy_C_ops.{name}", f"run the operator {name} of a saved model")


@contextmanager
def patched_operators(names: Iterable[str], call: Callable) -> Iterator[None]:
    """Call ``call(operator, *args, **kwargs)`` instead of the dygraph operators ``names``.

    Functions of ``paddle.nn.functional`` call these operators, or are these operators where a later
    Paddle moved them to C++.
    """
    operators = private("paddle._C_ops", "find activation functions")
    modules = (operators, paddle, paddle.nn.functional,
               private("paddle.nn.functional.activation", "find activation functions"))
    previous = []
    try:
        for name in names:
            for module in modules:
                operator = getattr(module, name, None)
                if inspect.isbuiltin(operator):
                    previous.append((module, name, operator))
                    setattr(module, name, functools.partial(call, operator))
        yield
    finally:
        for module, name, operator in reversed(previous):
            setattr(module, name, operator)


@functools.lru_cache(maxsize=None)
def operator_slots(table: str) -> Dict[str, List[str]]:
    """Return operator type -> slots in the order of the dygraph function.

    Args:
        table: "args" for input slots, "args_type" for "tensor", "list" or "int" of each, "returns"
            for output slots.
    """
    return private(f"paddle.base.core.eager.ops.legacy.get_core_ops_{table}_info",
                   "run the operators of a saved model")()


@functools.lru_cache(maxsize=None)
def operator_descriptions() -> Dict[str, Any]:
    """Return the type of each legacy operator of the installed Paddle -> its OpProto message.

    It has the slots of inputs and outputs (name, duplicable, dispensable, intermediate, extra) and
    the names and types of attributes.
    """
    proto, found = framework_proto(), {}
    for text in private("paddle.base.core.get_all_op_protos", "check the operators of a model")():
        message = proto.OpProto()
        message.ParseFromString(text)
        found[message.type] = message
    return found


def raised_by_paddle(error: BaseException) -> bool:
    """Return True if an operator of Paddle raised ``error``: for a data type or a shape, say."""
    if re.match(r"\s*\((\w+)\) ", str(error)):  # the kind, such as "(InvalidArgument) "
        return True
    trace, name = error.__traceback__, ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return name.partition(".")[0] == "paddle"


@functools.lru_cache(maxsize=None)
def trace_respects_order() -> bool:
    """Return True if ``paddle.trace`` counts an offset along the columns of its first axis.

    Paddle 2.6 counts it along the lower axis.
    """
    with paddle.base.dygraph.guard(paddle.CPUPlace()):
        corner = paddle.to_tensor([[0.0, 1.0], [0.0, 0.0]])
        return not paddle.trace(corner, 1, 1, 0).item()


def group_norm(x: paddle.Tensor, groups: int, epsilon: float, weight: Optional[paddle.Tensor],
               bias: Optional[paddle.Tensor], layout: Any) -> paddle.Tensor:
    """``paddle.nn.functional.group_norm``, which Paddle 2.6 does not have."""
    if hasattr(paddle.nn.functional, "group_norm"):
        return paddle.nn.functional.group_norm(x, groups, epsilon, weight, bias, layout)
    compute = private("paddle._C_ops.group_norm", "normalize groups")
    return compute(x, weight, bias, epsilon, groups, layout)
