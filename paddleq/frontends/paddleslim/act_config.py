"""Configurations of PaddleSlim's auto compression (ACT) as arguments of ``paddleq.distill``."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from ..._checks import check_config, check_known_keys, wrong_type
from ...errors import ConfigError
from ...saved_model.files import find_files

_logger = logging.getLogger("paddleq")

_OTHER_STRATEGIES = {
    "QuantPost": "use paddleq.quant_post_static or 'paddleq ptq', without training",
    "HyperParameterOptimization": "compare the observers with paddleq.quant_post_static(algo=...)",
    "MultiTeacherDistillation": "use Distillation with one teacher",
    **dict.fromkeys(("ChannelPrune", "Prune", "UnstructurePrune", "TransformerPrune", "ASPPrune"),
                    "paddleq does not prune: prune with PaddleSlim, then quantize the result"),
}
_SECTIONS = ("Global", "Distillation", "QuantAware", "Quantization", "TrainConfig")
_OF_GLOBAL = ("model_dir", "model_filename", "params_filename")
_DISTILLATION = ("loss", "node", "alpha", "teacher_model_dir", "teacher_model_filename",
                 "teacher_params_filename")
_TRAINING = ("epochs", "train_iter", "learning_rate", "optimizer_builder", "eval_iter",
             "logging_iter", "origin_metric", "target_metric")
_OF_STATIC_GRAPHS = ("amp_config", "recompute_config", "sharding_config", "sparse_model",
                     "use_fleet")
# PaddleSlim's defaults where those of paddleq.distill are others.
_QUANTIZATION = {"activation_quantize_type": "moving_average_abs_max"}
_OPTIMIZER = "SGD"
# Keys of QuantPost -> arguments of quant_post_static; those of quant_recon_static; and those for
# which a configuration of this section has no use here.
_POST = {**{name: name for name in (
    "batch_nums", "algo", "hist_percent", "is_full_quantize", "bias_correction", "onnx_format",
    "weight_quantize_type", "skip_tensor_list", "weight_bits", "activation_bits")},
    "quantize_op_types": "quantizable_op_type"}
_POST_DEFAULTS = {"hist_percent": 0.999}
_RECONSTRUCTION = ("recon_level", "simulate_activation_quant", "epochs", "lr", "regions",
                   "region_weights_names")
_IDLE = ("batch_size", "activation_quantize_type")


@dataclass
class AutoCompressionConfig:
    """Arguments of :func:`paddleq.distill` from a configuration of PaddleSlim's ACT.

    Attributes:
        model: (model file, parameter file or None) of ``Global``, or None.
        teacher: the same of ``Distillation``, or None for the model itself.
        quantization: the section ``QuantAware``.
        losses: list of dicts with the arguments of :class:`~paddleq.DistillLoss`, or None.
        train: the section ``TrainConfig``.
        post: arguments of :func:`paddleq.quant_post_static` of the section ``QuantPost``, which
            takes the place of all others; None without it.

    Examples:
        >>> from paddleq.paddleslim import AutoCompressionConfig
        >>> found = AutoCompressionConfig.parse({
        ...     "Distillation": {"loss": "soft_label"}, "QuantAware": {"use_pact": True},
        ...     "TrainConfig": {"train_iter": 500, "learning_rate": 3.0e-5}})
        >>> found.losses, found.train["optimizer_builder"]
        ([{'loss': 'soft_label', 'node': [], 'alpha': 1.0}], 'SGD')
    """

    model: Optional[Tuple[str, Optional[str]]] = None
    teacher: Optional[Tuple[str, Optional[str]]] = None
    quantization: Dict[str, Any] = field(default_factory=dict)
    losses: Optional[List[Dict[str, Any]]] = None
    train: Dict[str, Any] = field(default_factory=dict)
    post: Optional[Dict[str, Any]] = None

    @classmethod
    def parse(cls, config: Any, folder: str = ".", post: bool = False) -> "AutoCompressionConfig":
        """Return the arguments of a configuration, nested dicts as in PaddleSlim's YAML files.

        Args:
            folder: folder that paths are relative to.
            post: accept the section ``QuantPost``. Default False.

        Raises:
            ConfigError, ConfigTypeError: a section or a key that paddleq does not support; names it
                and the nearest valid one, or what to use instead.
        """
        if not isinstance(config, dict):
            raise wrong_type("the configuration", config, "a dict with the sections of ACT")
        for name, instead in _OTHER_STRATEGIES.items():
            if name in config and not (post and name == "QuantPost"):
                raise ConfigError(f"the section {name} of ACT is not supported: {instead}")
        check_known_keys("the configuration", config, (*_SECTIONS, "QuantPost"))
        for name in config:
            if config[name] is not None and not isinstance(config[name], dict):
                raise wrong_type(name, config[name], "a mapping")
        sections = {name: config.get(name) or {} for name in _SECTIONS}
        if "QuantPost" in config:
            return cls._of_post(config, folder)
        if "QuantAware" not in config and "Quantization" not in config:
            raise ConfigError("the configuration must have the section QuantAware, but has "
                              f"{', '.join(config) or 'none'}; without it nothing is quantized")
        if "QuantAware" in config and "Quantization" in config:
            raise ConfigError("the configuration must have one of QuantAware and Quantization, its "
                              "former name, but has both")
        result = cls()
        result._read_global(sections["Global"], folder)
        result._read_distillation(sections["Distillation"], folder)
        result.quantization = {
            **_QUANTIZATION, **sections["QuantAware"], **sections["Quantization"]}
        if result.quantization.get("not_quant_pattern") == ["skip_quant"]:  # PaddleSlim's default
            del result.quantization["not_quant_pattern"]
        result._read_training(sections["TrainConfig"])
        return result

    @classmethod
    def _of_post(cls, config, folder):
        others = sorted(config.keys() - {"QuantPost", "Global"})
        if others:
            raise ConfigError(f"QuantPost quantizes without training: remove {', '.join(others)}")
        section = config["QuantPost"] or {}
        checks = {name: lambda name, value: value for name in (*_POST, *_RECONSTRUCTION, *_IDLE)}
        given = check_config("QuantPost", section, checks)
        result = cls()
        result._read_global(config.get("Global") or {}, folder)
        result.post = {**_POST_DEFAULTS, **{
            _POST[name]: value for name, value in given.items() if name in _POST}}
        if given.get("recon_level") is not None:
            result.post.update((name, given[name]) for name in _RECONSTRUCTION if name in given)
        return result

    def _read_global(self, section, folder):
        unused = sorted(set(section) - set(_OF_GLOBAL))
        if unused:
            _logger.warning("Global: %s %s no effect: the scripts of PaddleSlim's examples read "
                            "them", ", ".join(unused), "has" if len(unused) == 1 else "have")
        self.model = _files(section, "", folder, "Global")

    def _read_distillation(self, section, folder):
        check_known_keys("Distillation", section, _DISTILLATION)
        self.teacher = _files(section, "teacher_", folder, "Distillation")
        loss, alpha, node = (section.get(name) for name in ("loss", "alpha", "node"))
        if loss is None and alpha is None and not node:
            return
        nested = bool(node) and isinstance(node, list) and isinstance(node[0], list)
        losses, alphas = (value if isinstance(value, list) else [value] for value in (loss, alpha))
        nodes = node if nested else [node or []]
        count = max(len(losses), len(nodes))
        for name, values in (("loss", losses), ("alpha", alphas), ("node", nodes)):
            if len(values) not in (1, count):
                raise ConfigError(f"Distillation: loss, alpha and node must be lists of one "
                                  f"length, but {name} has {len(values)} entries where the "
                                  f"longest has {count}")
        losses, alphas, nodes = ((values * count)[:count] for values in (losses, alphas, nodes))
        self.losses = [{"loss": "l2" if each is None else each, "node": _pairs(names),
                        "alpha": 1.0 if factor is None else factor}
                       for each, factor, names in zip(losses, alphas, nodes)]

    def _read_training(self, section):
        checks = {name: lambda name, value: value for name in (*_TRAINING, *_OF_STATIC_GRAPHS)}
        given = check_config("TrainConfig", section, checks)
        for name in _OF_STATIC_GRAPHS:
            if given.pop(name, None):
                raise ConfigError(f"TrainConfig: {name} is for PaddleSlim's static graphs and is "
                                  "not supported; remove it")
        self.train = {name: value for name, value in given.items() if value is not None}
        if section and "learning_rate" not in self.train:
            raise ConfigError("TrainConfig must have learning_rate, but has "
                              f"{', '.join(section)}")
        if section:
            self.train.setdefault("optimizer_builder", _OPTIMIZER)


def _files(section, prefix, folder, owner):
    """Return the files that ``model_dir`` and its two file names mean, None without them."""
    where, model, parameters = (section.get(prefix + name) for name in _OF_GLOBAL)
    model, parameters = (None if name == "None" else name for name in (model, parameters))
    if where is None:
        for name, value in zip(_OF_GLOBAL[1:], (model, parameters)):
            if value is not None:
                raise ConfigError(f"{owner}: {prefix}{name} is given without {prefix}model_dir")
        return None
    if not isinstance(where, str):
        raise wrong_type(f"{owner}: {prefix}model_dir", where, "the folder of one saved model")
    return find_files(os.path.join(folder, where), model, parameters)


def _pairs(names):
    """Return the nodes of one loss: PaddleSlim pairs ``teacher_x`` with the name after it."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong_type("Distillation: node", names, "a list of names, or a list of such lists")
    first = names[::2]
    if names and len(names) % 2 == 0 and all(name.startswith("teacher_") for name in first):
        return [[teacher[len("teacher_"):], student]
                for teacher, student in zip(first, names[1::2])]
    return names
