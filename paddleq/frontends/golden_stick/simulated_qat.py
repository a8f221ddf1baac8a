"""``SimulatedQuantizationAwareTraining``: fake-quantizers, fusion and folded batch norms."""

import os
from functools import partial

from paddle import nn

from ... import engine
from ..._checks import wrong_type
from ...checkpoint import load_state, read_state
from ...config import LayerConfig, NormFold, QuantConfig, QuantizerConfig
from ...engine.example_inputs import look_now_or_later, pending
from ...errors import FormatError, ModelError
from ...fake_quant.delayed import DelayedFakeQuantize
from ...graph.dataflow import PRODUCERS
from ...nn.quantizable_function import QuantizableFunction
from ...observers import CurrentMinMaxObserver, MovingAverageMinMaxObserver
from ...spec import PerChannel, PerTensor, QuantSpec
from .simulated_qat_config import SimulatedQATConfig


class SimulatedQuantizationAwareTraining:
    """Simulated quantization-aware training with MindSpore Golden Stick's interface.

    Convolutions and linear layers get a fake-quantizer for what goes in, for their weight and
    for what comes out, of the layer or of the block (with batch norm and ReLU) that it begins.

    Args:
        config: dict; None for the defaults. Five keys are pairs: of a list or tuple of two the
            first is for activations, the second for weights; a single value, or a list or tuple
            of one, is for both.

            - ``quant_delay`` ((0, 0)): training steps after which a quantizer begins to quantize;
              it observes meanwhile. Evaluation always quantizes and never counts. Each quantizer
              counts the forward passes through it while training, in its buffer ``step``.
            - ``quant_dtype`` ((QuantDtype.INT8, QuantDtype.INT8)): INT8 only.
            - ``per_channel`` ((False, False)): a scale for each output channel. The first must be
              False.
            - ``symmetric`` ((False, False)): the range is [-M, M] with M = max(|m|, |M|), in int8;
              else it is [m, M], in uint8 with a zero point. It always contains 0.
            - ``narrow_range`` ((False, False)): leave the lowest integer out.
            - ``enable_fusion`` (False): join Conv + BN + ReLU, Conv + BN, Conv + ReLU, and the
              same with Linear, to blocks, which are quantized at their ends only. Which layers
              follow each other is seen from what the data does; ``F.relu`` cannot be seen,
              ``nn.ReLU`` can. A pair whose middle is read by others is not joined.
            - ``freeze_bn`` (10000000): training steps after which a folded batch norm computes
              with its running statistics, which stop moving. Of no effect without ``bn_fold``.
            - ``bn_fold`` (False): train with the batch norm folded into the weight, so that what
              is quantized is what will be deployed. Needs ``enable_fusion``.
            - ``one_conv_fold`` (True): compute the convolution once in a step. False: twice, the
              first time for the statistics of the batch, without quantization.

    Raises:
        ConfigTypeError: (a TypeError) a value of another type: a bool is no int here, an int no
            bool.
        ConfigError: (a ValueError) an unknown key, a negative int, more than two values, another
            dtype than INT8, ``per_channel`` for activations, ``bn_fold`` without
            ``enable_fusion``.

    Each part of the configuration has a setter, which checks as the constructor does. What takes
    two to be wrong (``bn_fold`` without ``enable_fusion``) is checked by :meth:`apply`, so that
    setters can be called in any order.

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

    def __init__(self, config=None):
        self._config = SimulatedQATConfig.parse(config)

    @property
    def config(self):
        """A dict of the nine keys as they stand."""
        return self._config.as_dict()

    def apply(self, network, inputs=None):
        """Make ``network`` simulate quantization, in place.

        1. With ``enable_fusion``, layers are joined to blocks.
        2. The layers are given policies: what is quantized, and how.
        3. Of two quantizers with the same parameters on one tensor, the second goes.
        4. The layers become quantized ones. They remain the same objects, with the same parameters
           under the same names: a float checkpoint loads, and an optimizer made before trains on.

        Args:
            network: a float ``paddle.nn.Layer``.
            inputs: example inputs (a tensor, a list of arguments or a dict), which show which
                layer feeds which. Without them the first batch shows it; until then the network
                has quantizers that it may turn out not to need.

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
        look = partial(engine.find_arrangement, blocks=config.enable_fusion)
        found = []
        if inputs is not None:
            engine.prepare(network, _rules(config), lambda: look_now_or_later(
                network, inputs, lambda model, run: found.append(look(model, run))))
            engine.arrange(network, found[0])
        else:
            engine.prepare(network, _rules(config))
            look_now_or_later(network, None, partial(_look_and_arrange, look=look))
        engine.say_method(network, "simulated_qat", config=self.config)
        return network

    def convert(self, net_opt, ckpt_path=""):
        """The network to deploy: batch norms folded into weights and biases, scales fixed.

        The scales of weights are computed from the folded weights. With ``bn_fold`` these are
        what training quantized, and the result is the same as the network's in evaluation; without
        it, training quantized the weights before the fold, and results move by as much as
        rounding them anew does.

        It is exported as any quantized network, by ``paddleq.export.save(network, path)``.

        Args:
            net_opt: a network that :meth:`apply` returned, trained. It is not changed.
            ckpt_path: a file that ``paddle.save(net_opt.state_dict(), path)`` wrote, to load
                before; "" (default): none. Nothing in it is unpickled.

        Returns:
            A copy of the network, converted, in evaluation mode.

        Raises:
            ConfigTypeError: ``net_opt`` is no ``paddle.nn.Layer``, or ``ckpt_path`` no str.
            FormatError: the file ``ckpt_path`` does not exist, holds more than arrays, or is damaged.
            ModelError: a parameter is missing in the file or left over; the network is not
                quantized, or was never shown a batch.
            CalibrationError: names the quantizers that saw no data.
        """
        if not isinstance(net_opt, nn.Layer):
            raise wrong_type("net_opt", net_opt, "a paddle.nn.Layer that apply() returned")
        if not isinstance(ckpt_path, str):
            raise wrong_type("ckpt_path", ckpt_path, "a str, empty for no checkpoint")
        if ckpt_path and not os.path.isfile(ckpt_path):
            raise FormatError(f"ckpt_path must be the path of an existing file, or empty, but is "
                              f"{ckpt_path!r}")
        engine.check_quantized(net_opt)
        if pending(net_opt):
            raise ModelError(
                "net_opt has not been shown a batch yet, so that it is not known which layer "
                "feeds which; give apply() example inputs (inputs=...), or run a batch first")
        network = engine.copy_of(net_opt)
        if ckpt_path:
            load_state(network, read_state(ckpt_path), ckpt_path)
        return engine.convert(network)

    def set_act_quant_delay(self, act_quant_delay):
        """Change ``act_quant_delay`` for the next :meth:`apply`.

        Args:
            act_quant_delay: training steps after which activations are quantized. An int of at
                least 0.

        Raises:
            ConfigTypeError: it is no int, or a bool.
            ConfigError: it is negative.
        """
        self._config = self._config.changed("act_quant_delay", act_quant_delay)

    def set_weight_quant_delay(self, weight_quant_delay):
        """Change ``weight_quant_delay`` for the next :meth:`apply`.

        Args:
            weight_quant_delay: training steps after which weights are quantized. An int of at
                least 0.

        Raises:
            ConfigTypeError: it is no int, or a bool.
            ConfigError: it is negative.
        """
        self._config = self._config.changed("weight_quant_delay", weight_quant_delay)

    def set_act_quant_dtype(self, act_quant_dtype):
        """Change ``act_quant_dtype`` for the next :meth:`apply`.

        Args:
            act_quant_dtype: data type of quantized activations. QuantDtype.INT8 only.

        Raises:
            ConfigTypeError: it is no QuantDtype.
            ConfigError: it is another one.
        """
        self._config = self._config.changed("act_quant_dtype", act_quant_dtype)

    def set_weight_quant_dtype(self, weight_quant_dtype):
        """Change ``weight_quant_dtype`` for the next :meth:`apply`.

        Args:
            weight_quant_dtype: data type of quantized weights. QuantDtype.INT8 only.

        Raises:
            ConfigTypeError: it is no QuantDtype.
            ConfigError: it is another one.
        """
        self._config = self._config.changed("weight_quant_dtype", weight_quant_dtype)

    def set_act_per_channel(self, act_per_channel):
        """Change ``act_per_channel`` for the next :meth:`apply`.

        Args:
            act_per_channel: whether activations have a scale for each channel. False only.

        Raises:
            ConfigTypeError: it is no bool.
            ConfigError: it is True.
        """
        self._config = self._config.changed("act_per_channel", act_per_channel)

    def set_weight_per_channel(self, weight_per_channel):
        """Change ``weight_per_channel`` for the next :meth:`apply`.

        Args:
            weight_per_channel: whether weights have a scale for each output channel. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("weight_per_channel", weight_per_channel)

    def set_act_symmetric(self, act_symmetric):
        """Change ``act_symmetric`` for the next :meth:`apply`.

        Args:
            act_symmetric: whether the range of activations is symmetric. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("act_symmetric", act_symmetric)

    def set_weight_symmetric(self, weight_symmetric):
        """Change ``weight_symmetric`` for the next :meth:`apply`.

        Args:
            weight_symmetric: whether the range of weights is symmetric. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("weight_symmetric", weight_symmetric)

    def set_act_narrow_range(self, act_narrow_range):
        """Change ``act_narrow_range`` for the next :meth:`apply`.

        Args:
            act_narrow_range: whether activations leave the lowest integer out. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("act_narrow_range", act_narrow_range)

    def set_weight_narrow_range(self, weight_narrow_range):
        """Change ``weight_narrow_range`` for the next :meth:`apply`.

        Args:
            weight_narrow_range: whether weights leave the lowest integer out. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("weight_narrow_range", weight_narrow_range)

    def set_enable_fusion(self, enable_fusion):
        """Change ``enable_fusion`` for the next :meth:`apply`.

        Args:
            enable_fusion: whether to join layers to blocks. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("enable_fusion", enable_fusion)

    def set_bn_fold(self, bn_fold):
        """Change ``bn_fold`` for the next :meth:`apply`.

        Args:
            bn_fold: whether to train with batch norms folded into weights. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("bn_fold", bn_fold)

    def set_one_conv_fold(self, one_conv_fold):
        """Change ``one_conv_fold`` for the next :meth:`apply`.

        Args:
            one_conv_fold: whether folding computes the convolution once in a step. A bool.

        Raises:
            ConfigTypeError: it is no bool.
        """
        self._config = self._config.changed("one_conv_fold", one_conv_fold)

    def set_freeze_bn(self, freeze_bn):
        """Change ``freeze_bn`` for the next :meth:`apply`.

        Args:
            freeze_bn: training steps after which a folded batch norm keeps its running statistics.
                An int of at least 0.

        Raises:
            ConfigTypeError: it is no int, or a bool.
            ConfigError: it is negative.
        """
        self._config = self._config.changed("freeze_bn", freeze_bn)


def _look_and_arrange(model, run, look):
    engine.arrange(model, look(model, run))


def _rules(config):
    activation, weight = _quantizers(config)
    fold = NormFold(config.one_conv_fold, config.freeze_bn) if config.bn_fold else None
    rules = QuantConfig()
    for cls in (*PRODUCERS, QuantizableFunction):
        rules.add_type(cls, LayerConfig(weight, activation, output=activation, norm_fold=fold))
    return rules


def _quantizers(config):
    """(for activations, for weights)."""
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
