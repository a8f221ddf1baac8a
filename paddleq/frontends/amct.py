"""AMCT's interface: ``quantize(model, config)`` and ``convert(model)``."""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

from paddle import nn

from .. import engine
from .._checks import (
    check_bool,
    check_choice,
    check_config,
    check_float,
    check_int,
    check_layer,
    check_name_parts,
    wrong_type,
    wrong_value,
)
from ..algorithms import ALGORITHMS, Smoother, own_loop
from ..algorithms.layerwise.network_helper import routers
from ..config import LayerConfig, QuantConfig, Scope
from ..config.layer_config import check_activation_observer, static_activation
from ..engine.select import (
    FLOAT_DTYPES,
    nothing_selected,
    record_reasons,
    select,
    warn_idle_rules,
)
from ..errors import ConfigError
from ..nn.class_swap import rollback_on_error
from ..nn.integer_linear import linear_skip_reason
from ..spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

__all__ = ["convert", "quantize"]

GROUP_UNIT = 32
MINMAX = "minmax"  # AMCT's name of the registered algorithm "rtn"

_check_count = partial(check_int, low=1, high=2**32 - 1)

# AMCT's options -> (argument of the registered algorithm, check). All options of other algorithms
# are their own arguments.
_OPTIONS = {
    MINMAX: {"observer": ("", check_activation_observer)},
    "smoothquant": {"smooth_strength": (
        "strength", partial(check_float, low=0, high=1, open_low=True, open_high=True))},
    "awq": {"grids_num": ("grids_num", _check_count)},
    "gptq": {},
}
_NEED_INPUTS = ("smoothquant",)
_WEIGHTS_ALONE = ("awq", "gptq")


def _algorithms(*excluded: str) -> List[str]:
    """Return AMCT's names of the registered algorithms."""
    return [name for name in (MINMAX, *ALGORITHMS) if name not in ("rtn", *excluded)]


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


@dataclass(frozen=True)
class AmctConfig:
    """A parsed and validated ``config``."""

    batch_num: int
    weight: QuantSpec
    activation: Optional[QuantSpec]
    algorithm: str
    options: Dict[str, Any] = field(default_factory=dict)
    skip_layers: Tuple[str, ...] = ()

    @classmethod
    def parse(cls, config: Any) -> "AmctConfig":
        """Parse a user's dict."""
        values = check_config("config", config, {
            "batch_num": _check_count, "quant_cfg": partial(check_config, checks={
                "weights": _check_weights, "inputs": _check_inputs}, required=("weights",)),
            "algorithm": _check_algorithm, "skip_layers": _check_skip_layers,
        }, required=("batch_num", "quant_cfg", "algorithm"))
        algorithm, options = values["algorithm"]
        parsed = cls(values["batch_num"], values["quant_cfg"]["weights"],
                     values["quant_cfg"].get("inputs"), algorithm, options,
                     values.get("skip_layers", ()))
        parsed._check_together()
        return parsed

    def layer_config(self) -> LayerConfig:
        """Return the configuration of the layers that are quantized."""
        if self.algorithm == MINMAX:
            activation = static_activation(self.activation, **self.options)
            return LayerConfig(self.weight, activation)
        names = {key: argument for key, (argument, _) in _OPTIONS.get(self.algorithm, {}).items()}
        algorithm = ALGORITHMS[self.algorithm](**{
            names.get(key, key): value for key, value in self.options.items()})
        part: dict = {"smoother" if isinstance(algorithm, Smoother) else "rounder": algorithm}
        return LayerConfig(self.weight, self.activation, **part)

    def rules(self, model: nn.Layer) -> QuantConfig:
        """Return the rules for the layers of ``model``."""
        rules = QuantConfig()
        rules.add_type(nn.Linear, self.layer_config())
        names = [name for name, _ in model.named_sublayers(include_self=True)]
        rules.exclude_substrings(self.skip_layers, names, "skip_layers")
        rules.add(Scope(names=sorted(routers(model)), contents=False,
                        label="the rule that layers which choose experts stay float"), None)
        return rules

    def check_group_size(self, name: str, in_features: int) -> None:
        """Raise if the layer ``name`` is too small for groups of the configured size."""
        granularity = self.weight.granularity
        if isinstance(granularity, PerGroup) and granularity.size >= in_features:
            largest = (in_features - 1) // GROUP_UNIT * GROUP_UNIT
            remedy = (f"a multiple of {GROUP_UNIT} in [{GROUP_UNIT}, {largest}]" if largest else
                      "left out for this layer, which is too small for groups: add it to "
                      "skip_layers")
            raise wrong_value("config['quant_cfg']['weights']['group_size']", granularity.size,
                              f"less than K = {in_features} of layer {name!r}, i.e. {remedy}")

    def _check_together(self):
        static = self.activation is not None and isinstance(self.activation.granularity, PerTensor)
        if "observer" in self.options and not static:
            raise ConfigError("config['algorithm']['minmax']['observer'] needs "
                              "config['quant_cfg']['inputs'] with the strategy 'tensor'")
        if self.activation is None:
            if self.algorithm in _NEED_INPUTS:
                raise ConfigError(
                    f"config['algorithm'] must be one of {_listed(_algorithms(*_NEED_INPUTS))} "
                    f"where weights alone are quantized, but is {self.algorithm!r}; it needs "
                    "config['quant_cfg']['inputs']")
            return
        if self.weight.bits != 8:
            raise ConfigError("config['quant_cfg']['weights']['type'] must be 'int8' where inputs "
                              "are quantized, but is 'int4'")
        if self.algorithm in _WEIGHTS_ALONE:
            raise ConfigError(
                f"config['algorithm'] must be one of {_listed(_algorithms(*_WEIGHTS_ALONE))} where "
                f"inputs are quantized, but is {self.algorithm!r}, which is for weights alone")
        if isinstance(self.weight.granularity, PerGroup):
            raise ConfigError(
                "config['quant_cfg']['weights']['strategy'] must be 'tensor' or 'channel' where "
                "inputs are quantized, but is 'group'")


def _listed(words):
    return ", ".join(map(repr, words))


def _word(name, value, choices):
    if not isinstance(value, str):
        raise wrong_type(name, value, f"a str, one of {_listed(choices)}")
    return check_choice(name, value, choices)


def _check_group_size(name, value):
    if check_int(name, value) < GROUP_UNIT or value % GROUP_UNIT:
        raise wrong_value(name, value, f"a multiple of {GROUP_UNIT} of at least {GROUP_UNIT}")
    return value


def _check_tensor(name, value, types, strategies, **more):
    """Return the checked values of ``weights`` or ``inputs``."""
    required = {"type": partial(_word, choices=types), "symmetric": check_bool,
                "strategy": partial(_word, choices=strategies)}
    return check_config(name, value, {**required, **more}, required=required)


def _check_weights(name, value):
    """Return the QuantSpec of the weights."""
    given = _check_tensor(name, value, ("int8", "int4"), ("tensor", "channel", "group"),
                          group_size=_check_group_size)
    strategy, symmetric = given["strategy"], given["symmetric"]
    if strategy != "group" and "group_size" in given:
        raise ConfigError(f"{name} must not have the key 'group_size' with strategy "
                          f"{strategy!r}; it is for strategy 'group'")
    if strategy == "group" and "group_size" not in given:
        raise ConfigError(f"{name} must have the key 'group_size' with strategy 'group'")
    granularity = (PerGroup(given["group_size"]) if strategy == "group" else
                   PerChannel(1) if strategy == "channel" else PerTensor())
    return QuantSpec(int(given["type"][3:]), signed=symmetric, symmetric=symmetric,
                     granularity=granularity)


def _check_inputs(name, value):
    """Return the QuantSpec of the inputs."""
    given = _check_tensor(name, value, ("int8",), ("tensor", "token"))
    per_token, symmetric = given["strategy"] == "token", given["symmetric"]
    if per_token and not symmetric:
        raise wrong_value(f"{name}['symmetric']", symmetric, "True with strategy 'token'")
    return QuantSpec(8, signed=symmetric, symmetric=symmetric,
                     granularity=PerToken() if per_token else PerTensor())


def _check_algorithm(name, value):
    """Return (name, options) of a str, a set of one str, or a dict of one str to its options."""
    if not isinstance(value, (str, set, frozenset, dict)):
        raise wrong_type(name, value, "a str, a set of one, or a dict from one to its options")
    names = [value] if isinstance(value, str) else list(value)
    if len(names) != 1:
        raise wrong_value(name, value, "one algorithm")
    algorithm = _word(name, names[0], _algorithms())
    options = value[algorithm] if isinstance(value, dict) else None
    checks = ({key: check for key, (_, check) in _OPTIONS[algorithm].items()}
              if algorithm in _OPTIONS else
              {key: lambda _, given: given
               for key in inspect.signature(ALGORITHMS[algorithm]).parameters})
    return algorithm, check_config(f"{name}[{algorithm!r}]", options, checks, optional=True)


def _check_skip_layers(name, value):
    return check_name_parts(name, [value] if isinstance(value, str) else value,
                            (list, tuple, set, frozenset), "a str or a list of str")
