"""Preparation: insertion of fake quantizers into a float model."""

import logging

import paddle
from paddle import nn

from .._checks import check_bool, check_layer, wrong_type
from .._layer_state import Note, NoteKind, read_state, state_of
from .._paddle_compat import is_jit_loaded, register_call_hook
from ..config import QuantConfig
from ..errors import ConfigError, ModelError
from ..nn.call_numbers import count_calls
from ..nn.class_swap import rollback_on_error
from ..nn.deployable import DeployableLayer
from ..nn.quantized_layer import QuantizedLayer, build_parts, make_quantized
from .example_inputs import record_call
from .freeze import copy_of
from .provenance import set_provenance
from .select import (
    JIT_LOADED,
    nothing_selected,
    record_reasons,
    select,
    warn_idle_rules,
    warn_unmatched_types,
)

_logger = logging.getLogger("paddleq")


def check_model(model):
    """Raise unless ``model`` is a float ``paddle.nn.Layer`` that can be quantized."""
    check_layer("model", model)
    if is_jit_loaded(model):
        raise ModelError(JIT_LOADED)
    for name, layer in model.named_sublayers(include_self=True):
        if (isinstance(layer, (QuantizedLayer, DeployableLayer))
                or read_state(layer).calibrator is not None):
            raise ModelError(f"model must be a float model, but its layer {name or 'itself'!r} "
                             "is already quantized; quantize a fresh copy of the float model")


def quantize(model: nn.Layer, config: QuantConfig, inplace: bool = False) -> nn.Layer:
    """Insert fake quantizers into the layers of ``model`` that ``config`` matches.

    Train the result, or run :func:`paddleq.calibrate` on it, and export it with
    :func:`paddleq.save_quantized_model`. :class:`paddleq.QAT`, :class:`paddleq.PTQ` and
    :class:`paddleq.golden_stick.SimulatedQuantizationAwareTraining` parse the configuration of a
    vendor's interface and do the same.

    Args:
        model: a float32 ``paddle.nn.Layer``.
        config: rules that assign a :class:`~paddleq.config.LayerConfig` to layers.
        inplace: change ``model`` itself. Default False: a copy.

    Returns:
        The quantized model. If an error or an interrupt ends the call, ``model`` is as before.

    Raises:
        ConfigTypeError: ``config`` is no QuantConfig.
        ConfigError: an entry of a rule matches no layer, or a configuration has algorithms for
            weights; :func:`paddleq.algorithms.quantize_layer_by_layer` runs those.
        ModelError: the model is already quantized, is not float32, or has nothing to quantize.

    Examples:
        >>> import paddle, paddleq
        >>> from paddleq import LayerConfig, QuantConfig, QuantSpec
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2))
        >>> config = QuantConfig()
        >>> config.add_type(paddle.nn.Linear, LayerConfig(QuantSpec(4), QuantSpec(8)))
        >>> config.add_name("1", None)
        >>> quantized = paddleq.quantize(net, config)
        >>> paddleq.calibrate(quantized, [paddle.rand([8, 2])])
        1
        >>> [type(layer).__name__ for layer in quantized]
        ['QuantizedLinear', 'Linear']
    """
    check_model(model)
    if not isinstance(config, QuantConfig):
        raise wrong_type("config", config, "a QuantConfig")
    model = model if check_bool("inplace", inplace) else copy_of(model)
    warn_unmatched_types(model, config.types(), "the configuration")
    with rollback_on_error(model):
        prepare(model, config)
        set_provenance(model, "quantize", rules=config.rules)
    return model


def prepare(model, config, before=None):
    """Insert fake quantizers into the layers of ``model`` that ``config`` matches, in place.

    ``before`` runs after the checks and before the first change; if it raises, the model stays
    float.
    """
    check_model(model)
    selection, shared = select(model, config), {}
    if not selection.selected:
        raise nothing_selected(model, selection)
    warn_idle_rules(model, config, selection)
    double = [name for name, parameter in model.named_parameters()
              if parameter.dtype == paddle.float64]
    if double:
        raise ModelError(f"the parameters of a model to quantize must not be float64, which "
                         f"runtimes do not take, but {', '.join(double)} are; call "
                         "model.to(dtype='float32') first")
    for name, each in selection.selected.items():
        if each.config.smoother is not None or each.config.rounder is not None:
            raise ConfigError(
                f"the configuration of {name!r} must have no smoother and no rounder to simulate "
                f"quantization, but has {each.config.algorithm or each.config.rounder}; "
                "paddleq.algorithms.quantize_layer_by_layer runs these algorithms")
        if each.config.kv_cache is not None:
            raise ConfigError(
                f"the configuration of {name!r} must have kv_cache=None to simulate quantization, "
                f"but has {each.config.kv_cache!r}; "
                "paddleq.algorithms.quantize_layer_by_layer quantizes KV caches")
    parts = {name: build_parts(each.layer, each.config, name, shared)
             for name, each in selection.selected.items()}
    for layer in model.sublayers(include_self=True):
        state = state_of(layer)
        state.notes, state.reason, state.fold_on_export = (), None, False
    if before is not None:
        before()
    for name, each in selection.selected.items():
        make_quantized(each.layer, name, parts[name])
        state_of(each.layer).notes = Note(NoteKind.QUANTIZED, detail=each.entry),
    record_reasons(model, selection, keep_notes=True)
    register_call_hook(model, record_call)
    count_calls(model, [each.layer for each in selection.selected.values()
                        if not each.layer._paddleq.kind.weights])
    _logger.info("%d layers quantized", len(parts))
    return model
