"""Parsing of arguments that ``QAT`` and ``PTQ`` share."""

import logging
from typing import Any, Callable, Iterable, List, Optional, Sequence

from paddle import nn

from ... import engine
from ..._checks import check_choice, wrong_type
from ...algorithms.equalization import equalize_on
from ...config import LayerConfig, QuantConfig, Scope
from ...engine.example_inputs import fold_batch_norms, run_on_first_inputs
from ...errors import ConfigError
from ...nn.layer_types import QuantizableFunction, known_classes
from ...saved_model import SavedModel
from ...saved_model.fold_layer_affines import fold_layer_affines
from ...saved_model.full_scope import full_scope

_logger = logging.getLogger("paddleq")
SCOPES = ("weighted", "full")  # the first is the default


def layer_classes(name: str, value: Any) -> List[type]:
    """Return the registered layer classes of a list of classes or of their names."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "a list of layer classes or their names")
    known, classes = known_classes(), []
    for entry in value:
        if isinstance(entry, str):
            classes.append(known[check_choice(name, entry, known)])
        elif isinstance(entry, type) and issubclass(entry, nn.Layer):
            if not any(issubclass(entry, cls) and entry.forward is cls.forward
                       for cls in known.values()):
                raise ConfigError(f"{name}: {entry.__name__} is not registered; register it "
                                  "with paddleq.register_layer")
            classes.append(entry)
        else:
            raise wrong_type(name, entry, "a list of layer classes or their names")
    return classes


def rules_for(classes: Optional[Sequence[type]], config: LayerConfig,
              skip: Optional[Scope] = None) -> QuantConfig:
    """Return the rules of one configuration for these classes and for QuantizableFunction.

    ``classes`` may be None for all registered ones but Embedding.
    """
    if classes is None:
        classes = [cls for cls in known_classes().values()
                   if cls not in (nn.Embedding, QuantizableFunction)]
    rules = QuantConfig()
    for cls in [*classes, QuantizableFunction]:
        rules.add_type(cls, config)
    rules.add(skip or Scope(), None)
    return rules


def extend_rules(model: nn.Layer, rules: QuantConfig, scope: str, fuse: bool,
                 skip_tensors: Iterable[str] = ()) -> Callable[[], None]:
    """Extend the rules to the ``scope``; return a function to call after the preparation.

    ``fuse`` and ``skip_tensors`` are those of :func:`paddleq.saved_model.full_scope.full_scope`.
    """
    if scope == SCOPES[0]:
        return lambda: None
    if not isinstance(model, SavedModel):
        raise wrong_type("model", model, "a paddleq.SavedModel for scope='full'")
    return full_scope(model, rules, fuse, skip_tensors)


def warn_unused_inputs(inputs: Any, used: bool, argument: str) -> None:
    """Warn of example ``inputs`` that nothing reads, because nothing is folded or equalized."""
    if inputs is not None and not used:
        _logger.warning("inputs has no effect: it is for %s=True, which is False", argument)


def fold_in_programs(model: nn.Layer) -> None:
    """Fold affine operators of saved models in ``model``, in place, before it is prepared."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, SavedModel):
            layer.fold_affines()


def fold_layers(model: nn.Layer, inputs: Any, fuse_list: Optional[Sequence] = None,
                equalize: bool = False) -> None:
    """Fold affine operators and batch norms into weights, or only the norms of ``fuse_list``.

    That happens on example inputs, or on the first batch if ``inputs`` is None. With ``equalize``,
    the ranges of the channels of successive layers are equalized then.
    """
    fold_batch_norms(model, inputs, fuse_list,
                     fold_layer_affines if fuse_list is None else None,
                     equalize_on if equalize else None)


def equalize_layers(model: nn.Layer, inputs: Any) -> None:
    """Equalize the ranges of channels on example inputs, or on the first batch."""
    run_on_first_inputs(model, inputs, equalize_on)


def insert_observers(model: nn.Layer, rules: QuantConfig, fold: Optional[Callable]) -> None:
    """Prepare ``model`` for calibration, after ``fold()`` if it is given."""
    engine.prepare(model, rules, fold)
    model.eval()
    engine.set_state(model, "calibration")


def skip_rules(skip: Scope) -> Optional[List[dict]]:
    """Return the ``rules`` of a recipe that skip the layers of a scope; None if it is empty."""
    return [{key: entry, "skip": True} for key, entries in (
        ("name", skip.names), ("pattern", skip.patterns),
        ("type", [cls.__name__ for cls in skip.types])) for entry in entries] or None
