"""Fold affine operators behind quantized weights when a model is exported.

In training, ``self.scale * x + self.bias`` behind a layer has parameters of its own, and numbers in
the code cannot be changed before. The exported integers stay; their scales and the bias take the
map.
"""

from paddle import nn

from .._layer_state import read_state
from ..export.markers import WeightMark
from ..export.program.program import Program
from ..export.trace import register_program_pass
from .fold_affines import fold_affines
from .layers import is_marker
from .operators import read_operators


@register_program_pass("affines")
def fold_traced_affines(program: Program, marks: list, model: nn.Layer) -> None:
    """Fold affine operators of a model whose state has ``fold_on_export``, in place.

    Those of post-training quantization are the ones whose constants are numbers in the code.
    Numbers are folded where that rounds nothing, so that the file computes what the model was
    calibrated or trained with.
    """
    if not read_state(model).fold_on_export:
        return
    places = _weight_markers(program, marks)
    found = {name: marks[place] for name, place in places.items()}
    fold_affines(program, marks=found, exact_numbers=True)
    for name, place in places.items():
        marks[place] = found[name]


def _weight_markers(program, marks):
    """Return parameter -> place of its mark; one with several markers has several readers."""
    found = {}
    for block in program.desc.blocks:
        for op in read_operators(block):
            number = int(op.get("bias", 0)) if is_marker(op) else 0
            if number and isinstance(marks[number - 1], WeightMark):
                found[op.input("X")] = number - 1
    return found
