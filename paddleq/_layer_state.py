"""State that quantization keeps on layers of a user's model: the attribute ``_paddleq``."""

import enum
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from paddle import nn


class NoteKind(enum.Enum):
    """Kinds of notes on layers. The value is the text for display."""

    QUANTIZED = "quantized by {detail}"
    FLOAT = "{detail}"  # with the reason
    FUSED = "fused with {all}"  # a layer, with those behind it
    FUSED_INTO = "fused with {names}{detail}"  # a norm or ReLU, into the layers before it
    NOT_FUSED = "not fused with {names}: {detail}"
    NORM_FOLDED = "folded into {names}"
    AFFINE_FOLDED = "{detail} folded into {all}"
    INPUT_QUANTIZED = "its input is quantized by {names}"
    ROUNDING_LEARNED = "rounding learned, {detail}"
    STEPS_LEARNED = "rounding and steps learned, {detail}"
    ROUNDING_LOADED = "rounding loaded"


@dataclass(frozen=True)
class Note:
    """Note of a step of quantization on a layer, for display.

    Args:
        kind: a :class:`NoteKind`.
        names: of other layers.
        detail: further text, such as a reason.
    """

    kind: NoteKind
    names: Tuple[str, ...] = ()
    detail: str = ""

    def __str__(self) -> str:
        return self.kind.value.format(names=", ".join(self.names), all=" and ".join(self.names),
                                      detail=self.detail)


@dataclass
class QuantizationState:
    """State of one layer."""

    notes: Tuple[Note, ...] = ()  # which ``summary`` shows
    reason: Any = None  # config.SkipReason of a layer that stays float
    # On the root of a model:
    provenance: Optional[dict] = None  # method and configuration of quantization
    example_call: Optional[list] = None  # [args, kwargs] of the last call, InputSpec for tensors
    first_batch_action: Optional[Callable] = None  # run on the first batch
    fold_on_export: bool = False  # exports fold affine operators of the traced program
    calibration: Any = None  # calibration in forward passes that the user runs
    # On a quantized layer:
    calibrator: Any = None  # statistics that it collects in them; its ``str()`` is its progress
    name: str = ""  # in the model, for messages
    kind: Any = None  # its nn.layer_types.LayerKind
    arguments: Sequence[str] = ()  # of its ``forward``
    calls: int = 1  # in a forward pass for which it has quantizers; kind.inputs repeats as often
    templates: Dict[str, Any] = field(default_factory=dict)  # quantizers of a call, without data
    call_ranges: Dict[int, float] = field(default_factory=dict)  # largest magnitude of each call
    parts: Tuple[str, ...] = ()  # attributes under which it has quantizers and preprocesses
    # Attributes of input quantizers that it has not, because output quantizers of layers replace
    # them -> names of these layers.
    replaced: Dict[str, Tuple[str, ...]] = field(default_factory=dict)
    forward: Optional[Callable] = None  # set on the instance before it was quantized
    compute_float: bool = False  # compute as the float layer
    thread: Optional[int] = None  # the only one that may call it: it calibrates or analyses
    block: Any = None  # the nn.block.Block that begins with it
    member_of: List[Any] = field(default_factory=list)  # blocks that a norm or ReLU is part of
    # Of its own parameters, those whose multiplication or addition was folded into other layers.
    neutral: Tuple[str, ...] = ()

    def __getstate__(self):
        return {**self.__dict__, "thread": None}  # a copy is not calibrated

    @property
    def note(self) -> str:
        """Text of the notes."""
        return "; ".join(map(str, self.notes))

    def add_note(self, note: Note) -> None:
        """Append a note."""
        self.notes += note,

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
