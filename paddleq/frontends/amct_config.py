"""Configuration of AMCT's ``quantize``: a dict, parsed and validated."""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

from paddle import nn

from .._checks import (
    check_bool,
    check_choice,
    check_config,
    check_float,
    check_int,
    check_name_parts,
    wrong_type,
    wrong_value,
)
from ..algorithms import ALGORITHMS, OFMR, Smoother
from ..algorithms.float_ranges import OutputErrorObserver, QuantileObserver
from ..algorithms.layerwise.network_helper import routers
from ..config import LayerConfig, QuantConfig, Scope
from ..config.layer_config import QuantizerConfig, check_activation_observer, static_activation
from ..errors import ConfigError
from ..observers import FixedScaleObserver
from ..spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

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
    "ofmr": {},
    "mxquant": {},
    "cast": {},
    "quantile": {},
}
_NEED_INPUTS = ("smoothquant",)
_WEIGHTS_ALONE = ("awq", "gptq")
_FLOAT_ONLY = ("ofmr", "mxquant", "cast", "quantile")

INTEGERS = ("int8", "int4")
# Type of the weights -> type of the inputs, None for weights alone -> algorithms.
_FLOATS = {
    "hifloat8": {"hifloat8": ("ofmr", "cast", "quantile", "smoothquant"),
                 None: ("ofmr", "gptq", "cast", "quantile")},
    "float8_e4m3fn": {"float8_e4m3fn": ("ofmr",), None: ("ofmr", "gptq")},
    "mxfp8_e4m3fn": {"mxfp8_e4m3fn": ("mxquant",)},
    "mxfp4_e2m1": {None: ("mxquant", "awq", "gptq")},
    "float4_e2m1": {"float8_e4m3fn": (MINMAX, "smoothquant"), None: (MINMAX, "awq", "gptq")},
}
_INPUT_TYPES = ("int8", "hifloat8", "float8_e4m3fn", "mxfp8_e4m3fn")
# Sizes of groups of types that do not have all multiples of 32.
_GROUP_SIZES = {"mxfp8_e4m3fn": (32,), "mxfp4_e2m1": (32,), "float4_e2m1": (32, 64, 128, 256)}
# AMCT's document has another rule for the shared exponent of MXFP4 than OCP.
_DTYPES = {**{name: name for name in _FLOATS}, "mxfp4_e2m1": "mxfp4_e2m1_nearest"}


def _algorithms(*excluded: str) -> List[str]:
    """Return AMCT's names of all algorithms, the registered ones included."""
    names = dict.fromkeys((MINMAX, *ALGORITHMS, *_FLOAT_ONLY))
    return [name for name in names if name not in ("rtn", *excluded)]


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
        if self.algorithm in _FLOAT_ONLY:
            return LayerConfig(self.weight, self._float_activation(),
                               rounder=OFMR() if self.algorithm == "ofmr" else None)
        names = {key: argument for key, (argument, _) in _OPTIONS.get(self.algorithm, {}).items()}
        algorithm = ALGORITHMS[self.algorithm](**{
            names.get(key, key): value for key, value in self.options.items()})
        part: dict = {"smoother" if isinstance(algorithm, Smoother) else "rounder": algorithm}
        return LayerConfig(self.weight, self.activation, **part)

    def _float_activation(self):
        observers = {"ofmr": OutputErrorObserver, "quantile": QuantileObserver,
                     "cast": partial(FixedScaleObserver, scale=1.0)}
        spec = self.activation
        if spec is None or self.algorithm not in observers:
            return spec
        if self.algorithm == "cast":  # without a scale, all granularities are the same
            spec = QuantSpec(dtype=spec.dtype)
        elif not isinstance(spec.granularity, PerTensor):
            return spec
        return QuantizerConfig(observers[self.algorithm], spec)

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
        if not (self.weight.dtype is None
                and (self.activation is None or self.activation.dtype is None)):
            return self._check_floats_together()
        if self.algorithm in _FLOAT_ONLY:
            raise ConfigError(
                f"config['algorithm'] must be one of {_listed(_algorithms(*_FLOAT_ONLY))} for "
                f"integers, but is {self.algorithm!r}, which is for float types")
        if self.activation is None:
            if self.algorithm in _NEED_INPUTS:
                raise ConfigError(
                    "config['algorithm'] must be one of "
                    f"{_listed(_algorithms(*_NEED_INPUTS, *_FLOAT_ONLY))} where weights alone are "
                    f"quantized, but is {self.algorithm!r}; it needs "
                    "config['quant_cfg']['inputs']")
            return
        if self.weight.bits != 8:
            raise ConfigError("config['quant_cfg']['weights']['type'] must be 'int8' where inputs "
                              "are quantized, but is 'int4'")
        if self.algorithm in _WEIGHTS_ALONE:
            raise ConfigError(
                "config['algorithm'] must be one of "
                f"{_listed(_algorithms(*_WEIGHTS_ALONE, *_FLOAT_ONLY))} where inputs are "
                f"quantized, but is {self.algorithm!r}, which is for weights alone")
        if isinstance(self.weight.granularity, PerGroup):
            raise ConfigError(
                "config['quant_cfg']['weights']['strategy'] must be 'tensor' or 'channel' where "
                "inputs are quantized, but is 'group'")

    def _check_floats_together(self):
        weights, inputs = _type_of(self.weight), _type_of(self.activation)
        choices = _FLOATS.get(weights or "", {"int8": (), None: ()})
        if inputs not in choices:
            raise ConfigError(
                f"config['quant_cfg']['inputs'] must be {' or '.join(map(_of_type, choices))} with "
                f"weights of the type {weights!r}, but is {_of_type(inputs)}")
        known = choices[inputs]
        if self.algorithm not in known and self.algorithm in _OPTIONS:
            raise ConfigError(
                f"config['algorithm'] must be one of {_listed(known)} with weights of the type "
                f"{weights!r} and inputs {_of_type(inputs)}, but is {self.algorithm!r}")
        if weights == "float4_e2m1" and self.activation is not None and isinstance(
                self.activation.granularity, PerToken):
            raise wrong_value("config['quant_cfg']['inputs']['strategy']", "token",
                              "'tensor' with weights of the type 'float4_e2m1'")


def _type_of(spec):
    """Return AMCT's name of a type, None for None."""
    if spec is None or spec.dtype is None:
        return spec and f"int{spec.bits}"
    return next(name for name, dtype in _DTYPES.items() if dtype == spec.dtype)


def _of_type(name):
    return "left out" if name is None else f"of the type {name!r}"


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
    given = _check_tensor(name, value, (*INTEGERS, *_FLOATS), ("tensor", "channel", "group"),
                          group_size=_check_group_size)
    kind, strategy, symmetric = given["type"], given["strategy"], given["symmetric"]
    if strategy != "group" and "group_size" in given:
        raise ConfigError(f"{name} must not have the key 'group_size' with strategy "
                          f"{strategy!r}; it is for strategy 'group'")
    if strategy == "group" and "group_size" not in given:
        raise ConfigError(f"{name} must have the key 'group_size' with strategy 'group'")
    granularity = (PerGroup(given["group_size"]) if strategy == "group" else
                   PerChannel(1) if strategy == "channel" else PerTensor())
    if kind in INTEGERS:
        return QuantSpec(int(kind[3:]), signed=symmetric, symmetric=symmetric,
                         granularity=granularity)
    _check_symmetric(name, kind, symmetric)
    sizes = _GROUP_SIZES.get(kind)
    if (strategy == "group") != (sizes is not None):
        known = ("group",) if sizes else ("tensor", "channel")
        raise wrong_value(f"{name}['strategy']", strategy,
                          f"{' or '.join(map(repr, known))} for the type {kind!r}")
    if sizes is not None and given["group_size"] not in sizes:
        raise wrong_value(f"{name}['group_size']", given["group_size"],
                          f"one of {', '.join(map(str, sizes))} for the type {kind!r}")
    return QuantSpec(dtype=_DTYPES[kind], granularity=granularity)


def _check_symmetric(name, kind, symmetric):
    if not symmetric:
        raise wrong_value(f"{name}['symmetric']", symmetric, f"True for the type {kind!r}")


def _check_inputs(name, value):
    """Return the QuantSpec of the inputs."""
    given = _check_tensor(name, value, _INPUT_TYPES, ("tensor", "token", "group"),
                          dynamic=check_bool)
    kind, strategy, symmetric = given["type"], given["strategy"], given["symmetric"]
    per_token = strategy == "token"
    if per_token and not symmetric:
        raise wrong_value(f"{name}['symmetric']", symmetric, "True with strategy 'token'")
    if "dynamic" in given and not (per_token and given["dynamic"]):
        raise wrong_value(f"{name}['dynamic']", given["dynamic"], "True, or left out" if per_token
                          else f"left out with strategy {strategy!r}")
    if (strategy == "group") != (kind == "mxfp8_e4m3fn"):
        raise wrong_value(f"{name}['strategy']", strategy, f"{_listed(_strategies(kind))} for the "
                          f"type {kind!r}")
    if kind != "int8":
        _check_symmetric(name, kind, symmetric)
        return QuantSpec(dtype=_DTYPES[kind], granularity=PerGroup(32) if strategy == "group" else
                         PerToken() if per_token else PerTensor())
    return QuantSpec(8, signed=symmetric, symmetric=symmetric,
                     granularity=PerToken() if per_token else PerTensor())


def _strategies(kind):
    return ("group",) if kind == "mxfp8_e4m3fn" else ("tensor", "token")


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
