"""Fake quantizer with an observer, a scale and three states."""

from contextlib import contextmanager
from typing import Any, Optional

import numpy as np
import paddle

from .._checks import check_bool, wrong_type, wrong_value
from .._paddle_compat import (
    drop_programs,
    own_buffers,
    own_parameters,
    record_programs,
    run_untranslated,
    skip_bytecode_translation,
)
from ..errors import ConfigError, ModelError
from ..functional import clip_and_fake_quantize, fake_quantize, representable_range
from ..functional.pact import clip_symmetric
from ..functional.qparams import as_dtype, scale_of
from ..observers import MovingAverageMinMaxObserver
from ..observers.base import WithArgs, assign_buffer
from ..spec import HALF_EVEN
from .observation import Observation, State
from .recompute import in_first_pass

__all__ = ["FakeQuantize", "State"]


class _Switch:
    """Attribute on which compiled programs depend: a new value drops them."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, quantizer, owner=None) -> Any:
        if quantizer is None:
            return self
        if self.name not in quantizer.__dict__:
            raise AttributeError(self.name)
        return quantizer.__dict__[self.name]

    def __set__(self, quantizer, value):
        known = quantizer.__dict__
        if known.get(self.name, value) is not value:
            drop_programs(quantizer)
        known[self.name] = value


@skip_bytecode_translation
class FakeQuantize(Observation, WithArgs):
    """Quantize and dequantize a tensor with the scale that an observer computes.

    The result is (clip(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale.

    Args:
        observer: a class of :mod:`paddleq.observers`, a factory of one (``with_args``), or an
            :class:`~paddleq.observers.Observer`, whose ``spec`` is then used. Default
            :class:`~paddleq.observers.MovingAverageMinMaxObserver`.
        saturate: the gradient is zero for values outside of the range. False: it passes all values.
            None (default): True.
        in_place: overwrite the input, which must be float32. Default False.
        compat_mask: store the mask of values outside of the range as bits instead of bytes; the
            results are the same. Default True. (With one scale, the fast path stores the input
            instead of a mask.)
        channel_len: number of channels with separate scales. Default 1.
        fast_training: in a training step, compute range and result with the fewest passes over the
            tensor; results may differ by one unit in the last place. With a saturating gradient, it
            synchronizes with a GPU once. Ignored with ``in_place``. Default True.
        label: name of this quantizer in messages.
        reduce: combination of the statistics of a training batch over the processes of
            ``paddle.distributed``, so that all of them use one scale. "max" (default): as if one
            process had the batches of all, that is maxima and minima over the processes. "mean":
            the means of their maxima and minima. None: each process has its scale. Quantizers of
            weights do not reduce, because all processes have the same weights.
        observer_kwargs: ``spec``, a :class:`~paddleq.QuantSpec`, or the arguments of
            :func:`paddleq.spec.spec_from_qscheme`: ``dtype`` ("qint8" by default), ``qscheme``,
            ``quant_min``, ``quant_max``, ``ch_axis``, ``rounding`` ("half_up": floor(v + 0.5), or
            "half_even"). Others are arguments of the observer, such as ``averaging_constant``.

    Attributes:
        scale: float32 [1] or [channels]; 0 until data are observed. A quantizer without a scale
            returns its input unchanged.
        zero_point: buffer, int64, of the same shape.
        abs_max: buffer, float32: scale times ``spec.quant_max``, which Paddle calls the scale.
        scale_weight: buffer, float32 [1]: 0 if there is no scale, 1 if it was observed, 2 if it was
            set. Averages of states have the weight of those with a scale, by which
            ``set_state_dict`` divides.
        skipped_batches: buffer, int64 [1], not in ``state_dict``: number of training batches with
            NaN or infinity. The observer skips them; the first one is logged as a warning.
        quant_min, quant_max: lowest and highest integer.
        observer_enabled, fake_quant_enabled: switches, set together by :meth:`set_state`.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid.
        NonFiniteError: NaN or infinity in a calibration batch.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize
        >>> from paddleq.observers import FixedScaleObserver
        >>> quantizer = FakeQuantize(FixedScaleObserver, scale=0.5, dtype="qint8")
        >>> quantizer(paddle.to_tensor([-100.0, 0.2, 0.25, 0.6])).tolist()
        [-64.0, 0.0, 0.5, 0.5]
        >>> quantizer.scale.tolist(), quantizer.quant_min, quantizer.quant_max
        ([0.5], -128, 127)
    """

    bounded = True  # a preceding clipping range may limit abs_max
    state, observer_enabled, fake_quant_enabled = _Switch(), _Switch(), _Switch()

    def __init__(self, observer: Any = MovingAverageMinMaxObserver, saturate=None, in_place=False,
                 compat_mask=True, channel_len=1, fast_training=True, label="",
                 reduce: Optional[str] = "max", **observer_kwargs):
        super().__init__(observer, channel_len, observer_kwargs, label, reduce)
        self.saturate = saturate is None or check_bool("saturate", saturate)
        self.in_place = check_bool("in_place", in_place)
        self.compat_mask = check_bool("compat_mask", compat_mask)
        self.channel_len = channel_len
        self.fast_training = check_bool("fast_training", fast_training)
        self._make_buffers([self.observer.channels])
        self.register_buffer("scale_weight", paddle.zeros([1], dtype="float32"))
        self.set_state(State.QAT)
        if self.observer.fixed:
            self._store_observed()

    def _make_buffers(self, shape):
        self.register_buffer("abs_max", paddle.zeros(shape, dtype="float32"))
        self.register_buffer("zero_point", paddle.zeros(shape, dtype="int64"))

    @property
    def spec(self):
        """The :class:`~paddleq.QuantSpec`."""
        return self.observer.spec

    @property
    def scale(self):
        """Scale: the step between two integers."""
        return scale_of(self.abs_max, self.spec)

    @property
    def quant_min(self):
        """The lowest integer."""
        return self.spec.quant_min

    @property
    def quant_max(self):
        """The highest integer."""
        return self.spec.quant_max

    @property
    def initialized(self):
        """True if a scale was observed, set or loaded."""
        if self.observer.dynamic:
            return True
        # Reading the scale synchronizes with a GPU, so each version is read once.
        version = (id(self.abs_max), self.abs_max.inplace_version)
        if self._known_version != version:
            if not (self.abs_max > 0).any().item():
                return False
            self._known_version = version
        return True

    def set_state(self, state):
        """Switch to a :class:`State`."""
        self.state = State(state)
        self.observer_enabled = self.state is not State.VALIDATION
        self.fake_quant_enabled = self.state is not State.CALIBRATION

    def set_qparams(self, scale, zero_point=None):
        """Set the scale and the zero point.

        Args:
            scale: a positive number, or a sequence or tensor with one for each channel.
            zero_point: as many integers; None (default): 0, the only value of a symmetric spec.

        Raises:
            ConfigError: a scale is not positive or not finite, the number of channels is wrong, or
                a zero point is out of range.

        Examples:
            >>> from paddleq import FakeQuantize
            >>> quantizer = FakeQuantize(dtype="quint8", qscheme="per_tensor_affine")
            >>> quantizer.set_qparams(0.5, 100)
            >>> [limit.tolist() for limit in quantizer.range()]
            [[-50.0], [77.5]]
        """
        spec, channels = self.spec, self.observer.channels
        if self.observer.dynamic:
            raise ConfigError(f"set_qparams: the observer {type(self.observer).__name__} computes "
                              "a scale for each tensor, so no scale can be set; use another "
                              "observer")
        steps = _numbers("scale", scale, channels)
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise wrong_value("scale", scale, "positive and finite")
        zeros = _numbers("zero_point", 0 if zero_point is None else zero_point, channels)
        low, high = (0, 0) if spec.symmetric else (spec.quant_min, spec.quant_max)
        if not ((zeros == np.round(zeros)) & (zeros >= low) & (zeros <= high)).all():
            limits = "0 for a symmetric spec" if spec.symmetric else f"integers in [{low}, {high}]"
            raise wrong_value("zero_point", zero_point, limits)
        with paddle.no_grad():
            self._store(paddle.to_tensor((steps * spec.quant_max).astype("float32")),
                        paddle.to_tensor(zeros.astype("int64")))
        self._qparams_when_observed = None

    def range(self):
        """Return (lowest, highest) value that is not clipped, float32 [1] or [channels]."""
        return representable_range(self.abs_max, self.spec, self.zero_point)

    def can_clip(self, clipping):
        """Return True if :meth:`forward` can apply ``clipping`` in the pass that quantizes."""
        observer = self.observer
        return clipping is not None and (clipping.idle or (
            self.observer_enabled and self.fake_quant_enabled and self.training
            and not self.saturate and not self.in_place
            and observer.online and not observer.dynamic and observer.accepts_abs_max
            and self.spec.rounding == HALF_EVEN))

    @run_untranslated
    @paddle.jit.not_to_static
    def forward(self, x, clipping=None, bound=None):
        """Quantize and dequantize ``x``.

        Args:
            x: float tensor.
            clipping: :class:`~paddleq.fake_quant.pact.Clipping` of a PACT to apply to ``x``, if
                :meth:`can_clip`. The maximum is observed in place of ``x`` if that is equivalent.
            bound: magnitude to which a PACT clipped ``x``, float32 of one element. abs_max
                is at most this bound, or that of ``clipping``, as in :meth:`clipped`. So training
                is not coarser than evaluation if the observer has seen a wider range.
        """
        record_programs(self)
        if self.observer.dynamic:
            return self._fake_quantize(x, self.qparams_of(x)) if self.fake_quant_enabled else x
        if self.training:
            qparams, usable = self._qparams_in_training(x, clipping)
        else:
            qparams, usable = self._update(x, clipping)
        if not self.fake_quant_enabled or not usable:
            return x
        bound = bound if clipping is None else clipping.bound
        if bound is not None:
            qparams = paddle.minimum(qparams[0], bound), qparams[1]
        return self._fake_quantize(x, qparams, clipping)

    def _fake_quantize(self, x, qparams, clipping=None):
        abs_max, zero_point = qparams
        if clipping is not None and not clipping.idle:
            result = clip_and_fake_quantize(as_dtype(x, paddle.float32), clipping.alpha, abs_max,
                                            self.spec)
            return as_dtype(result, x.dtype)
        if self.in_place and x.dtype != paddle.float32:
            raise ModelError(f"{self.label or 'the quantizer'}: in_place takes float32 tensors, "
                             f"but the input is {x.dtype}; make it with in_place=False")
        fast = self.training and self.fast_training and not self.in_place
        return fake_quantize(
            x, abs_max, self.spec, self.saturate, exact=not fast, zero_point=zero_point,
            idle=None if clipping is None else clipping.alpha, pack=self.compat_mask,
            in_place=self.in_place)

    def _qparams_in_training(self, x, clipping):
        return in_first_pass((id(self), "qparams"), self._update, x, clipping)

    def clipped(self, x, bound):
        """Quantize as in evaluation, with abs_max of at most ``bound``."""
        if not self.fake_quant_enabled or not self._usable():
            return self(clip_symmetric(x, bound.item()))
        return fake_quantize(x, paddle.minimum(self.abs_max, bound), self.spec, self.saturate)

    @contextmanager
    def preserved_qparams(self):
        """Restore scale and zero point on exit."""
        held = [(owner, name, tensor, tensor.detach().clone())
                for owner in (own_parameters(self), own_buffers(self))
                for name, tensor in owner.items()]
        observed = self._qparams_when_observed
        try:
            yield
        finally:
            for owner, name, tensor, value in held:
                with paddle.no_grad():
                    paddle.assign(value, tensor)
                owner[name] = tensor
            self._qparams_when_observed, self._known_version = observed, None
            self._weighted = False

    def qparams_of(self, x):
        """Return (abs_max, zero point or None) that quantize ``x`` in evaluation."""
        if self.observer.dynamic:
            return self.observer.update_qparams(x)
        return self.abs_max, None if self.spec.symmetric else self.zero_point

    def _qparams(self):
        """Return the first two arguments of :meth:`_fake_quantize` from the stored state."""
        return self.qparams_of(None)

    def extra_repr(self):
        spec = self.spec
        return (f"{spec}, {'symmetric' if spec.symmetric else 'affine'}, "
                f"quant_min={spec.quant_min}, quant_max={spec.quant_max}, "
                f"observer={type(self.observer).__name__}, "
                f"saturate={self.saturate}, state={self.state.value}, "
                f"fake_quant_enabled={self.fake_quant_enabled}, "
                f"observer_enabled={self.observer_enabled}")

    def _usable(self):
        # Values are unknown while to_static traces; the export detects missing scales.
        return not paddle.in_dynamic_mode() or self.initialized

    def _divide(self, weight):
        assign_buffer(self, "abs_max", self.abs_max / weight)

    def _store(self, abs_max, zero_point=None):
        self._set_weight()
        assign_buffer(self, "abs_max", abs_max)
        if zero_point is not None:
            assign_buffer(self, "zero_point", zero_point)

def _numbers(name, value, channels):
    try:
        if isinstance(value, str):  # numpy would read it as a number
            raise TypeError
        numbers = np.asarray(value.numpy() if isinstance(value, paddle.Tensor) else value,
                             np.float64).reshape([-1])
    except (TypeError, ValueError):
        raise wrong_type(name, value, "a number, a sequence of numbers or a tensor") from None
    if len(numbers) not in (1, channels):
        raise wrong_value(name, value, f"one number or {channels}, one for each channel")
    return np.broadcast_to(numbers, [channels]).copy()
