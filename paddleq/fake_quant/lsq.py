"""Fake quantizers with learned step and offset: LSQ and LSQ+."""

import math
from dataclasses import replace

import paddle
from paddle import nn

from .._checks import check_float
from .._distributed import NonFiniteBatch, world_size
from .._paddle_compat import skip_bytecode_translation
from .._registry import Registry
from ..errors import ConfigError, ModelError, NonFiniteError
from ..functional import learned_fake_quantize
from ..functional.lsq import learned_abs_max, learned_zero_point
from ..functional.qparams import as_dtype, constant
from ..observers import DeviationObserver, MeanMagnitudeObserver, MinMaxObserver, Observer
from ..observers.base import Factory, assign_buffer
from ..spec import HALF_EVEN, SPEC_ARGUMENTS, pop_spec
from .fake_quantize import FakeQuantize, State
from .observation import is_on_host

# LSQ and its subclasses by the names of QAT's quantize types.
LEARNED_QUANTIZERS: "Registry[type]" = Registry("learned quantizer")
register_learned_quantizer = LEARNED_QUANTIZERS.register


def _is_zero(step):
    return step.abs() <= 0.0  # in Paddle 2.6, 1e-9 == 0 is True


@register_learned_quantizer("lsq")
@skip_bytecode_translation
class LSQ(FakeQuantize):
    """Fake quantizer with a trainable step (LSQ, arXiv:1902.08153), for weights and activations.

    The step is a parameter: create the optimizer from ``model.parameters()`` after the model is
    quantized. The step is initialized on the first training batch (for a weight, from the weight)
    or by calibration; after that, only its gradient changes it. With v / s the value in steps and
    qmin, qmax the lowest and highest integer:

    - d step is round(v / s) - v / s inside of the range, qmin below and qmax above, times
      1 / sqrt(N * qmax), N the number of elements that share the step (with the batch);
    - dv is 1 inside, 0 outside. A value on a border is outside.

    If the parameter becomes negative, its magnitude is used, at least EPS / levels. Adam changes
    all parameters by similar amounts; for a small step, a ``learning_rate`` of 0.1 to 0.3 may be
    more stable.

    Args:
        observer: computes the first step; a class of :mod:`paddleq.observers` or a factory of one.
            Default :class:`~paddleq.observers.MeanMagnitudeObserver`: 2 * mean|v| / sqrt(qmax).
            ``KLObserver`` and ``MSEObserver`` need :func:`paddleq.calibrate` before training.
        channel_len: number of channels with separate steps. Default 1.
        fast_training: quantize with the fewest passes in training; results may differ by one unit
            in the last place. Default True.
        learning_rate: factor on the optimizer's learning rate. Default 1.
        label: name of this quantizer in messages.
        reduce: as for :class:`~paddleq.FakeQuantize`, for the first step. Unless None, N is the
            number of elements in the batches of all processes.
        observer_kwargs: ``spec``, or arguments of :func:`paddleq.spec.spec_from_qscheme`, and
            arguments of the observer, as for :class:`~paddleq.FakeQuantize`. The default rounding
            is "half_even". Two bits or more, symmetric; unsigned ("quint4") for non-negative
            inputs, which a .pdmodel does not support. A hook of QAT without these arguments uses
            the bits and granularity of the QAT configuration.

    Attributes:
        step: the parameter, float32, [1] or [channels].
        first_step: buffer of that shape that is added to the parameter: the first step if a
            program of ``to_static`` set it, otherwise 0.
        scale: the magnitude of their sum.
        abs_max: scale times ``spec.quant_max``.
        largest: buffer, float32 [1], not in ``state_dict``: the largest finite magnitude that a
            training batch had, exact if the scale is more than half of it; 0 if no batch was seen
            since a state was loaded, infinity if the scale was set. The export refuses an
            activation whose trained scale is more than twice as large: all values become 0.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid.
        ModelError: the number of channels is not ``channel_len``.
        NonFiniteError: NaN or infinity in the batch that sets the step.

    Examples:
        >>> import paddle
        >>> from paddleq import LSQ
        >>> quantizer = LSQ(dtype="qint4")
        >>> y = quantizer(paddle.to_tensor([-4.0, 0.5, 1.0, 2.5]))
        >>> round(quantizer.scale.item(), 4)  # 2 * 2 / sqrt(7)
        1.5119
        >>> y.sum().backward()
        >>> list(quantizer.step.grad.shape)
        [1]
    """

    bounded = False

    def __init__(self, observer=None, channel_len=1, fast_training=True, learning_rate=1.0,
                 label="", reduce="max", **observer_kwargs):
        rate = check_float("learning_rate", learning_rate, 0.0, math.inf, open_high=True)
        if isinstance(observer, Observer):
            spec = observer.spec
        else:
            spec = observer_kwargs["spec"] = pop_spec(observer_kwargs, rounding=HALF_EVEN)
        self.check_spec(spec)
        observer = self.first_observer(spec) if observer is None else observer
        super().__init__(observer, saturate=True, channel_len=channel_len,
                         fast_training=fast_training, label=label, reduce=reduce,
                         **observer_kwargs)
        if self.observer.dynamic:
            raise ConfigError("observer must keep statistics, but "
                              f"{type(self.observer).__name__} computes a scale for each tensor")
        attr = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0), learning_rate=rate)
        shape = [self.observer.channels]
        self.step = self.create_parameter(shape, attr=attr, dtype="float32")
        self.offset = None if spec.symmetric else self.create_parameter(shape, attr=attr,
                                                                        dtype="float32")
        limit = math.inf if self.observer.fixed else 0.0
        self.register_buffer("largest", paddle.full([1], limit), persistable=False)
        if self.observer.fixed:
            self._store_observed()

    @classmethod
    def check_spec(cls, spec):
        """Raise if this class does not support ``spec``."""
        spec.require_integers(cls.__name__)
        if spec.binary:
            raise ConfigError(f"{cls.__name__} needs two bits or more, but the spec is {spec}")
        if not spec.symmetric and not issubclass(cls, LSQPlus):
            raise ConfigError(f"{cls.__name__} is symmetric, but the spec is affine; LSQPlus "
                              "learns an offset")

    @classmethod
    def spec_within(cls, spec, weight):
        """Return the spec of a weight or activation of a layer configured with ``spec``."""
        return spec

    @classmethod
    def first_observer(cls, spec):
        """Return the default class of the observer that computes the first step."""
        return MeanMagnitudeObserver

    @classmethod
    def in_layer(cls, hook, spec, weight):
        """Return (spec, factory) of a hook of QAT that is an LSQ class or a factory of one.

        ``factory(spec=..., channel_len=..., label=...)`` creates quantizers. None for other hooks,
        also classes that override ``__init__``: they are created without arguments.
        """
        made, arguments = ((hook.func, dict(hook.keywords)) if isinstance(hook, Factory)
                           else (hook, {}))
        if not (isinstance(made, type) and issubclass(made, LSQ) and made.__init__ is LSQ.__init__):
            return None
        if arguments.keys() & {"spec", *SPEC_ARGUMENTS}:
            spec = pop_spec(arguments, rounding=HALF_EVEN)
        else:
            spec = made.spec_within(spec, weight)
        made.check_spec(spec)
        return spec, made.with_args(**arguments)

    @property
    def abs_max(self):
        """Scale times ``spec.quant_max``."""
        return learned_abs_max(self._qparams()[0], self.spec)

    @property
    def zero_point(self):
        """Zero point, int64 of the step's shape."""
        if self.offset is None:
            return paddle.zeros(self.step.shape, dtype="int64")
        return learned_zero_point(self._qparams()[1], self.abs_max, self.spec)

    @property
    def initialized(self):
        """True if the step was set by a training batch, by calibration or by loading."""
        # Reading synchronizes with a GPU, so it is done until there is a step.
        if self._known_version is None:
            with paddle.no_grad():  # nothing is saved for backward, which recompute counts
                uninitialized = _is_zero(self._qparams()[0]).all().item()
            if uninitialized:
                return False
            self._known_version = 0
        return True

    def set_qparams(self, scale, zero_point=None):
        super().set_qparams(scale, zero_point)
        with paddle.no_grad():
            assign_buffer(self, "largest", paddle.full([1], float("inf")))

    @property
    def rounds_all_to_zero(self):
        """True if the trained step is more than twice the largest magnitude seen in training."""
        largest = self.largest.item()
        return 0.0 < largest < math.inf and bool((self.scale > 2.0 * largest).any())

    def can_clip(self, clipping):
        """Return False: clipping must not change the trained step."""
        return False

    def _make_buffers(self, shape):
        # A program of to_static can assign buffers, but not the parameters that it trains.
        for name in ("first_step",) if self.spec.symmetric else ("first_step", "first_offset"):
            self.register_buffer(name, paddle.zeros(shape, dtype="float32"))

    def _parameters_and_buffers(self):
        """Return (parameter, buffer) of the step and, if there is one, of the offset."""
        step = self.step, self.first_step
        return [step] if self.offset is None else [step, (self.offset, self.first_offset)]

    def _measured(self, abs_max, zero_point):
        """Return the values of the parameters for abs_max and a zero point."""
        step = abs_max / float(self.spec.quant_max)
        return [step] if self.offset is None else [step, -step * zero_point.astype("float32")]

    def _qparams(self):
        """Return (step, offset or None); a trained step may be negative."""
        sums = [parameter + first for parameter, first in self._parameters_and_buffers()]
        return (*sums, None)[:2]

    def _observe(self, x, clipping):
        if self.state is State.CALIBRATION:
            super()._observe(x, None)
        elif not paddle.in_dynamic_mode():
            return self._observe_in_static_mode(x)
        elif not self.initialized and (self._reduces() or 0 not in x.shape):
            self._refuse_other_channels(x)
            if not self._reduces():
                self._refuse_non_finite(x, "the batch that sets the step")
            try:
                super()._observe(x, None)
            except NonFiniteBatch:
                self._refuse_non_finite(x, "the batch that sets the step")
                raise NonFiniteError(
                    f"{self.label or 'the quantizer'}: the batch that sets the step has NaN or "
                    "infinite values in another process; remove that batch or correct the model "
                    "before training") from None
        if self.state is not State.CALIBRATION and paddle.in_dynamic_mode() and x.size:
            self._record_largest(x)
        return self._qparams()

    def _record_largest(self, x):
        with paddle.no_grad():
            if is_on_host(x) and not (self.scale > 0.5 * self.largest).any().item():
                return  # far from the limit: a pass over the tensor is saved
            x = as_dtype(constant(x), paddle.float32).abs()
            found = paddle.where(paddle.isfinite(x), x, paddle.zeros_like(x)).max().reshape([1])
            assign_buffer(self, "largest", paddle.maximum(self.largest, found))

    def _qparams_in_training(self, x, clipping):
        # A repeated pass computes the same from the parameters, with gradients.
        return self._update(x, clipping)

    def _is_skipped(self, x):
        # Only the first batch is observed. It raises an error.
        return False

    def _observe_in_static_mode(self, x):
        # The program must serve the first batch and later ones.
        if not self.observer.online:
            return self._qparams()
        finite = self._all_finite(x)
        with self.observer.updating_if(finite):
            measured = self._measured(*self.observer.update_qparams(x))
        self._record_largest(x)
        held = self._parameters_and_buffers()
        with paddle.no_grad():
            fresh = _is_zero(held[0][0] + held[0][1]) & finite
            self._count_skipped(~finite)
            first = [paddle.where(fresh, value, constant(buffer))
                     for value, (_, buffer) in zip(measured, held)]
            for value, (_, buffer) in zip(first, held):
                paddle.assign(value, buffer)
            self._set_weight()
        sums = [parameter + value for value, (parameter, _) in zip(first, held)]
        return (*sums, None)[:2]

    def _divide(self, weight):
        for parameter, first in self._parameters_and_buffers():
            for tensor in (parameter, first):
                paddle.assign(tensor / weight, tensor)

    def _after_load(self, layer, name):
        super()._after_load(layer, name)
        if layer is self and name == "step":
            with paddle.no_grad():
                assign_buffer(self, "largest", paddle.zeros([1]))

    def _store_averaged(self):
        pass  # the steps were trained

    def _mark_set_scale(self):
        pass

    def _store(self, abs_max, zero_point=None):
        self._set_weight()
        if self.offset is not None and zero_point is None:
            zero_point = self.zero_point
        for value, (parameter, first) in zip(self._measured(abs_max, zero_point),
                                             self._parameters_and_buffers()):
            paddle.assign(value, parameter)
            paddle.assign(paddle.zeros_like(first), first)

    def _fake_quantize(self, x, qparams, clipping=None):
        step, offset = qparams
        batches = world_size() if self.training and self._reduces() else 1
        return learned_fake_quantize(x, step, self.spec, offset,
                                     exact=not (self.training and self.fast_training),
                                     batches=batches)

    def _refuse_other_channels(self, x):
        axis, channels = self.spec.channel_axis, self.observer.channels
        if axis is not None and x.shape[axis] != channels:
            raise ModelError(f"{self.label or 'the quantizer'} has {channels} steps along axis "
                             f"{axis}, where its input has {x.shape[axis]}; make it with "
                             f"channel_len={x.shape[axis]}")


@register_learned_quantizer("lsq_plus")
@skip_bytecode_translation
class LSQPlus(LSQ):
    """:class:`LSQ` with a learned offset and a first step from the range (arXiv:2004.09576).

    With an affine spec, for activations, a second parameter is the real value of the integer 0. It
    is rounded to whole steps (the zero point), so 0 is exact, and limited to the range. Its
    gradient is the sum of the upstream gradient over the values outside of the range, times
    1 / sqrt(N * qmax); rounding is a straight-through estimator. A value on a border is inside, so
    zeros after a ReLU have no effect on the offset.

    With a symmetric spec, for weights, only the first step differs from LSQ's:
    (|mean| + 3 deviations) / 2^(b-1).

    Args:
        observer: default :class:`~paddleq.observers.MinMaxObserver` for an affine spec,
            :class:`~paddleq.observers.DeviationObserver` for a symmetric one. For the paper's first
            step of activations, that of least squared error, use ``MSEObserver`` with a symmetric
            spec and :func:`paddleq.calibrate` before training.
        channel_len, fast_training, learning_rate, label, reduce, observer_kwargs: as for
            :class:`LSQ`. A hook of QAT for activations without a spec is unsigned and affine, with
            the bits of the configuration. A .pdmodel does not support zero points; the export
            raises an error.

    Attributes:
        step, scale, abs_max: as for :class:`LSQ`.
        offset: the parameter, float32, of the step's shape; None for a symmetric spec.
            ``first_offset`` is added to it, as ``first_step`` to ``step``.
        zero_point: the integer of the value 0.

    Examples:
        >>> import paddle
        >>> from paddleq import LSQPlus
        >>> quantizer = LSQPlus(dtype="quint4", qscheme="per_tensor_affine")
        >>> y = quantizer(paddle.to_tensor([-0.5, 0.25, 1.0]))
        >>> [round(each.item(), 4) for each in (quantizer.step, quantizer.offset)]
        [0.1, -0.5]
        >>> quantizer.zero_point.tolist()
        [5]
    """

    @classmethod
    def spec_within(cls, spec, weight):
        """Return an affine, unsigned spec for activations."""
        return spec if weight else replace(spec, signed=False, symmetric=False, limits=None)

    @classmethod
    def first_observer(cls, spec):
        """Return the default class of the observer that computes the first step."""
        return DeviationObserver if spec.symmetric else MinMaxObserver
