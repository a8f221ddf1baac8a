"""``quantize`` and ``convert`` with AMCT's interface."""

from typing import Any, Dict

from paddle import nn

from ... import engine
from ..._checks import wrong_type
from ...algorithms import own_loop
from ...engine.select import FLOAT_DTYPES, nothing_selected, record_reasons, select
from ...nn.integer_linear import linear_skip_reason
from .config import AmctConfig


def quantize(model: nn.Layer, config: Dict[str, Any]) -> None:
    """Start the calibration of the Linear layers of a model, in place.

    Run the model on calibration data afterwards; each forward pass is one batch. After
    ``batch_num`` batches a layer quantizes its weight and computes as the integer layer that
    :func:`convert` replaces it with. Layers are calibrated independently of each other: each
    observes its input in the float model.

    ``paddle.nn.Linear`` and its subclasses that keep its ``forward`` are quantized. Other layers
    stay float; :func:`paddleq.summary` shows the reasons.

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

              - ``"minmax"``: round to nearest. ``observer`` ("min_max") names the observer that
                computes the range of inputs with the strategy "tensor", e.g. "KL", "hist" or "mse"
                (an addition to AMCT's options).
              - ``"smoothquant"``: ``smooth_strength`` (0.5), a float in (0, 1): how much of the
                difficulty moves from the inputs to the weights. The larger the outliers among the
                inputs, the larger it should be (AMCT's document says smaller, its formula this).
              - ``"awq"``: ``grids_num`` (20), how many values the search tries; more take longer
                and find smaller errors.
              - ``"gptq"``.
              - The name of another registered algorithm, with the arguments of its class.
            - ``skip_layers`` (optional): a str or a list of str; a layer whose name contains one
              of them stays float.

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
            values contradict each other. The model is not changed.
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
    parsed = AmctConfig.parse(config)
    engine.check_model(model)
    selection = select(model, parsed.rules(model), linear_skip_reason, FLOAT_DTYPES)
    if not selection.selected:
        raise nothing_selected(model, selection)
    for name, each in selection.selected.items():
        parsed.check_group_size(name, each.layer.weight.shape[0])
    record_reasons(model, selection)
    own_loop.start(model, {name: each.config for name, each in selection.selected.items()},
                   parsed.batch_num)
    engine.set_provenance(model, "amct", config={
        **config, "algorithm": {parsed.algorithm: parsed.options}})


def convert(model: nn.Layer) -> None:
    """Replace the layers that :func:`quantize` calibrated with integer layers, in place.

    The outputs are those after the last batch of calibration. Save the model with
    :func:`paddleq.save_checkpoint` or export it with :func:`paddleq.save_quantized_model`.

    Args:
        model: the model that was given to :func:`quantize`, run on ``batch_num`` batches.

    Returns:
        None.

    Raises:
        ConfigTypeError: (a TypeError) ``model`` is no ``paddle.nn.Layer``.
        ModelError: :func:`quantize` was not called on it.
        CalibrationError: layers saw fewer than ``batch_num`` batches; names them and their
            numbers of batches. The model is not changed.

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
    own_loop.finish(model)
