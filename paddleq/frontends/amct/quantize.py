"""``quantize(model, config)``, which lets a model calibrate, and ``convert(model)``."""

import logging

from paddle import nn

from ... import engine
from ..._checks import wrong_type
from ..._layer_state import state_of
from ..._paddle_compat import own_sublayers
from ...algorithms import AWQ, GPTQ, SmoothQuant
from ...algorithms import own_loop as in_forward
from ...config import LayerConfig
from ...errors import ModelError
from ...nn.linear_support import linear_skip_reason
from .config import AmctConfig

_logger = logging.getLogger("paddleq")


def quantize(model, config):
    """Let the Linear layers of a model calibrate, in place, as AMCT's function of that name.

    Then run the model on data as usual: each forward pass is a batch. After ``batch_num`` of them
    a layer quantizes its weight, and computes from then on as the quantized layer that
    :func:`convert` puts in its place. Layers are independent of each other: each observes what it
    reads in the float model.

    ``paddle.nn.Linear`` is quantized, and subclasses that keep its ``forward``. Other layers are
    left as they are; :func:`paddleq.summary` says why.

    Args:
        model: a float ``paddle.nn.Layer``, float32, float16 or bfloat16.
        config: dict. All keys are needed unless it says otherwise.

            - ``batch_num``: batches to calibrate on, an int of at least 1 (uint32).
            - ``quant_cfg``: dict.

              - ``weights``: dict.

                - ``type``: "int8" or "int4".
                - ``symmetric``: bool. False: with a zero point.
                - ``strategy``: "tensor", "channel" (a scale for each output) or "group" (of
                  ``group_size`` inputs, for each output).
                - ``group_size``: with "group" only: a multiple of 32 in [32, K - 1], where K is
                  the number of inputs of a layer. The last group may be smaller.
              - ``inputs`` (optional; without it weights alone are quantized): dict.

                - ``type``: "int8".
                - ``symmetric``: bool; True for "token".
                - ``strategy``: "tensor" (one scale, fixed by calibration) or "token" (a scale for
                  each token, computed when the model runs).
            - ``algorithm``: one of these, as a str, a set of it, or a dict from it to its options.

              - ``"minmax"``: round to nearest.
              - ``"smoothquant"``: ``smooth_strength`` (0.5), a float in (0, 1): how much of the
                difficulty moves from the inputs to the weights. The larger the outliers among the
                inputs, the larger it should be (AMCT's document says smaller, its formula this).
              - ``"awq"``: ``grids_num`` (20), how many values the search tries; more take longer
                and find smaller errors.
              - ``"gptq"``.
            - ``skip_layers`` (optional): a str or a list of str; a layer whose name contains one
              of them is left alone.

            ======================= ==================== ============================
            weights                 inputs               algorithms
            ======================= ==================== ============================
            int8: tensor, channel   int8: tensor, token  minmax, smoothquant
            int8, int4: all three   none                 minmax, awq, gptq
            ======================= ==================== ============================

    Returns:
        None.

    Raises:
        ConfigTypeError: (a TypeError) ``model`` or a value of ``config`` is of another type.
        ConfigError: (a ValueError) a key is missing or unknown, a value is out of range, or
            values do not go together. The model is left as it was.
        ModelError: the model is quantized already, or has nothing to quantize.

    See :class:`~paddleq.algorithms.SmoothQuant`, :class:`~paddleq.algorithms.AWQ` and
    :class:`~paddleq.algorithms.GPTQ` for the papers.

    Examples:
        >>> import paddle, paddleq
        >>> model = paddle.nn.Sequential(paddle.nn.Linear(64, 8), paddle.nn.ReLU(),
        ...                              paddle.nn.Linear(8, 2))
        >>> paddleq.amct.quantize(model, {
        ...     "batch_num": 2,
        ...     "quant_cfg": {"weights": {"type": "int4", "symmetric": True, "strategy": "group",
        ...                               "group_size": 32}},
        ...     "algorithm": {"awq": {"grids_num": 10}},
        ...     "skip_layers": "2"})
        >>> for _ in range(2):
        ...     _ = model(paddle.rand([16, 64]))
        >>> paddleq.amct.convert(model)
        >>> model[0]
        IntegerLinear(in_features=64, out_features=8, AWQ-W4-per_group, smoothed)
    """
    given, config = config, AmctConfig.parse(config)
    engine.check_model(model)
    layers, notes = _layers(model, config)
    policy = linear_policy(config)
    for name in layers:
        config.check_group_size(name, layers[name].weight.shape[0])
    if not layers:
        raise ModelError("model has no layer to quantize: its layers are " + "; ".join(
            sorted({f"{type(layer).__name__} ({why})" for layer, why in notes})))
    for layer, note in notes:
        state_of(layer).note = note
    in_forward.start(model, dict.fromkeys(layers, policy), config.batch_num)
    engine.say_method(model, "amct", config={
        **given, "algorithm": {config.algorithm: config.options}})


def convert(model):
    """Put deployable layers in the place of those that :func:`quantize` calibrated, in place.

    The model computes what it computed since the last batch of calibration. It is saved with
    :func:`paddleq.save_checkpoint` and exported with :func:`paddleq.save_quantized_model`.

    Args:
        model: the model that was given to :func:`quantize`, run on ``batch_num`` batches.

    Returns:
        None.

    Raises:
        ConfigTypeError: (a TypeError) ``model`` is no ``paddle.nn.Layer``.
        ModelError: :func:`quantize` was not called on it.
        CalibrationError: layers saw fewer than ``batch_num`` batches; names them, and how many
            each saw. The model is left as it was.

    Examples:
        >>> import paddle, paddleq
        >>> model = paddle.nn.Sequential(paddle.nn.Linear(64, 8))
        >>> channel = {"type": "int8", "symmetric": True, "strategy": "channel"}
        >>> paddleq.amct.quantize(model, {"batch_num": 2, "quant_cfg": {"weights": channel},
        ...                          "algorithm": "minmax"})
        >>> _ = model(paddle.rand([16, 64]))
        >>> paddleq.amct.convert(model)
        Traceback (most recent call last):
            ...
        paddleq.errors.CalibrationError: calibration needs 2 batches, but 1 of 1 layers saw ...
    """
    if not isinstance(model, nn.Layer):
        raise wrong_type("model", model, "a paddle.nn.Layer")
    in_forward.finish(model)


def _layers(model, config):
    """(name -> Linear to quantize, [(layer, why it is left alone)])."""
    layers, notes, names = {}, [], []
    for name, layer in model.named_sublayers(include_self=True):
        names.append(name)
        part = config.skipped_by(name)
        why = linear_skip_reason(layer) or (part and f"skip_layers has {part!r}")
        if not why:
            layers[name] = layer
        elif not own_sublayers(layer):
            notes.append((layer, str(why)))
    for part in config.skip_layers:
        if not any(part in name for name in names):
            _logger.warning("config['skip_layers'] has %r, which no layer's name contains", part)
    return layers, notes


def linear_policy(config):
    """The :class:`~paddleq.config.LayerConfig` of an :class:`~.config.AmctConfig`."""
    options = config.options
    smoother = {
        "smoothquant": lambda: SmoothQuant(options.get("smooth_strength", 0.5)),
        "awq": lambda: AWQ(grids_num=options.get("grids_num", 20)),
    }.get(config.algorithm, lambda: None)()
    rounder = {"rounder": GPTQ()} if config.algorithm == "gptq" else {}
    return LayerConfig(config.weight, config.activation, smoother, **rounder)
