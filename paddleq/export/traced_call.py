"""The call with which ``paddle.jit.save`` traces a model, and the files that it writes."""

import inspect
import json
import os
import types
from collections.abc import Mapping
from copy import copy
from typing import Any, Dict, List, Optional

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

from .._checks import wrong_type, wrong_value
from .._layer_state import read_state
from .._paddle_compat import (
    framework_proto,
    is_pir_program,
    names_unused_input,
    own_input_spec,
    unwrapped,
)
from ..engine.calibration import forward_arguments, map_leaves
from ..engine.example_inputs import Constant, shown_arguments
from ..errors import ConfigError, ExportError
from .program.op_desc import all_inputs, all_outputs, replace_ops

_FETCH = "1.fetch"  # operation of a PIR program


class TracedCall:
    """Arguments of ``forward``, with an InputSpec for each tensor.

    Attributes:
        args, kwargs: the arguments.
        parameters: those of ``forward``.
        recorded: True for a call that was seen, False for the user's ``input_spec``.
        direct: True if ``paddle.jit.save`` takes ``args`` as ``input_spec``.
    """

    def __init__(self, args: List[Any], kwargs: Dict[str, Any], parameters: list, recorded: bool):
        self.args, self.kwargs = args, kwargs
        self.parameters, self.recorded = parameters, recorded
        self.direct = not kwargs and not any(
            p.kind is p.VAR_POSITIONAL for p in parameters) and (
                not recorded or all(map(_is_input, args)))

    @classmethod
    def of(cls, model: nn.Layer, input_spec: Any) -> Optional["TracedCall"]:
        """Return the call of ``model`` that an ``input_spec`` describes.

        Args:
            input_spec: a list of InputSpec, example tensors or nested values of them; one of them;
                a dict by the names of the arguments; or None for the last call of the quantized
                model. ``to_static`` may have set another default, for which None is returned.

        Raises:
            ConfigTypeError: no call was seen, or another type was given.
            ConfigError: there is no input, or the arguments do not fit ``forward``.
        """
        recorded = input_spec is None
        if recorded:
            call = read_state(model).example_call
            if not isinstance(model.forward, types.MethodType) and (
                    call is None or own_input_spec(model.forward) is not None):
                return None
            if call is None:
                raise wrong_type("input_spec", None, "a list of paddle.static.InputSpec or of "
                                 "example tensors: this model was not seen running")
            args, kwargs = map_leaves(_copied, call)
        else:
            args, kwargs = map_leaves(_copied, _given(unwrapped(model), input_spec))
        parameters = _parameters(unwrapped(model))
        if parameters and not any(map(_is_input, _leaves([args, kwargs]))):
            raise wrong_value("input_spec", input_spec, "the specification of at least one input, "
                              "but names no input")
        try:
            bound = inspect.Signature(parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"input_spec does not fit forward({shown_arguments(parameters)}): "
                              f"{error}") from None
        for parameter in parameters if recorded else ():
            value = bound.arguments.get(parameter.name, parameter.empty)
            if isinstance(value, Constant) and value.equals(parameter.default):
                del bound.arguments[parameter.name]
        for each in parameters:  # Paddle's translation of forward loses these defaults
            if each.kind is each.KEYWORD_ONLY and each.default is not each.empty:
                bound.arguments.setdefault(each.name, each.default)
        for name, value in bound.arguments.items():
            for leaf in _leaves(value):
                if isinstance(leaf, Constant) and not leaf.plain:
                    raise wrong_type("input_spec", None, f"given, because the argument {name!r} of "
                                     f"the last call holds a {leaf.value}, which is no tensor")
        args, kwargs = map_leaves(
            lambda leaf: leaf.value if isinstance(leaf, Constant) else leaf,
            [list(bound.args), dict(bound.kwargs)])
        _check_names([args, kwargs])
        return cls(args, kwargs, parameters, recorded)

    def named_inputs(self) -> List[InputSpec]:
        """Return the inputs in order, each with a name; they replace those of the call."""
        found: List[InputSpec] = []
        taken = {leaf.name for leaf in _leaves([self.args, self.kwargs]) if _is_input(leaf)}

        def named(value, name):
            if isinstance(value, dict):
                for key in list(value):
                    inner = str(key)
                    if not self.recorded or inner in taken:
                        inner = f"{name}_{key}"
                    value[key] = named(value[key], inner)
                return value
            if isinstance(value, (list, tuple)):
                items = [named(each, f"{name}_{number}") for number, each in enumerate(value)]
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
            if not _is_input(value):
                return value
            shape = [None if size is not None and size < 0 else size for size in value.shape]
            found.append(InputSpec(shape, value.dtype, value.name or name))
            taken.add(found[-1].name)
            return found[-1]

        names = [p.name for p in self.parameters
                 if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        rest = next((p.name for p in self.parameters if p.kind is p.VAR_POSITIONAL), "input")
        names += [f"{rest}_{number}" for number in range(len(self.args) - len(names))]
        self.args = [named(value, name) for value, name in zip(self.args, names)]
        self.kwargs = {name: named(value, name) for name, value in self.kwargs.items()}
        return found


def save_traced(model: nn.Layer, path: str, call: Optional[TracedCall]) -> None:
    """Write the files of ``paddle.jit.save`` for a call of ``model``.

    Inputs that no output depends on are kept. Paddle refuses them: they are traced as outputs,
    which are then removed from the files.
    """
    model = unwrapped(model)
    try:
        if call is None:
            paddle.jit.save(model, path)
        elif call.direct:
            if call.recorded:
                call.named_inputs()
            paddle.jit.save(model, path, input_spec=call.args)
        else:
            _save_call(_Call, model, path, call)
    except ValueError as error:
        if not names_unused_input(error):
            raise
        if call is None:
            call = TracedCall.of(model, own_input_spec(model.forward))
        if call is None:
            raise
        count = _save_call(_CallWithInputs, model, path, call)
        if os.path.exists(path + ".json"):
            _drop_outputs_of_pir(path + ".json", count)
        else:
            _drop_outputs_of_program(path + ".pdmodel", count)
    if os.path.exists(path + ".json"):
        _restore_sums_of_inputs(path + ".json")


def _save_call(kind, model, path, call):
    inputs = call.named_inputs()
    paddle.jit.save(kind(model, call), path, input_spec=[inputs])
    return len(inputs)


class _Call(nn.Layer):
    """Model with a list of all tensors of a call as its only argument."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.training = model, False
        order = {id(spec): number for number, spec in enumerate(call.named_inputs())}
        self.call = map_leaves(lambda leaf: _Place(order[id(leaf)]) if id(leaf) in order else leaf,
                               [call.args, call.kwargs])

    @paddle.jit.not_to_static
    def filled(self, inputs):
        return map_leaves(lambda leaf: inputs[leaf.number] if isinstance(leaf, _Place) else leaf,
                          self.call)

    def forward(self, inputs):
        args, kwargs = self.filled(inputs)
        return self.model(*args, **kwargs)


class _CallWithInputs(_Call):
    def forward(self, inputs):
        args, kwargs = self.filled(inputs)
        return self.model(*args, **kwargs), self.read(inputs)

    @paddle.jit.not_to_static
    def read(self, inputs):
        # Paddle 3 removes an input that no operator reads from a program of the legacy format.
        return inputs if is_pir_program() else [paddle.assign(each) for each in inputs]


class _Place:
    def __init__(self, number):
        self.number = number


def _given(model, input_spec):
    if isinstance(input_spec, Mapping):
        args, kwargs = forward_arguments(model, dict(input_spec), "input_spec")
        return map_leaves(_unnamed, [args, kwargs])
    if isinstance(input_spec, (InputSpec, paddle.Tensor, np.ndarray)):
        input_spec = [input_spec]
    if not isinstance(input_spec, (list, tuple)):
        raise wrong_type("input_spec", input_spec, "a list of paddle.static.InputSpec or of "
                         "example tensors")
    return [map_leaves(_spec_of_array, value) for value in input_spec], {}


def _unnamed(leaf):
    if isinstance(leaf, paddle.Tensor):
        return InputSpec(list(leaf.shape), leaf.dtype)
    return leaf


def _spec_of_array(leaf):
    return InputSpec(leaf.shape, leaf.dtype.name) if isinstance(leaf, np.ndarray) else leaf


def _copied(leaf):  # Paddle sets names in an InputSpec
    return copy(leaf) if isinstance(leaf, InputSpec) else leaf


def _check_names(arguments):
    names = [leaf.name for leaf in _leaves(arguments)
             if isinstance(leaf, InputSpec) and leaf.name]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ConfigError("each input of input_spec must have another name, but several are "
                          f"called {', '.join(map(repr, sorted(repeated)))}")


def _parameters(model):
    forward = getattr(model.forward, "dygraph_function", model.forward)
    return [p for p in inspect.signature(forward).parameters.values() if p.name != "self"]


def _is_input(leaf):
    return isinstance(leaf, (InputSpec, paddle.Tensor))


def _leaves(structure):
    found = []
    map_leaves(found.append, structure)
    return found


def _drop_outputs_of_pir(path, count):
    with open(path, encoding="utf-8") as file:
        program = json.load(file)
    for region in program["program"]["regions"]:
        for block in region["blocks"]:
            fetches = [op for op in block["ops"] if op["#"] == _FETCH]
            dropped = {id(op) for op in fetches[len(fetches) - count:]} if fetches else ()
            block["ops"] = [op for op in block["ops"] if id(op) not in dropped]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(program, file)


def _restore_sums_of_inputs(path):
    """Restore outputs that are an input plus a number, for which Paddle 3 writes the input.

    Paddle (``normalize_pir_program``) takes the ``scale`` by 1 for one that it added itself. It is
    still in the program, and nothing reads its result.
    """
    with open(path, encoding="utf-8") as file:
        program = json.load(file)
    ops = program["program"]["regions"][0]["blocks"][0]["ops"]
    fed = {op["O"][0]["%"] for op in ops if op["#"] == "1.data"}
    read = {value["%"] for op in _with_inner(ops) for value in op.get("I", ())}
    text = None
    for number in fed:
        fetches = [op for op in ops if op["#"] == _FETCH and op["I"][0]["%"] == number]
        sums = [op for op in ops if op["#"] == "1.scale" and op["I"][0]["%"] == number
                and op["O"][0]["%"] not in read]
        if not sums or not fetches:
            continue
        if len(sums) != 1 or len(fetches) != 1:
            raise ExportError(
                "several outputs are the same input, or it plus a number, which Paddle "
                f"{paddle.__version__} does not save: multiply the input by 1.0 before the sum")
        fetches[0]["I"][0]["%"] = sums[0]["O"][0]["%"]
        column = next(each["AT"]["D"] for each in fetches[0]["A"] if each["N"] == "col")
        for each in fetches[0]["A"]:
            if each["N"] == "name":
                each["AT"]["D"] = f"fetch_name_{column}"
        text = json.dumps(program)
    if text is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def _with_inner(ops):
    """Yield operations and those in the blocks of their control flow."""
    for op in ops:
        yield op
        for region in op.get("regions", ()):
            for block in region["blocks"]:
                yield from _with_inner(block["ops"])


def _drop_outputs_of_program(path, count):
    with open(path, "rb") as file:
        desc = framework_proto().ProgramDesc.FromString(file.read())
    main = desc.blocks[0]
    fed = {name for op in main.ops if op.type == "feed" for name in all_outputs(op)}
    dropped, kept = set(), []
    for op in reversed(main.ops):  # what was added for the outputs: a chain from each input
        if op.type == "fetch" and count:
            dropped.update(all_inputs(op))
            count -= 1
        elif dropped.intersection(all_outputs(op)):
            dropped.update(all_inputs(op))
        else:
            kept.append(op)
        dropped -= fed
    kept.reverse()
    replace_ops(main, kept)
    variables = [var for var in main.vars if var.name not in dropped]
    del main.vars[:]
    main.vars.extend(variables)
    with open(path, "wb") as file:
        file.write(desc.SerializeToString())
