"""Quantization of the whole graph of a saved model (``scope="full"``).

Besides the inputs of weighted layers, the inputs of additions, concatenations, average pools and
products are quantized (:data:`~.operator_layers.OPERATOR_RULES`), and the outputs of convolutions
and of these operators where an operator that computes in float reads them: ONNX Runtime computes
such operators with integers only if a quantizer follows. A quantizer whose input another one has
quantized alike is left out.
"""

from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

from paddle import nn

from .._checks import wrong_type
from ..config import QuantConfig, Scope
from ..engine.fuse_blocks import remove_redundant, same_parameters
from ..export.program.op_desc import dtype_of
from ..nn.input_slots import slot_name
from .layers import ProgramGraph
from .operator_layers import OPERATOR_RULES
from .operators import Operator
from .saved_model import SavedModel

SCOPES = ("weighted", "full")  # the first is the default
# Operators that keep or limit values. They run on integers, so that a quantizer may follow later.
_LIMITS = ("relu", "relu6")
_MOVES = ("reshape2", "reshape", "transpose2", "transpose", "flatten_contiguous_range", "squeeze2",
          "squeeze", "unsqueeze2", "unsqueeze", "slice", "split", "assign", "share_data",
          "nearest_interp_v2")
# Those in front of which a quantizer behind them cannot move.
_PARTS = ("slice", "split", "nearest_interp_v2")
_CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "conv3d")
# Operators whose integer kernels need quantizers behind them.
_WITH_OUTPUT = (*_CONVOLUTIONS, "elementwise_add", "elementwise_mul", "concat", "pool2d")
_IN_FLOAT = "scope 'full': it stands between operators that compute in float"


def extend_rules(model: nn.Layer, rules: QuantConfig, scope: str, fuse: bool,
                 skip_tensors: Iterable[str] = ()) -> Callable[[], None]:
    """Extend the rules to the ``scope``; return a function to call after the preparation.

    ``fuse`` and ``skip_tensors`` are those of :func:`full_scope`.
    """
    if scope == SCOPES[0]:
        return lambda: None
    if not isinstance(model, SavedModel):
        raise wrong_type("model", model, "a paddleq.SavedModel for scope='full'")
    return full_scope(model, rules, fuse, skip_tensors)


def full_scope(model: Any, rules: QuantConfig, fuse: bool,
               skip_tensors: Iterable[str] = ()) -> Callable[[], None]:
    """Extend ``rules`` to the whole graph of ``model``, and give it the layers that they need.

    Args:
        model: a float :class:`~.saved_model.SavedModel`.
        rules: those of the weighted layers, and of ``QuantizableFunction`` for operators. Changed
            in place.
        fuse: True if batch norms will be folded into the convolutions before them.
        skip_tensors: operators without weights that read or compute these variables stay float.

    Returns:
        A function to call when the model was prepared with the rules.
    """
    plan = _Plan(model, rules, fuse, set(skip_tensors))
    plan.run()
    return plan.finish


class _Plan:
    def __init__(self, model, rules, fuse, skip):
        self.model, self.rules, self.fuse, self.skip = model, rules, fuse, skip
        self.operators: List[Operator] = model.operators
        program = model.to_program()
        self.graph = ProgramGraph(program, [self.operators])
        self.dtypes = {name: dtype_of(var) for name, var in program.variables().items()}
        self.quantized: Dict[Tuple[int, int], str] = {}  # place of an operator -> layer
        self.made: Set[str] = set()  # variables that quantized operators compute
        self.outputs: Dict[str, str] = {}  # variable with a quantizer -> layer that has it
        self.slots: Dict[str, List[Optional[str]]] = {}  # layer -> variables that it reads

    def run(self):
        layers = self.model.add_operator_layers(
            [op for op in self.operators if self._is_candidate(op)])
        found = self.rules.resolve(self.model)
        decided = {name: rule for name, rule in found.items()
                   if rule.config is not None and rule.config.activation is not None}
        in_float = []
        for op in self.operators:
            binding = self.model.bindings.get(op.layer)
            if binding is not None and op.layer in decided:
                self._add(op, op.layer, [op.input(binding.source)], self._end(binding.target))
            elif layers.get(op.place) in decided:
                name, rule = layers[op.place], OPERATOR_RULES[op.type]
                origins = [self._origin(each) in self.made for slot in rule.slots
                           for each in op.inputs[slot]]
                if all(origins) if rule.every else any(origins):
                    self._add(op, name, [
                        names[0] if len(names) == 1 else None for names in op.inputs.values()],
                        op.output("Out"))
                else:
                    in_float.append(name)
        for op in reversed(self.operators):
            if op.place in self.quantized and op.layer is None and op.type in _WITH_OUTPUT and (
                    not any(each.place in self.quantized
                            for each in self._readers(op.output("Out")))):
                in_float.append(self.quantized.pop(op.place))
                del self.slots[in_float[-1]]
        if in_float:
            self.rules.add(Scope(names=in_float, contents=False, label=_IN_FLOAT), None)
        self._quantize_outputs(decided)

    def _is_candidate(self, op):
        rule = OPERATOR_RULES.get(op.type)
        if rule is None or op.layer is not None or self.model.is_merged(op) or not rule.applies(
                op) or set(op.inputs) != set(rule.slots) or not self.skip.isdisjoint(
                    [*op.all_inputs(), *op.all_outputs()]):
            return False
        return not any(self.graph.is_parameter(name) or self.dtypes.get(name) != "float32"
                       or name in self.graph.rewritten
                       for name in [*op.all_inputs(), *op.all_outputs()])

    def _add(self, op, name, sources, target):
        self.quantized[op.place] = name
        self.slots[name] = sources
        self.made.add(target)

    def _end(self, target):
        """Return the output of the batch norm that will be folded, or ``target``."""
        norm = self.graph.sole_consumer(target)
        if self.fuse and norm is not None and norm.type == "batch_norm" and norm.layer is not None:
            return norm.output("Y")
        return target

    def _origin(self, name, limits=True):
        """Return the variable in front of operators that move, or limit, the values of ``name``."""
        op = self.graph.producers.get(name)
        while op is not None and self._passes(op) and (limits or op.type not in _LIMITS):
            name = op.input("X") or op.input("Input")
            op = self.graph.producers.get(name)
        return name

    def _passes(self, op):
        """Return True if ``op`` moves or limits the values of its first input."""
        return (op.type in (*_LIMITS, *_MOVES) or op.type == "pool2d" and not OPERATOR_RULES[
            "pool2d"].applies(op)) and op.layer is None

    def _readers(self, name):
        """Return the operators that read a variable, behind those that move or limit values."""
        found = []
        for op in self.graph.consumers.get(name, ()):
            if self._passes(op) and name in (op.input("X"), op.input("Input")):
                for output in op.all_outputs():
                    found += self._readers(output)
            else:
                found.append(op)
        return found

    def _quantize_outputs(self, decided):
        """Add rules for the outputs that need quantizers, behind a relu where there is one."""
        found = []
        for op in self.operators:
            if op.place in self.quantized and op.type in _WITH_OUTPUT:
                binding = self.model.bindings.get(op.layer)
                target = op.output("Out") if binding is None else self._end(binding.target)
                if self._needs_quantizer(target, binding):
                    reader = self.graph.sole_consumer(target)
                    found.append((op, target, reader if reader is not None
                                  and reader.type in _LIMITS else None))
        layers = self.model.add_operator_layers(
            [limit for _, _, limit in found if limit is not None])
        resolved = self.rules.resolve(self.model)
        for op, target, limit in found:
            rule = decided[self.quantized[op.place]]
            config = replace(rule.config, output=rule.config.activation_quantizer)
            name = self.quantized[op.place]
            if limit is not None:
                name, target = layers[limit.place], limit.output("Out")
                if resolved[name].config is None:
                    continue
                config = replace(config, weight=None, activation=None)
            self.outputs[target] = name
            self.rules.add(Scope(names=[name], contents=False, label=rule.entry), config)

    def _needs_quantizer(self, target, binding):
        readers = self._readers(target)
        if not readers or any(each.type == "fetch" for each in readers) or (
                binding is not None and any(each.type == "batch_norm" for each in readers)):
            return False
        return not self._is_quantized_alike(target)

    def _is_quantized_alike(self, name):
        """Return True if the readers of a variable quantize it, all with the same scale."""
        readers = self.graph.consumers[name]
        if len(readers) == 1 and self._passes(readers[0]):
            made = [each for each in readers[0].all_outputs() if self.graph.consumers.get(each)]
            return (readers[0].type not in _PARTS and len(made) == 1
                    and self._is_quantized_alike(made[0]))
        return all(each.place in self.quantized and (each.type != "concat" or len(readers) == 1)
                   for each in readers)

    def finish(self):
        """Share scales of tensors with the same values, and remove redundant quantizers."""
        layers = dict(self.model.named_sublayers())
        shared = {}  # variable -> quantizer of its values
        for op in self.operators:
            if op.type == "concat" and op.place in self.quantized:
                target, concat = op.output("Out"), layers[self.quantized[op.place]]
                shared[target] = concat.input_parts(0)[1]
                maker = layers[self.outputs[target]] if target in self.outputs else None
                if maker is not None and same_parameters(maker.output_quantizer, shared[target]):
                    maker.output_quantizer = shared[target]
        shared.update((target, layers[name].output_quantizer)
                      for target, name in self.outputs.items())
        for name, sources in self.slots.items():
            for slot, source in enumerate(sources):
                origin = None if source is None else self._origin(source, limits=False)
                if origin in shared and source not in self.outputs and same_parameters(
                        layers[name].input_parts(slot)[1], shared[origin]):
                    setattr(layers[name], slot_name("activation_quantizer", slot), shared[origin])
            makers = tuple(self.outputs.get(source or "") for source in sources)
            if any(makers):
                remove_redundant(layers, layers[name], [makers])
