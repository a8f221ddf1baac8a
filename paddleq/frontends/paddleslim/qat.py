"""Quantization-aware training with PaddleSlim's interface."""

import inspect
import logging
import os
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Dict, Optional, Sequence, Union

from paddle import nn

from ... import engine, export
from ..._checks import (
    check_bool,
    check_choice,
    check_config,
    check_float,
    check_int,
    wrong_type,
    wrong_value,
)
from ..._distributed import check_reduce
from ..._layer_state import state_of
from ...config import LayerConfig, QuantizerConfig, Scope
from ...config.layer_config import activation_observers
from ...fake_quant import LSQ, PACT
from ...fake_quant.lsq import LEARNED_QUANTIZERS
from ...graph.fold_batch_norm import folded_tensors
from ...nn.class_swap import rollback_on_error
from ...observers import OBSERVERS, CurrentAbsMaxObserver, CurrentMSEObserver
from ...saved_model.fold_layer_affines import fold_in_programs, fold_layers
from ...spec import PerChannel, PerTensor, QuantSpec
from .shared import layer_classes, rules_for, skip_rules, warn_unused_inputs

_CHANNEL_WISE = "channel_wise_"
_logger = logging.getLogger("paddleq")


def _check_type(name, value, weight):
    types = [*(each for each in activation_observers() if OBSERVERS[each].online),
             *LEARNED_QUANTIZERS]
    if weight:
        types += ["mse", *(_CHANNEL_WISE + each
                           for each in ("abs_max", "mse", *LEARNED_QUANTIZERS))]
    return check_choice(name, value, types)


_PREPROCESS_TYPES = {None: None, "PACT": PACT}
_check_preprocess = partial(check_choice, choices=_PREPROCESS_TYPES)
_check_bits = partial(check_int, low=1, high=16)

# key -> (default, check)
_KEYS = {
    "weight_preprocess_type": (None, _check_preprocess),
    "activation_preprocess_type": (None, _check_preprocess),
    "weight_quantize_type": ("channel_wise_abs_max", partial(_check_type, weight=True)),
    "activation_quantize_type": ("moving_average_abs_max", partial(_check_type, weight=False)),
    "weight_bits": (8, _check_bits),
    "activation_bits": (8, _check_bits),
    "dtype": ("int8", partial(check_choice, choices=("int8",))),
    "window_size": (10000, partial(check_int, low=1)),
    "moving_rate": (0.9, partial(check_float, low=0.0, high=1.0, open_high=True)),
    "reduce_type": ("max", check_reduce),
    "quantizable_layer_type": (["Conv2D", "Linear"], layer_classes),
    "fuse_conv_bn": (False, check_bool),
    "onnx_format": (True, check_bool),
}


class QAT:
    """Quantization-aware training with PaddleSlim's interface.

    Fake-quantizers on the inputs and weights of layers simulate int8 while the model trains.

    Args:
        config: dict; None for the defaults. Keys, defaults and values:

            - ``weight_preprocess_type`` (None): None or "PACT".
            - ``activation_preprocess_type`` (None): None or "PACT".
            - ``weight_quantize_type`` ("channel_wise_abs_max"): or "abs_max",
              "range_abs_max", "moving_average_abs_max". The two abs_max types use the maximum of
              the current weight, the others statistics over training steps. Or "mse",
              "channel_wise_mse": the range with the least squared error, searched in each step,
              which takes the time of about 100 quantizations of the weight. Or "lsq",
              "channel_wise_lsq", "lsq_plus", "channel_wise_lsq_plus": learned scales,
              :class:`~paddleq.LSQ` and :class:`~paddleq.LSQPlus`; create the optimizer after
              :meth:`quantize`.
            - ``activation_quantize_type`` ("moving_average_abs_max"): or "abs_max",
              "range_abs_max". With "abs_max" a training batch is quantized with its own
              maximum, evaluation and export with the maximum of all training batches. Or
              "lsq", a learned scale; "lsq_plus", a learned scale and offset, which a .pdmodel
              cannot store. Both keys take other registered observers for training as well.
            - ``weight_bits``, ``activation_bits`` (8): 1 to 16. One bit is the sign times the
              mean magnitude; a learned scale needs at least two bits.
            - ``dtype`` ("int8").
            - ``window_size`` (10000): number of batches in the window of "range_abs_max".
            - ``moving_rate`` (0.9): in [0, 1), for "moving_average_abs_max".
            - ``reduce_type`` ("max"): combination of the statistics of activations over the
              processes of ``paddle.distributed`` in each training step, "max", "mean" or None,
              as ``reduce`` of :class:`~paddleq.FakeQuantize`.
            - ``quantizable_layer_type`` (["Conv2D", "Linear"]): layer classes or their names.
            - ``fuse_conv_bn`` (False): fold batch norms, and multiplications and additions of
              parameters, into weighted layers before training.
            - ``onnx_format`` (True): export ``quantize_linear`` / ``dequantize_linear`` with
              integer weights; False: ``fake_*`` operators with float weights.
        weight_preprocess, act_preprocess: classes (usually ``paddle.nn.Layer`` subclasses) built
            once for each layer and called on the tensor before it is quantized. Their trainable
            parameters train with the model. They take precedence over the ``*_type`` keys.
        weight_quantize, act_quantize: classes built once for each layer and called instead of
            the fake-quantizer; they return the quantized and dequantized tensor.
            :class:`~paddleq.LSQ`, :class:`~paddleq.LSQPlus` and their ``with_args(...)`` take bits
            and channels from the configuration unless they set them.

    Raises:
        ConfigError, ConfigTypeError: an unknown key or an invalid value; names the nearest valid
            key, or the value and the accepted ones.

    The simulation rounds half to even and clips to [-128, 127], as the exported
    ``quantize_linear`` does. PaddleSlim rounds half away from zero and clips to +-127 while
    training only.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Conv2D(1, 4, 3), paddle.nn.ReLU())
        >>> quanter = paddleq.QAT({"activation_preprocess_type": "PACT"})
        >>> net = quanter.quantize(net)
        >>> loss = net(paddle.ones([2, 1, 8, 8])).sum()
        >>> loss.backward()
    """

    def __init__(self, config: Optional[Dict[str, Any]] = None,
                 weight_preprocess: Optional[Callable] = None,
                 act_preprocess: Optional[Callable] = None,
                 weight_quantize: Optional[Callable] = None,
                 act_quantize: Optional[Callable] = None) -> None:
        self.config = _parse_qat_config(config)
        self._hooks = {"weight_preprocess": weight_preprocess, "act_preprocess": act_preprocess,
                       "weight_quantize": weight_quantize, "act_quantize": act_quantize}
        for name, hook in self._hooks.items():
            if hook is not None and (isinstance(hook, nn.Layer) or not callable(hook)):
                raise wrong_type(name, hook,
                                 "a class that is built once for each layer, not an instance")
        fields: Dict[str, Any] = {}
        for side, preprocess, quantize in (("weight", weight_preprocess, weight_quantize),
                                           ("activation", act_preprocess, act_quantize)):
            given = self.config[f"{side}_preprocess_type"]
            fields[f"{side}_preprocess"] = preprocess or _PREPROCESS_TYPES[given]
            fields[side] = _quantizer(self.config, side)
            learned = _learned(quantize, fields[side].spec, side)
            if learned is not None:  # LSQ and its subclasses replace the quantizer
                fields[side], quantize = learned, None
            fields[f"{side}_quantize"] = quantize
        fields["activation"] = replace(fields["activation"], reduce=self.config["reduce_type"])
        self._layer_config = LayerConfig(**fields)
        self._given = set(config or ())
        self._warn_unused_keys()

    @property
    def layer_config(self) -> LayerConfig:
        """Configuration of each quantized layer."""
        return self._layer_config

    def _warn_unused_keys(self):
        """Warn of keys that were given another value than the default and that nothing reads."""
        for key in ("moving_rate", "window_size"):
            kinds = [self.config[f"{side}_quantize_type"].removeprefix(_CHANNEL_WISE)
                     for side in ("weight", "activation")]
            taken = any(key in inspect.signature(OBSERVERS[kind]).parameters
                        for kind in kinds if kind in OBSERVERS)
            if self.config[key] != _KEYS[key][0] and not taken:
                _logger.warning("config['%s'] has no effect: neither weight_quantize_type %r nor "
                                "activation_quantize_type %r has that argument", key, *kinds)

    def quantize(self, model: nn.Layer, inplace: bool = True, inputs: Any = None,
                 skip: Any = None) -> nn.Layer:
        """Insert fake-quantizers into ``model``.

        Args:
            model: a float ``paddle.nn.Layer``.
            inplace: change ``model`` itself (default) or a copy.
            inputs: example inputs (a tensor, a list of arguments or a dict), from which
                ``fuse_conv_bn`` finds the data flow. Default None: the first batch.
            skip: layers to leave float: a layer's name (the layer and all layers in it), a
                regular expression searched in all names, a layer class, or a list of them.
                ``layer.skip_quant = True`` skips a layer and all layers in it as well.

        Returns:
            The quantized model.

        Raises:
            ModelError: the model is already quantized, is not float32, or has no layer of the
                configured types.
            ConfigError: an entry of ``skip`` matches no layer.
        """
        check_bool("inplace", inplace)
        engine.check_model(model)
        scope = Scope.parse(skip, model)
        if "quantizable_layer_type" in self._given:
            engine.warn_unmatched_types(model, self.config["quantizable_layer_type"],
                                        "quantizable_layer_type")
        warn_unused_inputs(inputs, self.config["fuse_conv_bn"], "fuse_conv_bn")
        model = model if inplace else engine.copy_of(model)
        fuse = (lambda: fold_layers(model, inputs)) if self.config["fuse_conv_bn"] else None
        rules = rules_for(self.config["quantizable_layer_type"], self._layer_config, scope)
        with rollback_on_error(model, folded_tensors(model) if fuse else ()):
            if fuse is not None:
                fold_in_programs(model)
            engine.prepare(model, rules, fuse)
            state_of(model).fold_on_export = True
            engine.set_provenance(model, "qat", config=self.config, rules=skip_rules(scope),
                                  **self._hooks)
        return model

    def save_quantized_model(self, model: nn.Layer, path: Union[str, os.PathLike],
                             input_spec: Optional[Sequence] = None,
                             onnx_format: Optional[bool] = None,
                             format: str = "pdmodel", target: Optional[str] = None) -> None:
        """Export for deployment: writes ``path.pdmodel`` and ``path.pdiparams``.

        ``path.paddleq.yaml`` beside them describes their origin. The model is not changed and
        can be trained on.

        Args:
            model: a trained model that :meth:`quantize` returned.
            path: prefix of the files; missing folders are created.
            input_spec: list of ``paddle.static.InputSpec`` or example tensors, one for each
                argument of ``forward``. Default: the shapes of the last call, with a dynamic
                batch dimension.
            onnx_format: overrides the key of the configuration.
            format: "pdmodel" (default): integers, for all runtimes and versions of Paddle. "pir":
                ``path.json``, a float simulation for Paddle 3; needs another ``path``.
                See :func:`paddleq.export.save`.
            target: the runtime that the file is for: "paddle_int8" for Paddle Inference with
                ``enable_mkldnn_int8()`` only; see :func:`paddleq.save_quantized_model`.

        Raises:
            ExportError: names the layers of the exported graph whose quantizers were never trained,
                or that the trace lost; or the format does not support a part of the model.
            TraceError: Paddle could not trace the model into a program.
        """
        as_onnx = self.config["onnx_format"] if onnx_format is None else check_bool(
            "onnx_format", onnx_format)
        export.save(model, path, input_spec, onnx_format=as_onnx, format=format,
                    target=target)


def _parse_qat_config(config):
    checks = {key: check for key, (_, check) in _KEYS.items()}
    defaults = {key: default for key, (default, _) in _KEYS.items()}
    full = {**check_config("config", defaults, checks),
            **check_config("config", config, checks, optional=True)}
    for side in ("weight", "activation"):
        kind, bits = full[f"{side}_quantize_type"], full[f"{side}_bits"]
        if bits == 1 and kind.removeprefix(_CHANNEL_WISE) in ("mse", *LEARNED_QUANTIZERS):
            raise wrong_value(f"config['{side}_bits']", bits, f"at least 2 for {kind!r}")
    return full


def _quantizer(config, side):
    """Return the QuantizerConfig of weights or activations."""
    kind = config[f"{side}_quantize_type"]
    name = kind.removeprefix(_CHANNEL_WISE)
    spec = QuantSpec(config[f"{side}_bits"],
                     granularity=PerTensor() if name == kind else PerChannel())
    if name == "mse":  # of a weight
        return QuantizerConfig(CurrentMSEObserver, spec)
    if name in LEARNED_QUANTIZERS:
        return _learned(LEARNED_QUANTIZERS[name], spec, side)
    observer = OBSERVERS[name]
    taken = inspect.signature(observer).parameters
    arguments = {key: config[key] for key in ("moving_rate", "window_size") if key in taken}
    if name == "abs_max":
        # Of the current weight; of the current batch in training.
        if side == "weight":
            return QuantizerConfig(CurrentAbsMaxObserver, spec)
        arguments["track_batch"] = True
    return QuantizerConfig(partial(observer, **arguments), spec)


def _learned(hook, spec, side):
    """Return the QuantizerConfig of LSQ, a subclass or a factory of them; None for other hooks."""
    found = None if hook is None else LSQ.in_layer(hook, spec, side == "weight")
    return None if found is None else QuantizerConfig(spec=found[0], quantizer=found[1])
