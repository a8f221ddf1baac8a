"""Parsing of the ``config`` of :func:`paddleq.amct.quantize`."""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

from paddle import nn

from ..._checks import (
    check_bool,
    check_choice,
    check_config,
    check_float,
    check_int,
    check_name_parts,
    wrong_type,
    wrong_value,
)
from ...algorithms import ALGORITHMS, Smoother
from ...config import LayerConfig, QuantConfig
from ...config.layer_config import check_activation_observer, static_activation
from ...errors import ConfigError
from ...spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

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


@dataclass(frozen=True)
class AmctConfig:
    """A parsed and validated ``config``.

    Attributes:
        batch_num: number of forward passes to observe.
        weight: QuantSpec of the weights.
        activation: QuantSpec of the inputs; None leaves them float.
        algorithm: "minmax" or the name of a registered algorithm.
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
        values = check_config("config", config, {
            "batch_num": _check_count, "quant_cfg": _check_quant_cfg,
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


def _check_quant_cfg(name, value):
    return check_config(name, value, {"weights": _check_weights, "inputs": _check_inputs},
                        required=("weights",))


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
