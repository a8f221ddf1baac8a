"""``SimulatedQuantizationAwareTraining``: fake-quantizers, fusion and folded batch norms."""

import logging
import os
from functools import partial
from typing import Any, Dict, Optional

import paddle
from paddle import nn

from ... import engine
from ..._checks import check_bool, check_config, check_int, check_layer, wrong_type, wrong_value
from ..._paddle_compat import is_traced_by_save, skip_bytecode_translation
from ...checkpoint import load_state, read_state
from ...config import LayerConfig, NormFold, QuantConfig, QuantizerConfig
from ...engine.example_inputs import awaits_first_batch, run_on_first_inputs
from ...errors import ConfigError, FormatError, ModelError
from ...fake_quant import FakeQuantize, State
from ...fake_quant.recompute import in_first_pass
from ...graph.dataflow import PRODUCERS
from ...nn.class_swap import rollback_on_error
from ...nn.layer_types import QuantizableFunction
from ...observers import CurrentMinMaxObserver, MovingAverageMinMaxObserver
from ...spec import PerChannel, PerTensor, QuantSpec
from .enums import QuantDtype

_logger = logging.getLogger("paddleq")


def _check_int8(name, value):
    if not isinstance(value, QuantDtype):
        raise wrong_type(name, value, "a QuantDtype, such as QuantDtype.INT8")
    if value is not QuantDtype.INT8:
        raise wrong_value(name, value, "QuantDtype.INT8, the only supported one")
    return value


def _check_per_tensor(name, value):
    if check_bool(name, value):
        raise wrong_value(name, value, "False for activations; (False, True) or "
                          "set_weight_per_channel(True) is per channel for weights")
    return value


_check_steps = partial(check_int, low=0)

# key -> (default, checks): pairs have a check for activations and one for weights
_KEYS = {
    "quant_delay": ((0, 0), (_check_steps, _check_steps)),
    "quant_dtype": ((QuantDtype.INT8, QuantDtype.INT8), (_check_int8, _check_int8)),
    "per_channel": ((False, False), (_check_per_tensor, check_bool)),
    "symmetric": ((False, False), (check_bool, check_bool)),
    "narrow_range": ((False, False), (check_bool, check_bool)),
    "enable_fusion": (False, check_bool),
    "freeze_bn": (10_000_000, _check_steps),
    "bn_fold": (False, check_bool),
    "one_conv_fold": (True, check_bool),
}


def _check_pair(name, value, checks):
    """Return (checked value for activations, checked value for weights)."""
    pair = value if isinstance(value, (list, tuple)) else (value,)
    if not 1 <= len(pair) <= 2:
        raise wrong_value(name, value, "one value, or one for activations and one for weights")
    return checks[0](name, pair[0]), checks[1](name, pair[-1])


def _check_together(config):
    if config["bn_fold"] and not config["enable_fusion"]:
        raise ConfigError(
            "bn_fold must be False while enable_fusion is False, but is True: only a fused "
            "convolution and batch norm can be folded; set enable_fusion to True as well")


class SimulatedQuantizationAwareTraining:
    """Simulated quantization-aware training with MindSpore Golden Stick's interface.

    Convolutions and linear layers get fake-quantizers for their input, weight and output. A layer
    that is fused with a batch norm and ReLU has the output of the block quantized.

    Args:
        config: dict; None for the defaults. Five keys are pairs: a list or tuple of two values is
            (activations, weights); a single value, or a list or tuple of one, is for both.

            - ``quant_delay`` ((0, 0)): number of training steps before a quantizer starts to
              quantize; it observes from the first step. Evaluation always quantizes. Each
              quantizer counts its forward passes in training in the buffer ``step``.
            - ``quant_dtype`` ((QuantDtype.INT8, QuantDtype.INT8)): INT8 only.
            - ``per_channel`` ((False, False)): a scale for each output channel. The first must be
              False.
            - ``symmetric`` ((False, False)): the range is [-M, M] with M = max(|m|, |M|), in int8;
              otherwise [m, M], in uint8 with a zero point. It always contains 0.
            - ``narrow_range`` ((False, False)): exclude the lowest integer.
            - ``enable_fusion`` (False): fuse Conv + BN + ReLU, Conv + BN and Conv + ReLU, and the
              same with Linear, into blocks that are quantized at their input and output only.
              Blocks follow the data flow; ``F.relu`` is not part of it, ``nn.ReLU`` is. A pair
              whose intermediate tensor has another consumer is not fused.
            - ``freeze_bn`` (10000000): number of training steps after which a folded batch norm
              uses its running statistics and stops updating them. Needs ``bn_fold``.
            - ``bn_fold`` (False): train with the batch norm folded into the weight, so that
              training quantizes the deployed weight. Needs ``enable_fusion``.
            - ``one_conv_fold`` (True): compute the convolution once per step. False: twice, the
              first time in float for the statistics of the batch.

    Raises:
        ConfigTypeError: (a TypeError) a value of another type; a bool is not accepted as an int,
            nor an int as a bool.
        ConfigError: (a ValueError) an unknown key, a negative int, more than two values, another
            dtype than INT8, ``per_channel`` for activations, ``bn_fold`` without
            ``enable_fusion``.

    Each part of the configuration has a setter with the same checks, for the next :meth:`apply`,
    which checks contradictions (``bn_fold`` without ``enable_fusion``): setters can be called in
    any order.

    Examples:
        >>> import paddle, paddleq
        >>> from paddle import nn
        >>> net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
        ...                     nn.Linear(144, 10))
        >>> algorithm = paddleq.golden_stick.SimulatedQuantizationAwareTraining({"symmetric": True})
        >>> algorithm.set_enable_fusion(True)
        >>> algorithm.set_bn_fold(True)
        >>> images = paddle.rand([2, 1, 8, 8])
        >>> net = algorithm.apply(net, images)
        >>> net(images).sum().backward()
        >>> deployed = algorithm.convert(net)
        >>> [type(layer).__name__ for layer in deployed.children()][:2]
        ['QuantizedConv2D', 'FoldedNorm']
    """

    def __init__(self, config: Optional[Dict[str, Any]] = None) -> None:
        given = check_config("config", config, {
            key: partial(_check_pair, checks=check) if isinstance(check, tuple) else check
            for key, (_, check) in _KEYS.items()}, optional=True)
        self._config = {**{key: default for key, (default, _) in _KEYS.items()}, **given}
        _check_together(self._config)

    @property
    def config(self) -> Dict[str, Any]:
        """Dict of the nine keys."""
        return dict(self._config)

    def apply(self, network: nn.Layer, inputs: Any = None) -> nn.Layer:
        """Insert fake-quantizers into ``network``, in place.

        1. With ``enable_fusion``, layers are fused into blocks.
        2. Each layer gets its configuration.
        3. Of two quantizers with the same parameters on one tensor, the second is removed.
        4. The layers become quantized layers. They are the same objects, with the same parameters
           under the same names: a float checkpoint loads, and an existing optimizer trains on.

        Args:
            network: a float ``paddle.nn.Layer``.
            inputs: example inputs (a tensor, a list of arguments or a dict), from which the data
                flow is found. Default None: the first batch; until then the network has
                redundant quantizers.

        Returns:
            The network.

        Raises:
            ConfigTypeError: ``network`` is no ``paddle.nn.Layer``.
            ConfigError: ``bn_fold`` without ``enable_fusion``.
            ModelError: it is already quantized, is not float32, or has nothing to quantize.
        """
        config = self._config
        engine.check_model(network)
        _check_together(config)
        find = partial(engine.find_block_structure, blocks=config["enable_fusion"])
        found, asked = [], {"fusion": config["enable_fusion"], "fold": config["bn_fold"]}
        for key in ("freeze_bn", "one_conv_fold"):
            if config[key] != _KEYS[key][0] and not config["bn_fold"]:
                _logger.warning("%s=%s has no effect: it needs bn_fold, which is False", key,
                                config[key])
        with rollback_on_error(network):
            if inputs is not None:
                engine.prepare(network, _rules(config), lambda: run_on_first_inputs(
                    network, inputs, lambda model, run: found.append(find(model, run))))
                _fuse_blocks(network, None, find=lambda model, run: found[0], **asked)
            else:
                engine.prepare(network, _rules(config))
                run_on_first_inputs(network, None, partial(_fuse_blocks, find=find, **asked))
            engine.set_provenance(network, "simulated_qat", config=self.config)
        return network

    def convert(self, net_opt: nn.Layer, ckpt_path: str = "") -> nn.Layer:
        """Return a copy of the network to deploy: batch norms folded, scales fixed.

        The scales of the weights are computed from the folded weights. With ``bn_fold``, training
        quantized these weights and the outputs equal those of the network in evaluation. Without
        it, training quantized the weights before the fold and the outputs differ by rounding.

        Export the result with ``paddleq.export.save(network, path)``.

        Args:
            net_opt: a trained network that :meth:`apply` returned. It is not changed.
            ckpt_path: a file that ``paddle.save(net_opt.state_dict(), path)`` wrote, which is
                loaded first; "" (default): none. Nothing in it is unpickled.

        Returns:
            A copy of the network, converted, in evaluation mode.

        Raises:
            ConfigTypeError: ``net_opt`` is no ``paddle.nn.Layer``, or ``ckpt_path`` no str.
            FormatError: the file ``ckpt_path`` is missing, holds more than arrays, or is damaged.
            ModelError: a parameter is missing in the file or unexpected; the network is not
                quantized, or has not run a batch yet.
            CalibrationError: no quantizer has data.
        """
        check_layer("net_opt", net_opt, "a paddle.nn.Layer that apply() returned")
        if not isinstance(ckpt_path, str):
            raise wrong_type("ckpt_path", ckpt_path, "a str, empty for no checkpoint")
        if ckpt_path and not os.path.isfile(ckpt_path):
            raise FormatError(f"ckpt_path must be the path of an existing file, or empty, but is "
                              f"{ckpt_path!r}")
        engine.check_quantized(net_opt)
        if awaits_first_batch(net_opt):
            raise ModelError(
                "net_opt has not run a batch yet, so its data flow is not known; pass example "
                "inputs to apply() (inputs=...), or run a batch first")
        network = engine.copy_of(net_opt, "remove what cannot be copied")
        if ckpt_path:
            load_state(network, read_state(ckpt_path), ckpt_path)
        return engine.convert(network)

    def set_act_quant_delay(self, act_quant_delay: int) -> None:
        """Set ``act_quant_delay``: training steps before activations are quantized, at least 0."""
        self._set("act_quant_delay", act_quant_delay)

    def set_weight_quant_delay(self, weight_quant_delay: int) -> None:
        """Set ``weight_quant_delay``: training steps before weights are quantized, at least 0."""
        self._set("weight_quant_delay", weight_quant_delay)

    def set_act_quant_dtype(self, act_quant_dtype: QuantDtype) -> None:
        """Set ``act_quant_dtype``: QuantDtype.INT8 only."""
        self._set("act_quant_dtype", act_quant_dtype)

    def set_weight_quant_dtype(self, weight_quant_dtype: QuantDtype) -> None:
        """Set ``weight_quant_dtype``: QuantDtype.INT8 only."""
        self._set("weight_quant_dtype", weight_quant_dtype)

    def set_act_per_channel(self, act_per_channel: bool) -> None:
        """Set ``act_per_channel``: False only."""
        self._set("act_per_channel", act_per_channel)

    def set_weight_per_channel(self, weight_per_channel: bool) -> None:
        """Set ``weight_per_channel``: a scale per output channel."""
        self._set("weight_per_channel", weight_per_channel)

    def set_act_symmetric(self, act_symmetric: bool) -> None:
        """Set ``act_symmetric``: the range is [-M, M]."""
        self._set("act_symmetric", act_symmetric)

    def set_weight_symmetric(self, weight_symmetric: bool) -> None:
        """Set ``weight_symmetric``: the range is [-M, M]."""
        self._set("weight_symmetric", weight_symmetric)

    def set_act_narrow_range(self, act_narrow_range: bool) -> None:
        """Set ``act_narrow_range``: exclude the lowest integer."""
        self._set("act_narrow_range", act_narrow_range)

    def set_weight_narrow_range(self, weight_narrow_range: bool) -> None:
        """Set ``weight_narrow_range``: exclude the lowest integer."""
        self._set("weight_narrow_range", weight_narrow_range)

    def set_enable_fusion(self, enable_fusion: bool) -> None:
        """Set ``enable_fusion``: fuse layers into blocks."""
        self._set("enable_fusion", enable_fusion)

    def set_bn_fold(self, bn_fold: bool) -> None:
        """Set ``bn_fold``: train with batch norms folded into weights."""
        self._set("bn_fold", bn_fold)

    def set_one_conv_fold(self, one_conv_fold: bool) -> None:
        """Set ``one_conv_fold``: compute a folded convolution once per step."""
        self._set("one_conv_fold", one_conv_fold)

    def set_freeze_bn(self, freeze_bn: int) -> None:
        """Set ``freeze_bn``: training steps until folded batch norms use running statistics."""
        self._set("freeze_bn", freeze_bn)

    def _set(self, name, value):
        side, _, key = name.partition("_")
        if key not in _KEYS:
            self._config[name] = _KEYS[name][1](name, value)
            return
        pair, index = list(self._config[key]), ("act", "weight").index(side)
        pair[index] = _KEYS[key][1][index](name, value)
        self._config[key] = tuple(pair)


def _fuse_blocks(model, run, find, fusion, fold):
    structure = find(model, run)
    engine.fuse_blocks(model, structure)
    name = type(model).__name__
    if fusion and not structure.blocks:
        _logger.warning("enable_fusion has no effect: no batch norm or nn.ReLU can be fused in the "
                        "data flow of %s", name)
    elif fold and not any(block.folded for block in engine.blocks_of(model)):
        _logger.warning("bn_fold has no effect: no batch norm can be folded in the data flow of %s",
                        name)


def _rules(config):
    fold = (NormFold(config["one_conv_fold"], config["freeze_bn"]) if config["bn_fold"] else None)
    activation = _quantizer(config, 0, MovingAverageMinMaxObserver)
    weight = _quantizer(config, 1, CurrentMinMaxObserver)
    rules = QuantConfig()
    for cls in (*PRODUCERS, QuantizableFunction):
        rules.add_type(cls, LayerConfig(weight, activation, output=activation, norm_fold=fold))
    return rules


def _quantizer(config, side, observer):
    """Return the QuantizerConfig of activations (side 0) or weights (1)."""
    mine = {key: config[key][side] for key in _KEYS if isinstance(config[key], tuple)}
    spec = QuantSpec(
        mine["quant_dtype"].num_bits, signed=mine["symmetric"], symmetric=mine["symmetric"],
        narrow_range=mine["narrow_range"],
        granularity=PerChannel() if mine["per_channel"] else PerTensor())
    return QuantizerConfig(spec=spec, quantizer=partial(
        DelayedFakeQuantize, observer=observer, saturate=True, delay=mine["quant_delay"]))


@skip_bytecode_translation
class DelayedFakeQuantize(FakeQuantize):
    """:class:`~paddleq.FakeQuantize` that quantizes after ``delay`` training steps only.

    Before that, it returns its input unchanged in training, and the observer collects statistics.
    Evaluation always quantizes. A step is a forward pass of this quantizer in training.
    """

    def __init__(self, *args, delay=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.delay = check_int("delay", delay, 0)
        self.register_buffer("step", paddle.zeros([1], dtype="int64"))

    def can_clip(self, clipping):
        # During the delay, clipping must be applied separately.
        return not self.delay and super().can_clip(clipping)

    @paddle.jit.not_to_static
    def forward(self, x, *args, **kwargs):
        """Quantize and dequantize ``x`` after the delay."""
        if not (self.training and self.state is State.QAT) or is_traced_by_save():
            return super().forward(x, *args, **kwargs)
        before = in_first_pass((id(self), "step"), self._count)
        waits = bool(self.delay) and self.fake_quant_enabled
        if waits and not paddle.in_dynamic_mode():
            y = super().forward(x, *args, **kwargs)
            return paddle.where(before < self.delay, x, y)
        if not waits or before.item() >= self.delay:
            return super().forward(x, *args, **kwargs)
        self.fake_quant_enabled = False
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            self.fake_quant_enabled = True

    def _count(self):
        before = self.step + 0
        with paddle.no_grad():
            paddle.assign(self.step + 1, self.step)
        return before

    def extra_repr(self):
        return f"{super().extra_repr()}, delay={self.delay}"
