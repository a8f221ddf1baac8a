"""Observation of the inputs of a fake quantizer: when, in which state, and of which batches."""

import enum
import inspect
import logging
from contextlib import nullcontext

import paddle

from .._checks import check_choice, check_int, check_known_keys, wrong_type
from .._distributed import NonFiniteBatch, Reduction, check_reduce, groups
from .._paddle_compat import StateDictNotice, is_traced_by_save
from ..errors import CalibrationError, ConfigError, ModelError, NonFiniteError
from ..functional.qparams import as_dtype, constant
from ..observers import Observer
from ..observers.base import Factory, assign_buffer
from ..spec import SPEC_ARGUMENTS, pop_spec

_logger = logging.getLogger("paddleq")

_SET = 2.0  # scale_weight of a scale that is not that of the observer

class State(enum.Enum):
    """State of a fake quantizer.

    Examples:
        >>> from paddleq import State
        >>> [state.value for state in State]
        ['qat', 'calibration', 'validation']
    """

    QAT = "qat"  # observe in training, always quantize
    CALIBRATION = "calibration"  # observe, return the input unchanged
    VALIDATION = "validation"  # quantize with the stored scale

    @classmethod
    def _missing_(cls, value):
        check_choice("state", value, [each.value for each in cls])  # raises


class Observation(StateDictNotice):
    """Base of :class:`~paddleq.FakeQuantize`: its observer, and the updates of its scale."""

    def __init__(self, observer, channel_len, observer_kwargs, label, reduce):
        super().__init__()
        self.reduce = check_reduce("reduce", reduce)
        channels = check_int("channel_len", channel_len, 1)
        self.observer = _make_observer(observer, channels, observer_kwargs)
        self.label = label
        self.register_buffer("skipped_batches", paddle.zeros([1], dtype="int64"),
                             persistable=False)
        self._reported = False
        self._weighted = False  # scale_weight is known to be 1
        self._averaged = None  # scale_weight of the average of states that is being loaded
        self._known_version = None
        self._qparams_when_observed = None

    def _update(self, x, clipping):
        """Observe ``x`` if the state requires it; return the qparams and True if there are any."""
        calibrating = self.state is State.CALIBRATION
        observing = (self.observer_enabled and (self.training or calibrating)
                     and not is_traced_by_save())
        if observing and calibrating:
            self._refuse_non_finite(x)
        elif observing and not self._reduces() and self._is_skipped(x):
            observing = False
        try:
            qparams = self._observe(x, clipping) if observing else self._qparams()
        except NonFiniteBatch:
            self._skip()
            observing, qparams = False, self._qparams()
        # A scale computed in this pass is not read, which would synchronize with a GPU.
        return qparams, observing and self.observer.online or self._usable()

    def _observe(self, x, clipping):
        observed = x
        if clipping is not None and self.observer.accepts_abs_max:
            observed = clipping.largest if clipping.idle else clipping.bound
        if self.observer.online:
            qparams = self._update_qparams(x, observed)
        else:
            reduction = self._reduction(x)
            with nullcontext() if reduction is None else self.observer.reducing(reduction):
                self.observer.update(observed)
            qparams = self._qparams()
        if paddle.in_dynamic_mode() and (
                self.state is State.CALIBRATION or not self.observer.online):
            self._qparams_when_observed = self._copy_qparams()
        return qparams

    def _update_qparams(self, x, observed):
        observer, reduction = self.observer, self._reduction(x)
        if reduction is None and (
                self.state is State.CALIBRATION or is_on_host(x)):  # x is finite
            qparams = observer.update_qparams(observed)
            with paddle.no_grad():
                self._store(*(observer.qparams() if observer.track_batch else qparams))
            return qparams
        with paddle.no_grad():
            if reduction is None:
                finite = self._all_finite(x)
                with observer.updating_if(finite):
                    qparams = observer.update_qparams(observed)
            else:
                with observer.reducing(reduction):
                    qparams = observer.update_qparams(observed)
                finite = reduction.finite
            self._count_skipped(~finite)
            new = observer.qparams() if observer.track_batch else qparams
            self._store(*(None if each is None else paddle.where(finite, each, constant(held))
                          for each, held in zip(new, (self.abs_max, self.zero_point))))
        return qparams

    def _is_skipped(self, x):
        """Return True, and count and report it, if a training batch on the CPU is not finite."""
        x = constant(x)
        if not is_on_host(x) or not x.size:
            return False
        if paddle.isfinite(x.sum()).numpy():  # to_static of Paddle 2.6 cannot trace .item() here
            return False
        finite = self._all_finite(x)  # the sum of finite values may overflow
        if finite.item():
            return False
        self._skip()
        return True

    def _skip(self):
        self._count_skipped(paddle.ones([1], dtype="bool"))
        self._report_skipped()

    def _reduces(self):
        """Return True if the statistics are reduced over processes in a training step."""
        return (self.reduce is not None and self.state is not State.CALIBRATION
                and not (self.observer.dynamic or self.observer.fixed) and bool(groups()))

    def _reduction(self, x):
        """Return the :class:`Reduction` of the statistics of the batch ``x``, or None."""
        if self.reduce is None or not self._reduces():
            return None
        if not paddle.in_dynamic_mode():
            raise ModelError(
                f"{self.label or 'the quantizer'}: statistics cannot be reduced over processes in "
                "a program of paddle.jit.to_static; train in dynamic mode, or set reduce=None")
        # Paddle 2.6 has no all() of an empty tensor.
        finite = self._all_finite(x) if x.size else paddle.ones([1], dtype="bool")
        return Reduction(self.reduce, finite, self.label)

    @staticmethod
    def _all_finite(x):
        return paddle.isfinite(as_dtype(constant(x), paddle.float32)).all().reshape([1])

    def _count_skipped(self, skipped):
        assign_buffer(self, "skipped_batches", self.skipped_batches + skipped.astype("int64"))

    def _report_skipped(self):
        if not self._reported and self.skipped_batches.item():
            self._reported = True
            _logger.warning("%s: a training batch has NaN or infinite values; such batches are "
                            "counted in skipped_batches and do not change the scale",
                            self.label or "the quantizer")

    @property
    def needs_finalize(self):
        """True if a scale is to be computed from the observed statistics.

        A scale that was set or loaded after the last observed batch is kept.
        """
        if self.observer.dynamic:
            return False
        before = self._qparams_when_observed
        if before is None:
            return not self.initialized
        return all(bool((old == new).all()) for old, new in zip(before, self._copy_qparams()))

    def finalize(self):
        """Compute the scale from the observed statistics.

        Raises:
            CalibrationError: no data were observed.
        """
        if self.observer.dynamic:
            return
        if not (self.observer.num_batches or self.observer.fixed):
            raise CalibrationError(f"{self.label or 'the quantizer'} observed no data")
        self._store_observed()
        self._qparams_when_observed = None

    def mark_observed(self):
        """Let :meth:`finalize` compute a scale, as after batches that the observer has seen."""
        self._qparams_when_observed = self._copy_qparams()

    def _store_observed(self):
        with paddle.no_grad():
            self._store(*self.observer.qparams())

    def _copy_qparams(self):
        return [each.detach().clone() for each in (self.abs_max, self.zero_point)]

    def _before_state_dict(self):
        # Loading does not change a tensor's version.
        self._known_version = self._averaged = None
        self._weighted = False
        if paddle.in_dynamic_mode():
            self._report_skipped()
            self._mark_set_scale()

    def _after_load(self, layer, name):
        # Tensors are loaded in the order of registration: those of the observer are the last.
        with paddle.no_grad():
            if layer is self and name == "scale_weight":
                weight = self.scale_weight.item()
                if weight not in (0.0, 1.0, _SET):
                    self._averaged = weight
                    self._divide(weight)
                    self._set_weight()
            elif layer is self.observer and layer.proportional is not None:
                if self._averaged is not None and name in layer.proportional:
                    assign_buffer(layer, name, getattr(layer, name) / self._averaged)
                self._store_averaged()

    def _store_averaged(self):
        if self._averaged is not None or self._follows_ratio():
            self._store_observed()

    def _follows_ratio(self):
        """Return True if abs_max is that of an observer whose statistics have a weight."""
        return (self.observer.proportional == () and self.observer.state.item() > 0.0
                and self.scale_weight.item() == 1.0)

    def _mark_set_scale(self):
        # A scale that differs from that of the statistics is kept when the state is loaded.
        if self._follows_ratio() and not bool((self.abs_max == self.observer.abs_max()).all()):
            assign_buffer(self, "scale_weight", paddle.full([1], _SET))

    def _set_weight(self):
        if not self._weighted:
            assign_buffer(self, "scale_weight", paddle.ones([1]))
            self._weighted = paddle.in_dynamic_mode()

    def _refuse_non_finite(self, x, source=None):
        # The sum propagates NaN and infinity. It may also overflow, so the elements are checked
        # then. max() ignores NaN on Paddle 2.6.
        if not (paddle.in_dynamic_mode() and x.size) or paddle.isfinite(x.sum()).item():
            return
        wrong = (~paddle.isfinite(x)).sum().item()
        if wrong:
            activity = "training" if source else "calibrating"
            source = source or f"calibration batch {self.observer.num_batches}"
            raise NonFiniteError(
                f"{self.label or 'the quantizer'}: {source} has {wrong} NaN or infinite values of "
                f"{x.size}; remove that batch or correct the model before {activity}")


def is_on_host(x):
    """Return True if values of ``x`` can be read without synchronizing with a device."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place()


def _make_observer(observer, channels, arguments):
    if isinstance(observer, Observer):
        if arguments:
            raise ConfigError(f"observer is one that was made already, {type(observer).__name__}, "
                              f"so that {', '.join(arguments)} cannot be handed to it; give its "
                              "class instead")
        return observer
    cls, preset = ((observer.func, observer.keywords) if isinstance(observer, Factory)
                   else (observer, {}))
    if not (isinstance(cls, type) and issubclass(cls, Observer)):
        raise wrong_type("observer", observer, "a class of paddleq.observers, its with_args() or "
                                               "an instance")
    known = [name for name in inspect.signature(cls.__init__).parameters
             if name not in ("self", "channels")]
    check_known_keys("FakeQuantize", arguments, [*known, *SPEC_ARGUMENTS])
    given = arguments.get("spec") or preset.get("spec")
    spec = pop_spec(arguments, per_channel=cls.per_channel)
    return observer(spec=given or spec, channels=channels, **arguments)
