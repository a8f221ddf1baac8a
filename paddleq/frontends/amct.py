"""AMCT's interface: ``quantize(model, config)`` and ``convert(model)``."""

from typing import Any, Dict

from paddle import nn

from .. import engine
from .._checks import check_choice, check_layer
from ..algorithms import own_loop
from ..engine.select import (
    FLOAT_DTYPES,
    nothing_selected,
    record_reasons,
    select,
    warn_idle_rules,
)
from ..nn.class_swap import rollback_on_error
from ..nn.integer_linear import linear_skip_reason
from .amct_config import AmctConfig

__all__ = ["convert", "quantize"]


def quantize(model: nn.Layer, config: Dict[str, Any]) -> None:
    """Start the calibration of the Linear layers of a model, in place.

    Run the model on calibration data afterwards; each forward pass is one batch. After
    ``batch_num`` batches a layer quantizes its weight and computes as the integer layer that
    :func:`convert` replaces it with. Layers are calibrated independently of each other: each
    observes its input in the float model.

    ``paddle.nn.Linear`` and its subclasses that keep its ``forward`` are quantized, except those
    that choose the experts of a mixture (named gate, router, switch or wg, with an output for each
    member of the list of experts beside them). Other layers
    stay float; :func:`paddleq.summary` shows the reasons.

    Args:
        model: a float ``paddle.nn.Layer``, float32, float16 or bfloat16.
        config: dict. All keys are needed unless it says otherwise.

            - ``batch_num``: batches to calibrate on, an int of at least 1 (uint32).
            - ``quant_cfg``: dict.

              - ``weights``: dict.

                - ``type``: "int8", "int4", or a float type: "hifloat8", "float8_e4m3fn",
                  "mxfp8_e4m3fn", "mxfp4_e2m1" or "float4_e2m1".
                - ``symmetric``: bool. False: with a zero point; True for float types.
                - ``strategy``: "tensor", "channel" (a scale for each output) or "group" (of
                  ``group_size`` inputs, for each output).
                - ``group_size``: with "group" only: a multiple of 32 in [32, K - 1], where K is
                  the number of inputs of a layer. The last group may be smaller. 32 for the types
                  with "mx", 32, 64, 128 or 256 for "float4_e2m1".
              - ``inputs`` (optional; without it weights alone are quantized): dict.

                - ``type``: "int8", "hifloat8", "float8_e4m3fn" or "mxfp8_e4m3fn".
                - ``symmetric``: bool; True for "token" and for float types.
                - ``strategy``: "tensor" (one scale, fixed by calibration), "token" (a scale for
                  each token, computed when the model runs), or "group" (of 32 features of a
                  token, when the model runs; for "mxfp8_e4m3fn" only).
                - ``dynamic`` (optional): True with "token". (AMCT's False fixes the scale of each
                  position of a sequence, and is an error here.)
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
              - ``"mxquant"``: round to nearest in an MX type.
              - ``"ofmr"``: see :class:`~paddleq.algorithms.OFMR`: scales 2**-5 to 2**5, the one
                that changes the outputs of the layer least, of the weights (for the tensor or each
                output) and, with "tensor", of the inputs, one without the other.
              - ``"cast"``: weights with the scale max|w| / 16; inputs without a scale.
              - ``"quantile"``: weights as "cast"; with "tensor", the scale of the inputs is q / 16,
                where q is max|x| of the first batch, then 0.99 * q + 0.01 * max|x| of each batch.
              - The name of another registered algorithm, with the arguments of its class.
            - ``skip_layers`` (optional): a str or a list of str; a layer whose name contains one
              of them stays float.

            ======================= ==================== ============================
            weights                 inputs               algorithms
            ======================= ==================== ============================
            int8: tensor, channel   int8: tensor, token  minmax, smoothquant
            int8, int4: all three   none                 minmax, awq, gptq
            hifloat8: tensor,       hifloat8: tensor,    ofmr, cast, quantile,
            channel                 token                smoothquant
            hifloat8                none                 ofmr, gptq, cast, quantile
            float8_e4m3fn: tensor,  float8_e4m3fn:       ofmr
            channel                 tensor, token
            float8_e4m3fn           none                 ofmr, gptq
            mxfp8_e4m3fn: group     mxfp8_e4m3fn: group  mxquant
            mxfp4_e2m1: group       none                 mxquant, awq, gptq
            float4_e2m1: group      float8_e4m3fn:       minmax, smoothquant
                                    tensor
            float4_e2m1: group      none                 minmax, awq, gptq
            ======================= ==================== ============================

    The float types and their algorithms follow the documents of AMCT of August 2026
    (``docs/zh/api/quantize.md``, ``compression_concepts.md``, ``algorithm_brief.md`` and
    ``context/hifloat8_quantization.md`` in its repository) and, where these are silent, its source.
    :class:`~paddleq.QuantSpec` defines the data types. The scale of hifloat8 maps the largest
    magnitude to 16 (per token too, where AMCT's source has 15); that of MXFP4 is doubled where
    max|w| is above 1.75 times a power of two, as AMCT's document says and OCP's does not.
    Constraints of Ascend on shapes and dtypes of the model do not apply.

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
    rules = parsed.rules(model)
    selection = select(model, rules, linear_skip_reason, FLOAT_DTYPES)
    if not selection.selected:
        raise nothing_selected(model, selection)
    for name, each in selection.selected.items():
        parsed.check_group_size(name, each.layer.weight.shape[0])
    warn_idle_rules(model, rules, selection, linear_skip_reason)
    record_reasons(model, selection)
    with rollback_on_error(model):
        own_loop.start(model, {name: each.config for name, each in selection.selected.items()},
                       parsed.batch_num)
        engine.set_provenance(model, "amct", config={
            **config, "algorithm": {parsed.algorithm: parsed.options}})


def convert(model: nn.Layer, uncalibrated: str = "float") -> None:
    """Replace the layers that :func:`quantize` calibrated with integer layers, in place.

    The outputs are those after the last batch of calibration. Layers that no batch reached, such
    as heads that only training runs, stay float, with a warning. Save the model with
    :func:`paddleq.save_checkpoint` or export it with :func:`paddleq.save_quantized_model`.

    Args:
        model: the model that was given to :func:`quantize`, run on ``batch_num`` batches.
        uncalibrated: for layers that fewer of these batches reached, such as experts that few
            tokens choose. "float" (default): a layer that none reached stays float, with a warning,
            and one that some reached is an error. "round": they are quantized on the batches that
            reached them, or their weights rounded to nearest, with a warning. (Not in AMCT.)

    Returns:
        None.

    Raises:
        ConfigTypeError: (a TypeError) ``model`` is no ``paddle.nn.Layer``.
        ModelError: :func:`quantize` was not called on it.
        CalibrationError: layers saw some batches, but fewer than ``batch_num``, or no layer saw
            any; names them and their numbers of batches. The model is not changed.

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
    check_layer("model", model)
    own_loop.finish(model, check_choice("uncalibrated", uncalibrated, ("float", "round")))
