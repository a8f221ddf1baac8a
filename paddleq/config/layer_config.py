"""What is to be done to one layer."""

from dataclasses import dataclass
from typing import Any, Callable, Optional

from ..spec import PerChannel, QuantSpec


@dataclass(frozen=True)
class QuantizerConfig:
    """How to build the fake-quantizer of one tensor.

    Args:
        observer: called as ``observer(spec, channels)``, returns a
            :class:`~paddleq.observers.Observer`. None: ``quantizer`` knows.
        spec: the quantization. A :class:`~paddleq.PerChannel` granularity here means "along the
            layer's own output channel axis", whatever its number.
        saturate: the gradient is zero for values outside of the range. Default False, as in
            PaddleSlim.
        quantizer: what to make in place of a FakeQuantize around that observer: called as
            ``quantizer(spec=..., label=...)``, with ``channel_len=...`` where it is known,
            returns a kind of FakeQuantize, such as :class:`~paddleq.LSQ`.

    Examples:
        >>> from paddleq.config import QuantizerConfig
        >>> from paddleq.observers import AbsMaxObserver
        >>> config = QuantizerConfig(AbsMaxObserver)
        >>> type(config.build()).__name__
        'FakeQuantize'
    """

    observer: Optional[Callable] = None
    spec: QuantSpec = QuantSpec()
    saturate: bool = False
    quantizer: Optional[Callable] = None

    @property
    def per_channel(self):
        """Whether each channel has a scale."""
        return isinstance(self.spec.granularity, PerChannel)

    def build(self, axis=None, channels=None, label=""):
        """A new FakeQuantize; ``axis`` and ``channels`` describe a weight."""
        from dataclasses import replace

        from ..fake_quant.fake_quantize import FakeQuantize
        spec = self.spec
        if self.per_channel and axis is not None:
            spec = replace(spec, granularity=PerChannel(axis))
        if self.quantizer is not None:
            known = self.per_channel and channels is not None
            return self.quantizer(spec=spec, label=label,
                                  **({"channel_len": channels} if known else {}))
        return FakeQuantize(self.observer(spec, channels), saturate=self.saturate, label=label)


@dataclass(frozen=True)
class NormFold:
    """That a layer is trained with the batch norm behind it folded into its weight.

    Args:
        one_conv: compute the layer once a step (True), or a second time for the statistics.
        freeze_at: training steps after which running statistics take the place of the batch's
            and stop moving.

    Examples:
        >>> from paddleq.config import LayerConfig, NormFold
        >>> LayerConfig(norm_fold=NormFold(one_conv=False, freeze_at=1000)).norm_fold.one_conv
        False
    """

    one_conv: bool = True
    freeze_at: int = 10_000_000


@dataclass(frozen=True)
class LayerConfig:
    """What is to be done to the weights and the inputs of a layer.

    Args:
        weight, activation: a :class:`QuantizerConfig`, or None to leave that side float.
        weight_preprocess, activation_preprocess: classes built once for each layer and called
            on the tensor before it is quantized, or None.
        weight_quantize, activation_quantize: classes built once for each layer and called
            instead of the fake-quantizer, or None.
        output: a :class:`QuantizerConfig` for what comes out of the layer, or of the block of
            layers that it begins, or None.
        norm_fold: a :class:`NormFold`, or None to compute a batch norm as the layer that it is.

    Examples:
        >>> from paddleq.config import LayerConfig, QuantizerConfig
        >>> from paddleq.observers import CurrentAbsMaxObserver
        >>> LayerConfig(weight=QuantizerConfig(CurrentAbsMaxObserver)).activation is None
        True
    """

    weight: Optional[QuantizerConfig] = None
    activation: Optional[QuantizerConfig] = None
    weight_preprocess: Any = None
    activation_preprocess: Any = None
    weight_quantize: Any = None
    activation_quantize: Any = None
    output: Optional[QuantizerConfig] = None
    norm_fold: Optional[NormFold] = None
