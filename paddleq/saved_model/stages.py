"""Division of the operators of a saved model into stages that run one after another.

Between two stages one float tensor passes, so that a stage is a chain of layers or a whole
structure of branches, such as a residual block.
"""

from dataclasses import dataclass
from typing import Any, Container, Dict, List, Tuple

import paddle

# Operators that a stage does not begin with.
_FOLLOWERS = frozenset((
    "relu", "relu6", "hard_swish", "hard_sigmoid", "swish", "silu", "gelu", "sigmoid", "tanh",
    "leaky_relu", "elu", "celu", "selu", "mish", "softplus", "brelu", "prelu", "clip", "softmax",
    "batch_norm", "scale", "elementwise_add", "elementwise_sub", "elementwise_mul",
    "elementwise_div", "dropout", "fetch"))


@dataclass(frozen=True)
class Stage:
    """Operators ``start`` up to ``stop`` of the main block.

    Attributes:
        layers: names of its layers that were counted.
    """

    start: int
    stop: int
    layers: Tuple[str, ...]

    @property
    def name(self) -> str:
        """Names of the first and the last layer."""
        return "..".join(dict.fromkeys((self.layers[0], self.layers[-1]))) if self.layers else ""


def find_stages(model: Any, operators: List[Any], values: Dict[str, Any], counted: Container[str],
                least: int) -> List[Stage]:
    """Return the stages of a model, the shortest with at least ``least`` of the ``counted`` layers.

    Activation functions and constant factors belong to the stage of the layer before them. The
    model runs once to find the float tensors that are alive before each operator.

    Args:
        operators: those of the main block.
        values: variables before the first operator.
        counted: names of layers.
        least: number of layers of a stage, except the last.
    """
    stages: List[Stage] = []
    start, layers = 0, []
    merged = [(min(places), max(places)) for places in _places(model)]
    with paddle.no_grad():
        for position, op in enumerate(operators):
            if (len(layers) >= least and op.type not in _FOLLOWERS and _is_cut(values)
                    and not any(low < position <= high for low, high in merged)):
                stages.append(Stage(start, position, tuple(layers)))
                start, layers = position, []
            if op.layer in counted:
                layers.append(op.layer)
            values = model.run_stage(Stage(position, position + 1, ()), values)
    stages.append(Stage(start, len(operators), tuple(layers)))
    return stages


def _places(model):
    """Return the positions of the operators that each layer of several operators runs as one."""
    return [[binding.operator.position, *binding.merged] for binding in model.bindings.values()
            if binding.merged and binding.operator.block == 0]


def _is_cut(values):
    """Return True if one float tensor is alive."""
    alive = [value for value in values.values()
             if not isinstance(value, paddle.Tensor) or paddle.is_floating_point(value)]
    return len(alive) == 1
