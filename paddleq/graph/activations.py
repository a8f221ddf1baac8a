"""Activation functions that directly follow layers, as layers or as functions in a ``forward``."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping

import paddle
from paddle import nn

from .._paddle_compat import patched_operators
from .calls import patched_forwards
from .dataflow import output_values, same_values

# Elementwise operators of Paddle's dynamic mode; their first argument is the data.
ACTIVATIONS = ("relu", "relu6", "hardswish", "hardsigmoid", "swish", "silu", "gelu", "sigmoid",
               "tanh", "leaky_relu", "elu", "celu", "selu", "mish", "softplus", "hardtanh")


@dataclass(eq=False)
class _Output:
    """Output of a layer, and the activations that read it."""

    layer: Any
    tensor: paddle.Tensor  # kept, so that its id is not reused
    functions: List[Callable] = field(default_factory=list)


def find_activations(run: Callable[[], Any],
                     layers: Mapping[Any, nn.Layer]) -> Dict[Any, Callable]:
    """Return name -> the elementwise function that alone reads the output of a layer.

    A layer is missing if its output has another reader too, or if its calls have other functions.

    Args:
        run: a deterministic forward pass.
        layers: layers by name.
    """
    outputs: Dict[int, _Output] = {}
    counts: Dict[Any, int] = {}

    def on_layer(name, original, *args, **kwargs):
        output = original(*args, **kwargs)
        if isinstance(output, paddle.Tensor):
            counts[name] = counts.get(name, 0) + 1
            outputs[id(output)] = _Output(name, output)
        return output

    def on_operator(operator, x, *args, **kwargs):
        if id(x) in outputs:
            outputs[id(x)].functions.append(
                lambda value: operator(value, *args, **kwargs))
        return operator(x, *args, **kwargs)

    with patched_forwards(layers, on_layer), patched_operators(ACTIVATIONS, on_operator):
        reference = output_values(run())
    found: Dict[Any, Callable] = {}
    for output in outputs.values():
        if counts[output.layer] == 1 and len(output.functions) == 1:
            found[output.layer] = output.functions[0]
    outputs.clear()
    names = _only_readers(list(found), layers, run, reference)
    return {name: found[name] for name in names}


def _only_readers(names, layers, run, reference):
    """Return the layers whose output nothing reads but the activation, by bisection."""
    if not names or _unchanged({name: layers[name] for name in names}, run, reference):
        return names
    if len(names) == 1:
        return []
    middle = len(names) // 2
    return (_only_readers(names[:middle], layers, run, reference)
            + _only_readers(names[middle:], layers, run, reference))


def _unchanged(layers, run, reference):
    """Return True if other values of the outputs, for all but activations, change nothing."""
    def result(change):
        originals: Dict[int, tuple] = {}

        def on_layer(name, original, *args, **kwargs):
            output = original(*args, **kwargs)
            changed = change(output)
            originals[id(changed)] = changed, output
            return changed

        def on_operator(operator, x, *args, **kwargs):
            return operator(originals.get(id(x), (None, x))[1], *args, **kwargs)

        with patched_forwards(layers, on_layer), patched_operators(ACTIVATIONS, on_operator):
            return output_values(run())

    # Finite values too: NaN does not pass through comparisons and maxima.
    return all(same_values(result(change), reference)
               for change in (lambda y: y * float("nan"), lambda y: 7.0 - 3.0 * y))
