"""What every observer can do."""

import abc
from typing import Callable

import paddle
from paddle import nn

from .._factory import WithArgs
from .._paddle_compat import own_buffers
from .._registry import Registry
from ..errors import CalibrationError
from ..functional import EPS, abs_max, affine_qparams
from ..functional.qparams import as_dtype
from ..spec import QuantSpec

OBSERVERS: "Registry[Callable]" = Registry("observer")
register_observer = OBSERVERS.register


class Observer(nn.Layer, WithArgs, abc.ABC):
    """Watches tensors and says which range is worth representing.

    An observer is a ``paddle.nn.Layer`` whose statistics are buffers: they are in
    ``state_dict``, they move with the model, and a copy of the model has its own.

    Args:
        spec: the quantization that the range is for. Default: int8 per tensor.
        channels: length of the channel axis when ``spec`` is per channel.

    Attributes:
        online: the threshold is cheap and meaningful after each batch, so that training can
            use it as it moves. False for histograms, whose threshold is searched once.
        fixed: the range does not depend on data.
        track_batch: a batch is quantized with its own threshold while training, with the stored
            one afterwards.
        dynamic: there is nothing to remember: the threshold is a property of each tensor
            (a weight's largest magnitude).
        abs_max_only: of a tensor, nothing but max|x| matters.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AbsMaxObserver
        >>> observer = AbsMaxObserver()
        >>> observer.update(paddle.to_tensor([-3.0, 2.0]))
        >>> observer.threshold().tolist()
        [3.0]
    """

    online = True
    dynamic = False
    track_batch = False
    fixed = False
    abs_max_only = False
    per_channel = False  # what a spec without a granularity of its own is to have

    def __init__(self, spec=None, channels=None):
        super().__init__()
        self.spec = QuantSpec() if spec is None else spec
        self.channels = 1 if channels is None or self.spec.channel_axis is None else channels
        self.register_buffer("batches", paddle.zeros([1], dtype="int64"))

    def forward(self, x):
        """Observe ``x`` and hand it on."""
        self.update(x)
        return x

    def update(self, x):
        """Take one tensor into the statistics."""
        with paddle.no_grad():
            self._update(x.detach())
            self._assign("batches", self.batches + 1)

    def update_qparams(self, x):
        """Observe ``x`` and return the :meth:`qparams` with which ``x`` itself is quantized."""
        self.update(x)
        return self.qparams()

    def qparams(self):
        """(threshold, zero point or None for a symmetric spec) from all that was seen."""
        if self.spec.symmetric:
            return self.threshold(), None
        return affine_qparams(*self.range(), self.spec)

    def _measured(self, threshold, range_=None):
        if self.spec.symmetric:
            return threshold, None
        return affine_qparams(*(range_ or (-threshold, threshold)), self.spec)

    @property
    def accepts_abs_max(self):
        """Whether observing max|x|, one element, is the same as observing x."""
        return self.abs_max_only and self.spec.channel_axis is None and not self.spec.binary

    @abc.abstractmethod
    def threshold(self):
        """Threshold from all that was seen: float32, shape [1] or [channels]."""

    def range(self):
        """(lowest, highest) value worth representing, each of the threshold's shape."""
        threshold = self.threshold()
        return -threshold, threshold

    def merge(self, other):
        """Take another observer's statistics in, as if its batches had come here too."""
        if type(other) is not type(self) or other.spec != self.spec:
            raise CalibrationError(
                f"cannot merge {type(other).__name__}({getattr(other, 'spec', None)}) into "
                f"{type(self).__name__}({self.spec}): observers merge with their own kind only")
        sizes = [{name: list(buffer.shape) for name, buffer in each.named_buffers()}
                 for each in (other, self)]
        if sizes[0] != sizes[1]:
            raise CalibrationError(
                f"cannot merge a {type(other).__name__} with statistics of the sizes {sizes[0]} "
                f"into one of {sizes[1]}: make both with the same arguments")
        if other.num_batches:
            with paddle.no_grad():
                if self.num_batches:
                    self._merge(other)
                else:
                    for name, value in other.named_buffers():
                        self._assign(name, value)
                    return
                self._assign("batches", self.batches + other.batches)

    @property
    def num_batches(self):
        """Number of batches observed."""
        return int(self.batches.item())

    @abc.abstractmethod
    def _update(self, x):
        """Take one tensor into the statistics."""

    @abc.abstractmethod
    def _merge(self, other):
        """Take another observer's statistics in, where both have seen something."""

    def _assign(self, name, value):
        # In place, so that to_static sees the buffer change. (Attribute access, not _buffers: it
        # is what turns a buffer into a variable of the traced program.)
        buffer = getattr(self, name)
        if buffer.shape == value.shape or not paddle.in_dynamic_mode():
            paddle.assign(as_dtype(value, buffer.dtype), buffer)
        else:
            own_buffers(self)[name] = as_dtype(value, buffer.dtype)

    def _abs_max(self, x):
        return abs_max(x, self.spec)

    def _float_buffer(self, name, shape=None, value=0.0, dtype="float32"):
        shape = [self.channels] if shape is None else shape
        self.register_buffer(name, paddle.full(shape, value, dtype=dtype))

    @staticmethod
    def _floored(threshold):
        return as_dtype(threshold, paddle.float32).clip(min=EPS)
