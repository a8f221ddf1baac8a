"""``SimulatedQuantizationAwareTraining``: fake-quantizers, fusion and folded batch norms."""

import os
from functools import partial
from typing import Any, Dict, Optional

from paddle import nn

from ... import engine
from ..._checks import wrong_type
from ...checkpoint import load_state, read_state
from ...config import LayerConfig, NormFold, QuantConfig, QuantizerConfig
from ...engine.example_inputs import awaits_first_batch, run_on_first_inputs
from ...errors import FormatError, ModelError
from ...fake_quant.delayed import DelayedFakeQuantize
from ...graph.dataflow import PRODUCERS
from ...nn.quantizable_function import QuantizableFunction
from ...observers import CurrentMinMaxObserver, MovingAverageMinMaxObserver
from ...spec import PerChannel, PerTensor, QuantSpec
from .enums import QuantDtype
from .simulated_qat_config import SimulatedQATConfig


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

    Each part of the configuration has a setter with the same checks. Contradictions (``bn_fold``
    without ``enable_fusion``) are checked by :meth:`apply`, so setters can be called in any order.

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
        self._config = SimulatedQATConfig.parse(config)

    @property
    def config(self) -> Dict[str, Any]:
        """Dict of the nine keys."""
        return self._config.as_dict()

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
        config.check_together()
        find = partial(engine.find_block_structure, blocks=config.enable_fusion)
        found = []
        if inputs is not None:
            engine.prepare(network, _rules(config), lambda: run_on_first_inputs(
                network, inputs, lambda model, run: found.append(find(model, run))))
            engine.fuse_blocks(network, found[0])
        else:
            engine.prepare(network, _rules(config))
            run_on_first_inputs(network, None, partial(_fuse_blocks, find=find))
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
            CalibrationError: names the quantizers without data.
        """
        if not isinstance(net_opt, nn.Layer):
            raise wrong_type("net_opt", net_opt, "a paddle.nn.Layer that apply() returned")
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
        network = engine.copy_of(net_opt)
        if ckpt_path:
            load_state(network, read_state(ckpt_path), ckpt_path)
        return engine.convert(network)

    def set_act_quant_delay(self, act_quant_delay: int) -> None:
        """Change ``act_quant_delay`` for the next :meth:`apply`.

        Args:
            act_quant_delay: number of training steps before activations are quantized. An int of
                at least 0.

        Raises:
            ConfigTypeError: it is not an int, or a bool.
            ConfigError: it is negative.
        """
        self._config = self._config.changed("act_quant_delay", act_quant_delay)

    def set_weight_quant_delay(self, weight_quant_delay: int) -> None:
        """Change ``weight_quant_delay`` for the next :meth:`apply`.

        Args:
            weight_quant_delay: number of training steps before weights are quantized. An int of at
                least 0.

        Raises:
            ConfigTypeError: it is not an int, or a bool.
            ConfigError: it is negative.
        """
        self._config = self._config.changed("weight_quant_delay", weight_quant_delay)

    def set_act_quant_dtype(self, act_quant_dtype: QuantDtype) -> None:
        """Change ``act_quant_dtype`` for the next :meth:`apply`.

        Args:
            act_quant_dtype: data type of quantized activations. QuantDtype.INT8 only.

        Raises:
            ConfigTypeError: it is not a QuantDtype.
            ConfigError: it is not INT8.
        """
        self._config = self._config.changed("act_quant_dtype", act_quant_dtype)

    def set_weight_quant_dtype(self, weight_quant_dtype: QuantDtype) -> None:
        """Change ``weight_quant_dtype`` for the next :meth:`apply`.

        Args:
            weight_quant_dtype: data type of quantized weights. QuantDtype.INT8 only.

        Raises:
            ConfigTypeError: it is not a QuantDtype.
            ConfigError: it is not INT8.
        """
        self._config = self._config.changed("weight_quant_dtype", weight_quant_dtype)

    def set_act_per_channel(self, act_per_channel: bool) -> None:
        """Change ``act_per_channel`` for the next :meth:`apply`.

        Args:
            act_per_channel: scale per channel for activations. False only.

        Raises:
            ConfigTypeError: it is not a bool.
            ConfigError: it is True.
        """
        self._config = self._config.changed("act_per_channel", act_per_channel)

    def set_weight_per_channel(self, weight_per_channel: bool) -> None:
        """Change ``weight_per_channel`` for the next :meth:`apply`.

        Args:
            weight_per_channel: scale per output channel for weights. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("weight_per_channel", weight_per_channel)

    def set_act_symmetric(self, act_symmetric: bool) -> None:
        """Change ``act_symmetric`` for the next :meth:`apply`.

        Args:
            act_symmetric: symmetric range for activations. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("act_symmetric", act_symmetric)

    def set_weight_symmetric(self, weight_symmetric: bool) -> None:
        """Change ``weight_symmetric`` for the next :meth:`apply`.

        Args:
            weight_symmetric: symmetric range for weights. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("weight_symmetric", weight_symmetric)

    def set_act_narrow_range(self, act_narrow_range: bool) -> None:
        """Change ``act_narrow_range`` for the next :meth:`apply`.

        Args:
            act_narrow_range: exclude the lowest integer for activations. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("act_narrow_range", act_narrow_range)

    def set_weight_narrow_range(self, weight_narrow_range: bool) -> None:
        """Change ``weight_narrow_range`` for the next :meth:`apply`.

        Args:
            weight_narrow_range: exclude the lowest integer for weights. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("weight_narrow_range", weight_narrow_range)

    def set_enable_fusion(self, enable_fusion: bool) -> None:
        """Change ``enable_fusion`` for the next :meth:`apply`.

        Args:
            enable_fusion: fuse layers into blocks. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("enable_fusion", enable_fusion)

    def set_bn_fold(self, bn_fold: bool) -> None:
        """Change ``bn_fold`` for the next :meth:`apply`.

        Args:
            bn_fold: train with batch norms folded into weights. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("bn_fold", bn_fold)

    def set_one_conv_fold(self, one_conv_fold: bool) -> None:
        """Change ``one_conv_fold`` for the next :meth:`apply`.

        Args:
            one_conv_fold: compute a folded convolution once per step. A bool.

        Raises:
            ConfigTypeError: it is not a bool.
        """
        self._config = self._config.changed("one_conv_fold", one_conv_fold)

    def set_freeze_bn(self, freeze_bn: int) -> None:
        """Change ``freeze_bn`` for the next :meth:`apply`.

        Args:
            freeze_bn: number of training steps after which a folded batch norm uses its running
                statistics. An int of at least 0.

        Raises:
            ConfigTypeError: it is not an int, or a bool.
            ConfigError: it is negative.
        """
        self._config = self._config.changed("freeze_bn", freeze_bn)


def _fuse_blocks(model, run, find):
    engine.fuse_blocks(model, find(model, run))


def _rules(config):
    activation, weight = _quantizers(config)
    fold = NormFold(config.one_conv_fold, config.freeze_bn) if config.bn_fold else None
    rules = QuantConfig()
    for cls in (*PRODUCERS, QuantizableFunction):
        rules.add_type(cls, LayerConfig(weight, activation, output=activation, norm_fold=fold))
    return rules


def _quantizers(config):
    """(QuantizerConfig of activations, QuantizerConfig of weights)."""
    def spec(side, granularity):
        symmetric = getattr(config, f"{side}_symmetric")
        return QuantSpec(
            getattr(config, f"{side}_quant_dtype").num_bits, signed=symmetric, symmetric=symmetric,
            narrow_range=getattr(config, f"{side}_narrow_range"), granularity=granularity)

    def quantizer(side, observer, granularity):
        delay = getattr(config, f"{side}_quant_delay")
        return QuantizerConfig(spec=spec(side, granularity), quantizer=partial(
            DelayedFakeQuantize, observer=observer, saturate=True, delay=delay))

    per_channel = PerChannel() if config.weight_per_channel else PerTensor()
    return (quantizer("act", MovingAverageMinMaxObserver, PerTensor()),
            quantizer("weight", CurrentMinMaxObserver, per_channel))
