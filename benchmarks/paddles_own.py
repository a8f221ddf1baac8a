"""Quantization-aware training by ``paddle.quantization``, which PaddleSlim's QAT calls."""

import paddle
from paddle import nn
from paddle.quantization import ImperativeQuantAware


class ReferencePACT(nn.Layer):
    """PACT as PaddleSlim writes it; derive a class to change its arguments.

    Attributes:
        init, learning_rate, l2: as for :class:`paddleq.PACT`.
    """

    init, learning_rate, l2 = 100.0, 1000.0, 0.0

    def __init__(self):
        super().__init__()
        self.alpha = self.create_parameter([1], attr=paddle.ParamAttr(
            initializer=nn.initializer.Constant(self.init), learning_rate=self.learning_rate,
            regularizer=paddle.regularizer.L2Decay(self.l2) if self.l2 else None),
            dtype="float32")

    def forward(self, x):
        relu = nn.functional.relu
        return x - relu(x - self.alpha) + relu(-self.alpha - x)


def reference(preprocess=None, bits=(8, 8)):
    """A function that quantizes a model with paddle.quantization, weights per channel.

    Args:
        preprocess: class of the preprocessing before activation quantizers, or None.
        bits: of weights and activations.
    """
    weight_bits, activation_bits = bits
    quanter = ImperativeQuantAware(
        weight_quantize_type="channel_wise_abs_max", weight_bits=weight_bits,
        activation_quantize_type="moving_average_abs_max", activation_bits=activation_bits,
        act_preprocess_layer=preprocess, onnx_format=True)

    def quantize(model):
        quanter.quantize(model)
        return model
    return quantize
