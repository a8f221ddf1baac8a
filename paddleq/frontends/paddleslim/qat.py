"""Quantization-aware training with PaddleSlim's interface."""

import copy
import os
from typing import Any, Callable, Dict, Optional, Sequence, Union

from paddle import nn

from ... import engine, export
from ..._checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_known_keys,
    wrong_type,
    wrong_value,
)
from ...config import LayerConfig, QuantizerConfig, Scope
from ...engine.example_inputs import fold_batch_norms
from ...fake_quant import LSQ, PACT, LSQPlus
from ...observers import (
    AbsMaxObserver,
    CurrentAbsMaxObserver,
    MovingAverageAbsMaxObserver,
    RangeAbsMaxObserver,
)
from ...spec import PerChannel, PerTensor, QuantSpec
from .shared import layer_classes, rules_for, skip_rules

_LEARNED = {"lsq": LSQ, "lsq_plus": LSQPlus}
_ACTIVATION_TYPES = ("abs_max", "range_abs_max", "moving_average_abs_max", *_LEARNED)
_WEIGHT_TYPES = (*_ACTIVATION_TYPES, "channel_wise_abs_max",
                 *(f"channel_wise_{name}" for name in _LEARNED))

_QAT_DEFAULTS = {
    "weight_preprocess_type": None,
    "activation_preprocess_type": None,
    "weight_quantize_type": "channel_wise_abs_max",
    "activation_quantize_type": "moving_average_abs_max",
    "weight_bits": 8,
    "activation_bits": 8,
    "dtype": "int8",
    "window_size": 10000,
    "moving_rate": 0.9,
    "quantizable_layer_type": ["Conv2D", "Linear"],
    "fuse_conv_bn": False,
    "onnx_format": True,
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
              the current weight, the other two statistics over training steps. Or "lsq",
              "channel_wise_lsq", "lsq_plus", "channel_wise_lsq_plus": learned scales,
              :class:`~paddleq.LSQ` and :class:`~paddleq.LSQPlus`; create the optimizer after
              :meth:`quantize`.
            - ``activation_quantize_type`` ("moving_average_abs_max"): or "abs_max",
              "range_abs_max". With "abs_max" a training batch is quantized with its own
              maximum, evaluation and export with the maximum of all training batches. Or
              "lsq", a learned scale; "lsq_plus", a learned scale and offset, which a .pdmodel
              cannot store.
            - ``weight_bits``, ``activation_bits`` (8): 1 to 16. One bit is the sign times the
              mean magnitude; a learned scale needs at least two bits.
            - ``dtype`` ("int8").
            - ``window_size`` (10000): number of batches in the window of "range_abs_max".
            - ``moving_rate`` (0.9): in [0, 1), for "moving_average_abs_max".
            - ``quantizable_layer_type`` (["Conv2D", "Linear"]): layer classes or their names.
            - ``fuse_conv_bn`` (False): fold batch norms before training.
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
            _check_hook(name, hook)
        types = {None: None, "PACT": PACT}
        weight, activation = _qat_quantizers(self.config)
        weight, weight_quantize = _learned(weight, weight_quantize, weight=True)
        activation, act_quantize = _learned(activation, act_quantize, weight=False)
        self._layer_config = LayerConfig(
            weight=weight, activation=activation,
            weight_preprocess=weight_preprocess or types[self.config["weight_preprocess_type"]],
            activation_preprocess=(
                act_preprocess or types[self.config["activation_preprocess_type"]]),
            weight_quantize=weight_quantize, activation_quantize=act_quantize)

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
        model = model if inplace else engine.copy_of(model)
        fuse = (lambda: fold_batch_norms(model, inputs)) if self.config["fuse_conv_bn"] else None
        rules = rules_for(self.config["quantizable_layer_type"], self._layer_config, scope)
        engine.prepare(model, rules, fuse)
        engine.set_provenance(model, "qat", config=self.config, rules=skip_rules(scope),
                          **self._hooks)
        return model

    def save_quantized_model(self, model: nn.Layer, path: Union[str, os.PathLike],
                             input_spec: Optional[Sequence] = None,
                             onnx_format: Optional[bool] = None,
                             format: str = "pdmodel") -> None:
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

        Raises:
            ExportError: names the layers whose quantizers were never trained; or the format
                does not support a part of the model.
            TraceError: Paddle could not trace the model into a program.
        """
        onnx_format = self.config["onnx_format"] if onnx_format is None else check_bool(
            "onnx_format", onnx_format)
        export.save(model, path, input_spec, onnx_format=onnx_format, format=format)


def _parse_qat_config(config):
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise wrong_type("config", config, "a dict or None")
    check_known_keys("config", config, _QAT_DEFAULTS)
    full = {**copy.deepcopy(_QAT_DEFAULTS), **config}

    def name(key):
        return f"config[{key!r}]"

    for key in ("weight_preprocess_type", "activation_preprocess_type"):
        check_choice(name(key), full[key], (None, "PACT"))
    check_choice(name("weight_quantize_type"), full["weight_quantize_type"], _WEIGHT_TYPES)
    check_choice(name("activation_quantize_type"), full["activation_quantize_type"],
                 _ACTIVATION_TYPES)
    for side in ("weight", "activation"):
        kind = full[f"{side}_quantize_type"]
        bits = check_int(name(f"{side}_bits"), full[f"{side}_bits"], 1, 16)
        if bits == 1 and kind.replace("channel_wise_", "") in _LEARNED:
            raise wrong_value(name(f"{side}_bits"), bits, f"at least 2 for {kind!r}")
    check_choice(name("dtype"), full["dtype"], ("int8",))
    check_int(name("window_size"), full["window_size"], 1)
    check_float(name("moving_rate"), full["moving_rate"], 0.0, 1.0, open_high=True)
    check_bool(name("fuse_conv_bn"), full["fuse_conv_bn"])
    check_bool(name("onnx_format"), full["onnx_format"])
    full["quantizable_layer_type"] = layer_classes(
        name("quantizable_layer_type"), full["quantizable_layer_type"])
    return full


def _check_hook(name, hook):
    if hook is None:
        return
    if isinstance(hook, nn.Layer) or not callable(hook):
        raise wrong_type(name, hook, "a class that is built once for each layer, not an instance")


def _qat_quantizers(config):
    rate, window = config["moving_rate"], config["window_size"]

    def moving_average(spec, channels):
        return MovingAverageAbsMaxObserver(spec, channels, moving_rate=rate)

    def window_max(spec, channels):
        return RangeAbsMaxObserver(spec, channels, window_size=window)

    def batch_max(spec, channels):
        return AbsMaxObserver(spec, channels, track_batch=True)

    by_type = {"moving_average_abs_max": moving_average, "range_abs_max": window_max}
    weight_type = config["weight_quantize_type"]
    per_channel = weight_type.startswith("channel_wise_")
    weight = QuantizerConfig(
        by_type.get(weight_type, CurrentAbsMaxObserver),
        QuantSpec(config["weight_bits"], granularity=PerChannel() if per_channel else PerTensor()))
    activation_type = config["activation_quantize_type"]
    activation = QuantizerConfig(by_type.get(activation_type, batch_max),
                                 QuantSpec(config["activation_bits"]))
    return (_learned(weight, _LEARNED.get(weight_type.replace("channel_wise_", "")), True)[0],
            _learned(activation, _LEARNED.get(activation_type), False)[0])


def _learned(config, hook, weight):
    """(QuantizerConfig, hook): LSQ and its subclasses become the quantizer of the config."""
    found = None if hook is None else LSQ.in_layer(hook, config.spec, weight)
    if found is None:
        return config, hook
    spec, factory = found
    return QuantizerConfig(spec=spec, quantizer=factory), None
