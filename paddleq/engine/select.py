"""Selection of the layers to quantize, and the reasons for those that stay float."""

import logging
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Optional, Sequence

from paddle import nn

from .._checks import wrong_type
from .._layer_state import Note, NoteKind, state_of
from .._paddle_compat import dtype_name, is_jit_loaded, own_sublayers
from ..config import LayerConfig, QuantConfig, Scope, SkipKind, SkipReason
from ..errors import ModelError
from ..nn.layer_types import has_own_forward, kind_of

JIT_LOADED = ("a model that paddle.jit.load returns is a compiled program without layers to "
              "quantize; load its files with paddleq.SavedModel(path), whose operators are layers")
_logger = logging.getLogger("paddleq")
FLOAT_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass
class SelectedLayer:
    """A layer to quantize."""

    layer: Any
    config: LayerConfig
    entry: str  # of the rule that decided, such as "type Linear"


@dataclass
class Selection:
    """Layers of a model, by name in order of definition."""

    selected: Dict[str, SelectedLayer] = field(default_factory=dict)
    skipped: Dict[str, SkipReason] = field(default_factory=dict)  # all other layers


def class_skip_reason(layer: nn.Layer, config: Optional[LayerConfig]) -> Optional[SkipReason]:
    """Return the reason for which the layer's class cannot be quantized, or None if it can."""
    if kind_of(layer) is not None:
        return None
    return SkipReason(SkipKind.OVERRIDES_FORWARD if has_own_forward(layer)
                      else SkipKind.NOT_REGISTERED)


def select(model: nn.Layer, rules: Optional[QuantConfig],
           reason_of: Callable[[nn.Layer, Optional[LayerConfig]],
                               Optional[SkipReason]] = class_skip_reason,
           dtypes: Sequence[str] = ("float32",)) -> Selection:
    """Choose the layers of ``model`` to quantize.

    A layer is skipped if ``skip_quant`` is set on it or on a layer that it is in, if no rule of
    ``rules`` matches, if the last rule that matches excludes it, or if ``reason_of`` returns a
    reason for it and its configuration (None without a rule).
    """
    if not isinstance(rules, QuantConfig):
        raise wrong_type("config", rules, "a QuantConfig")
    found, matching, marked = Selection(), rules.resolve(model), set()
    for name, layer in model.named_sublayers(include_self=True):
        if getattr(layer, "skip_quant", False) or (
                name and name.rpartition(".")[0] in marked):
            marked.add(name)
            found.skipped[name] = SkipReason(SkipKind.SKIP_ATTRIBUTE)
            continue
        rule = matching.get(name)
        config = None if rule is None else rule.config
        unsupported = reason_of(layer, config)
        if unsupported is not None and (
                config is not None or unsupported.kind is not SkipKind.NOT_REGISTERED):
            found.skipped[name] = unsupported
        elif rule is None:
            found.skipped[name] = SkipReason(SkipKind.NO_RULE)
        elif config is None:
            found.skipped[name] = SkipReason(SkipKind.EXCLUDED, rule.entry)
        else:
            _check_dtype(name, layer, dtypes)
            found.selected[name] = SelectedLayer(layer, config, rule.entry)
    return found


def warn_idle_rules(model: nn.Layer, rules: QuantConfig, selection: Selection,
                    reason_of: Callable[[nn.Layer, Optional[LayerConfig]],
                                        Optional[SkipReason]] = class_skip_reason) -> None:
    """Warn of entries of rules without effect; the arguments are those of :func:`select`.

    Such an entry excludes only layers that would stay float without it, or configures no layer that
    can be quantized. Type rules without a layer are left to :func:`warn_unmatched_types`.
    """
    layers = dict(model.named_sublayers(include_self=True))
    wanted = QuantConfig()
    wanted.rules = [(scope, config) for scope, config in rules.rules if config is not None]
    selectable = {name for name, rule in wanted.resolve(model).items()
                  if reason_of(layers[name], rule.config) is None}
    marked = {name for name, reason in selection.skipped.items()
              if reason.kind is SkipKind.SKIP_ATTRIBUTE}
    for scope, config in rules.rules:
        if config is not None and (scope.label or not scope.required):
            continue
        matched: Dict[str, set] = {}
        for name, entry in scope.find(model).items():
            matched.setdefault(entry, set()).add(name)
        for entry, names in matched.items():
            # A layer that another rule decides about, or that skip_quant excludes, counts.
            if names.isdisjoint(selectable | marked):
                _logger.warning("%s has no effect: it matches no layer that %s", entry,
                                "would be quantized without it" if config is None else
                                "can be quantized (paddleq.summary gives the reasons)")


def warn_unmatched_types(model: nn.Layer, types: Iterable[type], argument: str) -> None:
    """Warn of layer classes in the ``argument`` of a user of which the model has no layer."""
    for cls in types:
        if not Scope(types=[cls], contents=False, required=False).find(model):
            _logger.warning("%s has %s, but the model has no layer of this class", argument,
                            cls.__name__)


def nothing_selected(model: nn.Layer, selection: Selection) -> ModelError:
    """Return the error for a model without a layer to quantize: its leaf layers, and why."""
    layers = dict(model.named_sublayers(include_self=True))
    reasons = sorted({f"{type(layers[name]).__name__} ({reason})"
                      for name, reason in selection.skipped.items()
                      if not own_sublayers(layers[name])})
    advice = f"; {JIT_LOADED}" if any(map(is_jit_loaded, layers.values())) else ""
    return ModelError(
        f"model has no layer to quantize; its layers are {'; '.join(reasons)}{advice}")


def leave_float(selection: Selection, name: str, reason: SkipReason) -> None:
    """Move a selected layer to the skipped ones, with a warning, in place."""
    state_of(selection.selected.pop(name).layer).notes = Note(NoteKind.FLOAT, detail=str(reason)),
    selection.skipped[name] = reason
    _logger.warning("%s stays float: %s", name or "(model)", reason)


def record_reasons(model: nn.Layer, selection: Selection, keep_notes: bool = False) -> None:
    """Keep the reasons for skipped layers on the layers, where :func:`summary` finds them."""
    layers = dict(model.named_sublayers(include_self=True))
    for name, reason in selection.skipped.items():
        state = state_of(layers[name])
        if not (keep_notes and state.notes):
            state.notes = Note(NoteKind.FLOAT, detail=str(reason)),
        state.reason = reason


def _check_dtype(name, layer, dtypes):
    kind = kind_of(layer)
    for weight in () if kind is None else kind.weights:
        dtype = dtype_name(getattr(layer, weight).dtype)
        if dtype not in dtypes:
            raise ModelError(
                f"the weights of a model to quantize must be {' or '.join(dtypes)}, but "
                f"{name or '(model)'}.{weight} is {dtype}; call model.to(dtype='float32') first "
                "(paddle.amp.auto_cast O1 keeps float32 weights and works with quantization)")
