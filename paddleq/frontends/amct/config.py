"""Parsing of the ``config`` of :func:`paddleq.amct.quantize`."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from paddle import nn

from ..._checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_known_keys,
    wrong_type,
    wrong_value,
)
from ...algorithms import AWQ, GPTQ, SmoothQuant
from ...config import LayerConfig, QuantConfig
from ...config.layer_config import check_activation_observer, static_activation
from ...errors import ConfigError
from ...spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

UINT32_MAX = 2**32 - 1
GROUP_UNIT = 32

_WEIGHT_BITS = {"int8": 8, "int4": 4}
_WEIGHT_STRATEGIES = ("tensor", "channel", "group")
_INPUT_STRATEGIES = ("tensor", "token")


def _check_count(name, value):
    return check_int(name, value, 1, UINT32_MAX)


def _check_strength(name, value):
    return check_float(name, value, 0, 1, open_low=True, open_high=True)


# algorithm -> option -> its check
ALGORITHMS = {
    "minmax": {"observer": check_activation_observer},
    "smoothquant": {"smooth_strength": _check_strength},
    "awq": {"grids_num": _check_count},
    "gptq": {},
}
FOR_WEIGHTS_AND_INPUTS = ("minmax", "smoothquant")
FOR_WEIGHTS_ALONE = ("minmax", "awq", "gptq")


@dataclass(frozen=True)
class AmctConfig:
    """A parsed and validated ``config``.

    Attributes:
        batch_num: number of forward passes to observe.
        weight: QuantSpec of the weights.
        activation: QuantSpec of the inputs; None leaves them float.
        algorithm: a key of ``ALGORITHMS``.
        options: options of the algorithm that were given.
        skip_layers: substrings of the names of layers to leave float.
    """

    batch_num: int
    weight: QuantSpec
    activation: Optional[QuantSpec]
    algorithm: str
    options: Dict[str, Any] = field(default_factory=dict)
    skip_layers: Tuple[str, ...] = ()

    @classmethod
    def parse(cls, config: Any) -> "AmctConfig":
        """Parse a user's dict.

        Raises:
            ConfigTypeError, ConfigError: see :func:`paddleq.amct.quantize`.
        """
        _check_keys("config", config, ("batch_num", "quant_cfg", "algorithm"), ("skip_layers",))
        quant = config["quant_cfg"]
        _check_keys("config['quant_cfg']", quant, ("weights",), ("inputs",))
        algorithm, options = _algorithm(config["algorithm"])
        parsed = cls(
            batch_num=_check_count("config['batch_num']", config["batch_num"]),
            weight=_weight_spec(quant["weights"]),
            activation=_input_spec(quant["inputs"]) if "inputs" in quant else None,
            algorithm=algorithm, options=options,
            skip_layers=_skip_layers(config.get("skip_layers", ())))
        parsed._check_together()
        return parsed

    def layer_config(self) -> LayerConfig:
        """Return the configuration of the layers that are quantized."""
        smoother, rounder, options = None, None, self.options
        if self.algorithm == "smoothquant":
            smoother = SmoothQuant(options.get("smooth_strength", 0.5))
        elif self.algorithm == "awq":
            smoother = AWQ(grids_num=options.get("grids_num", 20))
        elif self.algorithm == "gptq":
            rounder = GPTQ()
        activation = self.activation
        if "observer" in options:
            activation = static_activation(activation, options["observer"])
        return LayerConfig(self.weight, activation, smoother, rounder)

    def rules(self, model: nn.Layer) -> QuantConfig:
        """Return the rules for the layers of ``model``."""
        rules = QuantConfig()
        rules.add_type(nn.Linear, self.layer_config())
        names = [name for name, _ in model.named_sublayers(include_self=True)]
        rules.exclude_substrings(self.skip_layers, names, "skip_layers")
        return rules

    def check_group_size(self, name: str, in_features: int) -> None:
        """Raise if the layer ``name`` is too small for groups of the configured size.

        Raises:
            ConfigError: names the valid sizes.
        """
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
            if self.algorithm not in FOR_WEIGHTS_ALONE:
                raise ConfigError(
                    f"config['algorithm'] must be one of {_listed(FOR_WEIGHTS_ALONE)} where "
                    f"weights alone are quantized, but is {self.algorithm!r}; it needs "
                    "config['quant_cfg']['inputs']")
            return
        if self.weight.bits != 8:
            raise ConfigError("config['quant_cfg']['weights']['type'] must be 'int8' where inputs "
                              "are quantized, but is 'int4'")
        if self.algorithm not in FOR_WEIGHTS_AND_INPUTS:
            raise ConfigError(
                f"config['algorithm'] must be one of {_listed(FOR_WEIGHTS_AND_INPUTS)} where "
                f"inputs are quantized, but is {self.algorithm!r}, which is for weights alone")
        if isinstance(self.weight.granularity, PerGroup):
            raise ConfigError(
                "config['quant_cfg']['weights']['strategy'] must be 'tensor' or 'channel' where "
                "inputs are quantized, but is 'group'")


def _listed(words):
    return ", ".join(map(repr, words))


def _check_keys(what, given, required, optional=()):
    if not isinstance(given, dict):
        raise wrong_type(what, given, "a dict")
    check_known_keys(what, given, (*required, *optional))
    for key in required:
        if key not in given:
            raise ConfigError(f"{what} must have the key {key!r}, but has "
                              f"{_listed(given) or 'none'}")


def _weight_spec(given):
    name = "config['quant_cfg']['weights']"
    _check_keys(name, given, ("type", "symmetric", "strategy"), ("group_size",))
    bits = _WEIGHT_BITS[_word(f"{name}['type']", given["type"], _WEIGHT_BITS)]
    symmetric = check_bool(f"{name}['symmetric']", given["symmetric"])
    strategy = _word(f"{name}['strategy']", given["strategy"], _WEIGHT_STRATEGIES)
    if strategy != "group" and "group_size" in given:
        raise ConfigError(f"{name} must not have the key 'group_size' with strategy "
                          f"{strategy!r}; it is for strategy 'group'")
    if strategy == "group" and "group_size" not in given:
        raise ConfigError(f"{name} must have the key 'group_size' with strategy 'group'")
    granularity = PerTensor() if strategy == "tensor" else PerChannel(1)
    if strategy == "group":
        size = check_int(f"{name}['group_size']", given["group_size"])
        if size < GROUP_UNIT or size % GROUP_UNIT:
            raise wrong_value(f"{name}['group_size']", size,
                              f"a multiple of {GROUP_UNIT} of at least {GROUP_UNIT}")
        granularity = PerGroup(size)
    return QuantSpec(bits, signed=symmetric, symmetric=symmetric, granularity=granularity)


def _input_spec(given):
    name = "config['quant_cfg']['inputs']"
    _check_keys(name, given, ("type", "symmetric", "strategy"))
    _word(f"{name}['type']", given["type"], ("int8",))
    symmetric = check_bool(f"{name}['symmetric']", given["symmetric"])
    strategy = _word(f"{name}['strategy']", given["strategy"], _INPUT_STRATEGIES)
    if strategy == "token" and not symmetric:
        raise wrong_value(f"{name}['symmetric']", symmetric, "True with strategy 'token'")
    granularity = PerTensor() if strategy == "tensor" else PerToken()
    return QuantSpec(8, signed=symmetric, symmetric=symmetric, granularity=granularity)


def _algorithm(given):
    """(name, options) of a str, a set of one str, or a dict of one str to its options."""
    name = "config['algorithm']"
    if not isinstance(given, (str, set, frozenset, dict)):
        raise wrong_type(name, given, "a str, a set of one, or a dict from one to its options")
    names = [given] if isinstance(given, str) else list(given)
    if len(names) != 1:
        raise wrong_value(name, given, "one algorithm")
    algorithm = _word(name, names[0], ALGORITHMS)
    options = given[algorithm] if isinstance(given, dict) else {}
    options = {} if options is None else options
    checks = ALGORITHMS[algorithm]
    _check_keys(f"{name}[{algorithm!r}]", options, (), tuple(checks))
    return algorithm, {key: checks[key](f"{name}[{algorithm!r}][{key!r}]", value)
                       for key, value in options.items()}


def _skip_layers(given):
    name = "config['skip_layers']"
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, (list, tuple, set, frozenset)) or not all(
            isinstance(part, str) for part in parts):
        raise wrong_type(name, given, "a str or a list of str")
    if not all(parts):
        raise wrong_value(name, given, "a part of a name, or a list of them; every name contains "
                          "the empty one")
    return tuple(parts)


def _word(name, value, choices):
    if not isinstance(value, str):
        raise wrong_type(name, value, f"a str, one of {_listed(choices)}")
    return check_choice(name, value, choices)
