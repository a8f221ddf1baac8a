"""State that quantization keeps on layers of a user's model: the attribute ``_paddleq``."""

from dataclasses import dataclass, field, replace
from typing import Any, Callable, List, Optional, Sequence, Tuple

from paddle import nn


@dataclass
class QuantizationState:
    """State of one layer.

    Attributes:
        note: reason that ``summary`` shows.
        skip_reason: :class:`~paddleq.config.SkipReason` of a layer that was left float.
        provenance: method and configuration with which the model was quantized, on its root.
        input_spec: InputSpec of the last call, on the root.
        first_batch_action: function to run on the first batch, on the root.
        calibration: calibration in forward passes that the user runs, on the root.
        calibrator: statistics that the layer collects in them; its ``str()`` is its progress.
        name: name of a quantized layer in the model, for messages.
        kind: its :class:`~paddleq.nn.layer_types.LayerKind`.
        arguments: names of the arguments of its ``forward``.
        parts: attributes under which it has quantizers and preprocesses.
        forward: a ``forward`` that was set on the instance before it was quantized.
        compute_float: compute as the float layer.
        block: the :class:`~paddleq.nn.block.Block` that begins with it.
        member_of: the blocks that a norm or ReLU is part of.
    """

    note: str = ""
    skip_reason: Any = None
    provenance: Optional[dict] = None
    input_spec: Optional[list] = None
    first_batch_action: Optional[Callable] = None
    calibration: Any = None
    calibrator: Any = None
    name: str = ""
    kind: Any = None
    arguments: Sequence[str] = ()
    parts: Tuple[str, ...] = ()
    forward: Optional[Callable] = None
    compute_float: bool = False
    block: Any = None
    member_of: List[Any] = field(default_factory=list)

    def copy(self) -> "QuantizationState":
        """Return a copy that shares the values but not the list of blocks."""
        return replace(self, member_of=list(self.member_of))


_EMPTY = QuantizationState()


def state_of(layer: nn.Layer) -> QuantizationState:
    """Return the state of ``layer``, creating it if there is none."""
    if "_paddleq" not in layer.__dict__:
        layer.__dict__["_paddleq"] = QuantizationState()
    return layer.__dict__["_paddleq"]


def read_state(layer: nn.Layer) -> QuantizationState:
    """Return the state of ``layer``, or an empty state that must not be changed."""
    return layer.__dict__.get("_paddleq", _EMPTY)
