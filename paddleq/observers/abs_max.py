"""Observers that compute abs_max: from max|x|, mean and deviation, or a given scale."""

from typing import Any, Optional, Sequence, Union

import numpy as np
import paddle

from .._checks import check_float, check_int, wrong_value
from ..functional import EPS, abs_max, fake_quantize
from ..functional.qparams import as_dtype, reduce_channels
from ..functional.range_search import least_error_shares
from ..spec import QuantSpec
from .base import Accumulator, register_observer


class _AbsMaxBase(Accumulator):
    """Base of the observers of max|x| of each tensor."""

    abs_max_only = True

    @property
    def extremes(self):
        return () if self.spec.binary else (1.0,)  # otherwise a mean

    def _measure(self, x):
        return [abs_max(x, self.spec)]


@register_observer("current_abs_max")
class CurrentAbsMaxObserver(_AbsMaxBase):
    """max|x| of the current tensor, per tensor or per channel, for weights.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import CurrentAbsMaxObserver
        >>> observer = CurrentAbsMaxObserver()
        >>> abs_max, zero_point = observer.update_qparams(paddle.to_tensor([0.5, -2.0]))
        >>> abs_max.tolist(), zero_point
        ([2.0], None)
    """

    dynamic = True
    statistics = {"current": None}

    def abs_max(self):
        return self._at_least_eps(self.current)


class _LastSearch:
    """Result for the last tensor, so that a weight that does not change is searched once.

    Copies and pickles are empty. The tensor is compared by its values, because set_value() keeps
    its version.
    """

    def __init__(self) -> None:
        self.spec: Any = None
        self.tensor: Any = None
        self.abs_max: Any = None

    def __deepcopy__(self, memo):
        return _LastSearch()

    def __reduce__(self):
        return _LastSearch, ()

    def of(self, x, spec):
        """Return the result for ``x``, None if it is unknown."""
        known = (self.spec == spec and self.tensor.dtype == x.dtype
                 and paddle.equal_all(self.tensor, x).item())
        return self.abs_max if known else None

    def keep(self, x, spec, abs_max):
        """Keep the result for a copy of ``x``."""
        self.spec, self.tensor, self.abs_max = spec, x.detach().clone(), abs_max


@register_observer("current_mse")
class CurrentMSEObserver(_AbsMaxBase):
    """Range of the current tensor with the least squared error, for weights.

    The limit is a share of max|x|, per tensor or per channel, found by
    :func:`~paddleq.functional.range_search.least_error_shares`. That costs about 100 quantizations
    of the weight, once for each value that it has: in training, in each step.

    Raises:
        ConfigError: ``spec`` is asymmetric or has one bit.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import CurrentMSEObserver
        >>> observer = CurrentMSEObserver(QuantSpec(bits=3))
        >>> x = paddle.concat([paddle.linspace(-1.0, 1.0, 101), paddle.to_tensor([1.5])])
        >>> abs_max, _ = observer.update_qparams(x)
        >>> bool(abs_max < 1.0)
        True
    """

    dynamic = True
    abs_max_only = False
    statistics = {"current": None}

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None):
        super().__init__(spec, channels)
        if not self.spec.symmetric or self.spec.binary:
            raise wrong_value("spec", self.spec, "symmetric and of 2 bits or more")
        self._last = _LastSearch()

    def _measure(self, x):
        (largest,) = super()._measure(x)
        return [largest * self._shares(x, largest)]

    def update_qparams(self, x):
        if not paddle.in_dynamic_mode():
            return super().update_qparams(x)
        with paddle.no_grad():
            found = self._last.of(x, self.spec)
            if found is None:
                found, _ = super().update_qparams(x)
                self._last.keep(x, self.spec, found)
        return found, None

    def _shares(self, x, largest):
        spec, x = self.spec, as_dtype(x, paddle.float32)

        def error_of(shares):
            difference = fake_quantize(x, largest * shares, spec) - x
            return reduce_channels(paddle.sum, difference.square(), spec.channel_axis)

        return least_error_shares(error_of, largest)

    def abs_max(self):
        return self._at_least_eps(self.current)


@register_observer("abs_max")
class AbsMaxObserver(_AbsMaxBase):
    """Running maximum of max|x|.

    Args:
        spec, channels: as for :class:`Observer`.
        track_batch: in training, quantize each batch with its own maximum (PaddleSlim's
            ``abs_max`` activations); evaluation and export use the running maximum.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AbsMaxObserver
        >>> observer = AbsMaxObserver()
        >>> for batch in ([1.0, -3.0], [2.0, 0.0]):
        ...     observer.update(paddle.to_tensor(batch))
        >>> observer.abs_max().tolist()
        [3.0]
    """

    statistics = {"max": paddle.maximum}
    proportional = ("max",)

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 track_batch: bool = False):
        super().__init__(spec, channels)
        self.track_batch = track_batch

    def abs_max(self):
        return self._at_least_eps(self.max)


@register_observer("range_abs_max")
class RangeAbsMaxObserver(_AbsMaxBase):
    """Maximum of max|x| over the last ``window_size`` batches.

    Args:
        window_size: number of batches in the window. Default 10000.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import RangeAbsMaxObserver
        >>> observer = RangeAbsMaxObserver(window_size=2)
        >>> for value in (5.0, 1.0, 2.0):
        ...     observer.update(paddle.to_tensor([value]))
        >>> observer.abs_max().tolist()
        [2.0]
    """

    proportional = ("window",)

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 window_size: int = 10000):
        super().__init__(spec, channels)
        self.window_size = check_int("window_size", window_size, 1)
        self._float_buffer("window", [self.window_size, self.channels])

    def _combine(self, values):
        (current,) = values
        # Not a slice of the buffer: to_static cannot assign to a buffer that has a view.
        older = paddle.roll(self.window, -1, axis=0)[:-1]
        self._assign("window", paddle.concat([older, current.reshape([1, -1])]))

    def _merge(self, other):
        # The two streams have no common order: treat the windows as parallel.
        self._assign("window", paddle.maximum(self.window, other.window))

    def abs_max(self):
        return self._at_least_eps(self.window.max(axis=0))


@register_observer("avg")
class AverageObserver(_AbsMaxBase):
    """Mean of max|x| over the batches.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AverageObserver
        >>> observer = AverageObserver()
        >>> for value in (1.0, 3.0):
        ...     observer.update(paddle.to_tensor([value]))
        >>> observer.abs_max().tolist()
        [2.0]
    """

    statistics = {"total": paddle.add}

    def abs_max(self):
        return self._at_least_eps(self._mean("total"))


@register_observer("moving_average_abs_max")
class MovingAverageAbsMaxObserver(_AbsMaxBase):
    """Moving average of max|x| with bias correction.

    state = rate * state + 1, accum = rate * accum + max|x|, abs_max = accum / state. The first
    batch starts from 1 for both, as in PaddleSlim, which biases the first results towards 1. Both
    are 0 before it, so that a state without data has no weight in an average of states.

    Args:
        moving_rate: weight of the past, in [0, 1). Default 0.9.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MovingAverageAbsMaxObserver
        >>> observer = MovingAverageAbsMaxObserver(moving_rate=0.5)
        >>> observer.update(paddle.to_tensor([2.5]))
        >>> observer.abs_max().tolist()  # (0.5 * 1 + 2.5) / (0.5 * 1 + 1)
        [2.0]
    """

    proportional = ()  # the weight of a state cancels out

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 moving_rate: float = 0.9):
        super().__init__(spec, channels)
        self.moving_rate = check_float("moving_rate", moving_rate, 0.0, 1.0, open_high=True)
        self._float_buffer("state", [1])
        self._float_buffer("accum")

    def _combine(self, values):
        (current,) = values
        # A tensor condition: to_static traces one program for the first batch and all others.
        first = (self.state <= 0.0).astype("float32")
        self._assign("accum", (self.accum + first) * self.moving_rate + current)
        self._assign("state", (self.state + first) * self.moving_rate + 1.0)

    def _merge(self, other):
        share = self._share_of(other)
        merged = self.abs_max() * (1 - share) + other.abs_max() * share
        self._assign("accum", merged * self.state)

    def abs_max(self):
        return self._at_least_eps(self.accum / self.state.clip(min=EPS))


@register_observer("mean_magnitude")
class MeanMagnitudeObserver(Accumulator):
    """Initial scale of LSQ, 2 * mean|x| / sqrt(quant_max) (arXiv:1902.08153).

    Over several batches, the mean of the scales of the batches.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import MeanMagnitudeObserver
        >>> observer = MeanMagnitudeObserver(QuantSpec(limits=(-16, 16)))
        >>> observer.update(paddle.to_tensor([-1.0, 3.0]))
        >>> observer.abs_max().tolist()  # 16 times the scale 2 * 2 / 4
        [16.0]
    """

    statistics = {"total": paddle.add}

    def _measure(self, x):
        if 0 in x.shape:
            return []
        magnitude = as_dtype(x, paddle.float32).abs()
        return [reduce_channels(paddle.mean, magnitude, self.spec.channel_axis)]

    def abs_max(self):
        mean = self._mean("total")
        return self._at_least_eps(mean * (2.0 * self.spec.quant_max / self.spec.quant_max ** 0.5))


@register_observer("deviation")
class DeviationObserver(Accumulator):
    """Initial scale of LSQ+ for weights, (|mean| + 3 std) / (quant_max + 1) (arXiv:2004.09576).

    This equals the paper's max(|mean - 3 std|, |mean + 3 std|) / 2^(b-1). Over several batches,
    mean and standard deviation are those of all values.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import DeviationObserver
        >>> observer = DeviationObserver(QuantSpec(bits=2))
        >>> observer.update(paddle.to_tensor([-3.0, 1.0]))
        >>> observer.abs_max().tolist()  # (1 + 3 * 2) / 2
        [3.5]
    """

    statistics = {"total": paddle.add, "squares": paddle.add}

    def _measure(self, x):
        if 0 in x.shape:
            return []
        x = x.astype("float64")  # squares of up to 1e30, and differences of nearly equal numbers
        return [reduce_channels(paddle.mean, each, self.spec.channel_axis)
                for each in (x, x.square())]

    def abs_max(self):
        mean, squares = self._mean("total"), self._mean("squares")
        std = (squares - mean.square()).clip(min=0.0).sqrt()
        spec = self.spec
        factor = spec.quant_max / (spec.quant_max + 1)
        return self._at_least_eps((mean.abs() + 3.0 * std) * factor)


@register_observer("fixed_scale")
class FixedScaleObserver(Accumulator):
    """Use a given scale and zero point, whatever the data.

    Args:
        spec, channels: as for :class:`Observer`.
        scale: the step between two integers, positive; a number for all channels, or a sequence
            with one for each. Default 1.
        zero_point: the integer that represents 0, or a sequence. Default 0, the only value that a
            symmetric spec accepts.

    Raises:
        ConfigError, ConfigTypeError: a value is out of range, or there are more or fewer than
            channels.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import FixedScaleObserver
        >>> FixedScaleObserver(scale=0.5).abs_max().tolist()  # 127 steps
        [63.5]
    """

    fixed = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 scale: Union[float, Sequence[float]] = 1.0,
                 zero_point: Union[int, Sequence[int]] = 0):
        super().__init__(spec, channels)
        low, high = (0, 0) if self.spec.symmetric else (self.spec.quant_min, self.spec.quant_max)
        self.scale = self._each("scale", scale, lambda value: check_float(
            "scale", value, 0.0, float("inf"), open_low=True, open_high=True))
        self.zero_point = self._each(
            "zero_point", zero_point, lambda value: check_int("zero_point", value, low, high))

    def _each(self, name, value, check):
        if not isinstance(value, (list, tuple)):
            return check(value)
        if len(value) != self.channels:
            raise wrong_value(name, f"{len(value)} numbers", f"one number or {self.channels}")
        return list(map(check, value))

    def _measure(self, x):
        return []

    def _of_channels(self, values):
        return paddle.to_tensor(np.broadcast_to(values, [self.channels]).astype("float32"))

    def abs_max(self):
        return self._of_channels(np.asarray(self.scale, "float64") * self.spec.quant_max)

    def range(self):
        return tuple(self._of_channels(
            np.asarray(self.scale, "float64") * (limit - np.asarray(self.zero_point, "float64")))
            for limit in (self.spec.quant_min, self.spec.quant_max))

    def qparams(self):
        zero = paddle.to_tensor(np.broadcast_to(
            np.asarray(self.zero_point, "int64"), [self.channels]).copy())
        return self.abs_max(), None if self.spec.symmetric else zero
