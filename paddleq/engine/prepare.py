"""Turning a float model into one with quantizers, in place."""

import logging

import paddle
from paddle import nn
from paddle.static import InputSpec

from .._checks import wrong_type
from .._layer_state import state_of
from .._paddle_compat import own_sublayers
from ..errors import ModelError
from ..nn.calibrating import CalibratingLinear
from ..nn.deployable import DeployableLayer
from ..nn.quantized_layer import LayerPlan, QuantizedLayer
from .select import select

_logger = logging.getLogger("paddleq")


def check_model(model):
    """Raise unless ``model`` is a float ``paddle.nn.Layer`` that can be quantized."""
    if not isinstance(model, nn.Layer):
        raise wrong_type("model", model, "a paddle.nn.Layer")
    for name, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, (QuantizedLayer, CalibratingLinear, DeployableLayer)):
            raise ModelError(f"model must be a float model, but its layer {name or 'itself'!r} "
                             "is already quantized; quantize a fresh copy of the float model")


def prepare(model, config, before=None):
    """Quantize the layers of ``model`` that ``config`` gives a policy, in place.

    Every layer gets a note of what was done to it or why not, which
    :func:`paddleq.summary` shows. If anything is wrong the model is left as it was.

    Args:
        model: a float ``paddle.nn.Layer``.
        config: a :class:`~paddleq.config.QuantConfig`.
        before: called when everything is checked and nothing is changed yet (fusion). What it
            raises leaves the model a float one.

    Returns:
        The model itself.

    Raises:
        ModelError: already quantized, weights that are not float32, or nothing to quantize.
        ConfigError: a rule by name or pattern matched no layer.
    """
    check_model(model)
    selection, shared = select(model, config), {}
    if not selection.selected:
        kinds = sorted({type(layer).__name__ for _, layer in model.named_sublayers(
            include_self=True) if not own_sublayers(layer)})
        raise ModelError("model has no layer to quantize under this configuration; "
                         f"its layers are of types {', '.join(kinds)}")
    plans = [LayerPlan(each.layer, each.config, name, shared)
             for name, each in selection.selected.items()]
    layers = dict(model.named_sublayers(include_self=True))
    notes = [(layers[name], str(reason)) for name, reason in selection.skipped.items()]
    notes += [(each.layer, f"quantized by {each.entry}") for each in selection.selected.values()]
    for layer, _ in notes:
        state_of(layer).note = ""
    if before is not None:
        before()
    for plan in plans:
        plan.apply()
    for layer, note in notes:
        # Fusion may already have said something about a norm.
        state = state_of(layer)
        state.note = state.note or note
    model.register_forward_pre_hook(_remember_inputs)
    _logger.info("%d layers quantized", len(plans))
    return model


def _remember_inputs(model, inputs):
    # What an export without input_spec goes by.
    if paddle.in_dynamic_mode() and inputs and all(isinstance(x, paddle.Tensor) for x in inputs):
        state_of(model).input_spec = [
            InputSpec([None, *x.shape[1:]], str(x.dtype).replace("paddle.", "")) for x in inputs]
