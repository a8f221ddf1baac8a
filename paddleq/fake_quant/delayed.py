"""Fake quantizer that starts after a number of training steps."""

import paddle

from .._checks import check_int
from .._paddle_compat import skip_bytecode_translation
from .fake_quantize import FakeQuantize, State


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
        if not (self.training and self.state is State.QAT):
            return super().forward(x, *args, **kwargs)
        before = self.step + 0
        with paddle.no_grad():
            paddle.assign(self.step + 1, self.step)
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

    def extra_repr(self):
        return f"{super().extra_repr()}, delay={self.delay}"
