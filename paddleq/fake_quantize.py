"""The one fake-quantizer of the library: an observer, a scale and three states."""

import enum

import paddle
from paddle import nn

from ._checks import check_choice, wrong_type
from .errors import CalibrationError, NonFiniteError
from .functional import clip_and_fake_quantize, fake_quantize
from .functional.numerics import as_dtype
from .observers import Observer
from .spec import HALF_EVEN


class State(enum.Enum):
    """What a fake-quantizer does in a forward pass.

    Examples:
        >>> from paddleq import State
        >>> [state.value for state in State]
        ['qat', 'calibration', 'validation']
    """

    QAT = "qat"  # observe while training, quantize always
    CALIBRATION = "calibration"  # observe always, hand the tensor on unchanged
    VALIDATION = "validation"  # quantize with what is stored

    @classmethod
    def of(cls, state):
        """The state of that name, or ``state`` itself if it is one."""
        if isinstance(state, cls):
            return state
        return cls(check_choice("state", state, [each.value for each in cls]))


class FakeQuantize(nn.Layer):
    """Quantizes and dequantizes a tensor, with a scale that an observer finds.

    Args:
        observer: the :class:`~paddleq.observers.Observer` that finds the threshold; its
            ``spec`` says how to quantize.
        label: what to call this quantizer in messages.

    Attributes:
        scale: buffer, float32, [1] or [channels]: the threshold in use; 0 until something was
            observed. A quantizer without a scale hands its input on unchanged.
        observer_enabled, fake_quant_enabled: switches, set together by :meth:`set_state`.

    Raises:
        NonFiniteError: NaN or infinity in a calibration batch.

    Examples:
        >>> import paddle
        >>> from paddleq import FakeQuantize
        >>> from paddleq.observers import AbsMaxObserver
        >>> quantizer = FakeQuantize(AbsMaxObserver())
        >>> y = quantizer(paddle.to_tensor([-1.0, 0.3, 1.0]))
        >>> quantizer.scale.tolist(), [round(v, 4) for v in y.tolist()]
        ([1.0], [-1.0, 0.2992, 1.0])
    """

    def __init__(self, observer, label=""):
        super().__init__()
        if not isinstance(observer, Observer):
            raise wrong_type("observer", observer, "a paddleq.observers.Observer")
        self.observer = observer
        self.label = label
        self.register_buffer("scale", paddle.zeros([observer.channels], dtype="float32"))
        self._known_version = None
        self.set_state(State.QAT)

    @property
    def spec(self):
        """The :class:`~paddleq.QuantSpec` in use."""
        return self.observer.spec

    @property
    def initialized(self):
        """Whether there is a scale: something was observed or loaded."""
        if self.observer.dynamic:
            return True
        # Looking at the scale makes a GPU wait, so it is looked at once for each value it has.
        version = (id(self.scale), self.scale.inplace_version)
        if self._known_version != version:
            if not (self.scale > 0).any().item():
                return False
            self._known_version = version
        return True

    def set_state(self, state):
        """Switch to a :class:`State`."""
        self.state = State.of(state)
        self.observer_enabled = self.state is not State.VALIDATION
        self.fake_quant_enabled = self.state is not State.CALIBRATION

    def takes(self, clipping):
        """Whether :meth:`forward` can clip as well, in the pass over ``x`` that quantizes it."""
        observer, spec = self.observer, self.spec
        return clipping is not None and (clipping.idle or (
            self.observer_enabled and self.fake_quant_enabled and self.training
            and observer.online and not observer.dynamic and observer.takes_largest
            and spec.rounding == HALF_EVEN))

    def forward(self, x, clipping=None):
        """``x`` as it looks after a trip through integers.

        Args:
            x: float tensor.
            clipping: the :class:`~paddleq.preprocess.pact.Clipping` of a PACT that ``x`` did not
                go through, because this quantizer :meth:`takes` it. The maximum is observed in
                place of ``x`` where that comes to the same.
        """
        idle = clipping.alpha if clipping is not None and clipping.idle else None
        calibrating = self.state is State.CALIBRATION
        if self.observer.dynamic:
            if not self.fake_quant_enabled:
                return x
            return fake_quantize(x, self.observer.observe_and_measure(x), self.spec,
                                 exact=not self.training)
        threshold = self.scale
        if self.observer_enabled and (self.training or calibrating):
            if calibrating:
                self._refuse_non_finite(x)
            seen = x
            if clipping is not None and self.observer.takes_largest:
                seen = clipping.largest if clipping.idle else clipping.alpha.detach()
            if self.observer.online:
                threshold = self.observer.observe_and_measure(seen)
                self._store(self.observer.threshold() if self.observer.track_batch else threshold)
            else:
                self.observer.observe(seen)
            if not self.fake_quant_enabled:
                return x
        elif not self.fake_quant_enabled or not self._usable():
            return x
        if clipping is not None and idle is None:
            result = clip_and_fake_quantize(as_dtype(x, paddle.float32), clipping.alpha, threshold,
                                            self.spec)
            return as_dtype(result, x.dtype)
        return fake_quantize(x, threshold, self.spec, idle=idle, exact=not self.training)

    def clipped(self, x, bound):
        """As :meth:`forward` outside of training, with a threshold of at most ``bound``."""
        if not self.fake_quant_enabled or not self._usable():
            return self(x.clip(-bound.item(), bound.item()))
        return fake_quantize(x, paddle.minimum(self.scale, bound), self.spec)

    def finalize(self):
        """Compute the scale from all that was observed.

        Raises:
            CalibrationError: nothing was observed.
        """
        if self.observer.dynamic:
            return
        if not self.observer.seen:
            raise CalibrationError(f"{self.label or 'the quantizer'} saw no data")
        with paddle.no_grad():
            self._store(self.observer.threshold())

    def threshold_of(self, x):
        """The threshold with which ``x`` is quantized outside of training."""
        return self.observer.observe_and_measure(x) if self.observer.dynamic else self.scale

    def extra_repr(self):
        return f"{self.spec}, observer={type(self.observer).__name__}, state={self.state.value}"

    def _usable(self):
        # While to_static traces there is no value to look at; an untrained quantizer is caught
        # when the trace is exported.
        return not paddle.in_dynamic_mode() or self.initialized

    def _store(self, threshold):
        if self.scale.shape == threshold.shape or not paddle.in_dynamic_mode():
            paddle.assign(threshold, self.scale)
        else:
            self._buffers["scale"] = threshold

    def _refuse_non_finite(self, x):
        # The sum carries any NaN or infinity; it may also overflow by itself, hence the second
        # look. (max() drops NaN on Paddle 2.6.)
        if not paddle.in_dynamic_mode() or paddle.isfinite(x.sum()).item():
            return
        wrong = (~paddle.isfinite(x)).sum().item()
        if wrong:
            raise NonFiniteError(
                f"{self.label or 'the quantizer'}: calibration batch "
                f"{self.observer.seen} has {wrong} NaN or infinite values of {x.size}; "
                "remove that batch or mend the model before calibrating")
