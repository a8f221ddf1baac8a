"""Interface of collectors, and base class and registry of observers, the range collectors."""

import abc
import functools
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import paddle
from paddle import nn

from .._checks import wrong_value
from .._distributed import Reduction
from .._paddle_compat import own_buffers
from .._registry import Registry
from ..errors import CalibrationError
from ..functional import EPS, affine_qparams
from ..functional.qparams import as_dtype, constant
from ..spec import PerChannel, PerTensor, QuantSpec

OBSERVERS: "Registry[Callable]" = Registry("observer")
register_observer = OBSERVERS.register


class Factory(functools.partial[Any]):
    """Create instances of a class with preset arguments; a later one overrides an earlier one."""

    def with_args(self, **arguments: Any) -> "Factory":
        """Return a factory with these arguments added."""
        return Factory(self.func, *self.args, **{**self.keywords, **arguments})


class WithArgs:
    """Mixin that adds :meth:`with_args` to a class."""

    @classmethod
    def with_args(cls, **arguments: Any) -> Factory:
        """Return a :class:`Factory` of this class with these arguments."""
        return Factory(cls, **arguments)


class Collector(abc.ABC):
    """Accumulates statistics of the tensors that a layer receives.

    Attributes:
        num_inputs: number of arguments of the layer's ``forward`` that :meth:`update` takes.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import HessianCollector
        >>> first, second = HessianCollector(), HessianCollector()
        >>> first.update(paddle.to_tensor([[2.0, 0.0]]))
        >>> second.update(paddle.to_tensor([[0.0, 4.0]]))
        >>> first.merge(second)
        >>> first.result().tolist()
        [[2.0, 0.0], [0.0, 8.0]]
    """

    num_inputs = 1

    def __init__(self) -> None:
        self._values: Dict[str, paddle.Tensor] = {}

    @abc.abstractmethod
    def update(self, x: paddle.Tensor) -> None:
        """Add one tensor to the statistics.

        Raises:
            NonFiniteError: it holds NaN or infinity, where the collector checks that. The
                statistics are unchanged.
        """

    @abc.abstractmethod
    def merge(self, other: Any) -> None:
        """Add the statistics of another collector of the same kind."""

    def state_dict(self) -> Dict[str, paddle.Tensor]:
        """Return the statistics as tensors."""
        return dict(self._values)

    def load_state_dict(self, state: Dict[str, paddle.Tensor]) -> None:
        """Replace the statistics by those that :meth:`state_dict` returned."""
        self._values = {name: value.clone() for name, value in state.items()}

    @abc.abstractmethod
    def result(self) -> Any:
        """Compute the result from the statistics."""


class Observer(nn.Layer, WithArgs, Collector):
    """Collect tensor statistics and compute quantization parameters.

    An observer is a ``paddle.nn.Layer`` whose statistics are buffers: ``state_dict`` contains them,
    ``to`` moves them, and a copy of the model has a copy of them.

    Args:
        spec: the quantization whose parameters are computed. Default: int8 per tensor.
        channels: length of the channel axis if ``spec`` is per channel.

    Attributes:
        online: abs_max is cheap and meaningful after each batch, so that training can use it.
            False for histograms, which are searched once, at the end.
        fixed: the qparams do not depend on data.
        track_batch: in training, quantize each batch with its own abs_max; later with the
            accumulated one.
        dynamic: nothing is accumulated; abs_max is computed from each tensor (weights).
        abs_max_only: the statistics depend on max|x| only.
        per_channel: the default spec is per channel.
        reducible: the statistics of a batch can be combined over processes.
        proportional: names of the statistics that are proportional to abs_max, if averages of
            statistics give the average abs_max; None if not.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AbsMaxObserver
        >>> observer = AbsMaxObserver()
        >>> observer.update(paddle.to_tensor([-3.0, 2.0]))
        >>> observer.abs_max().tolist()
        [3.0]
    """

    online = True
    dynamic = False
    track_batch = False
    fixed = False
    abs_max_only = False
    per_channel = False
    reducible = False
    proportional: Optional[Tuple[str, ...]] = None
    _condition: Optional[paddle.Tensor] = None
    _batch_reduction: Optional[Reduction] = None

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None):
        super().__init__()
        default = PerChannel() if self.per_channel else PerTensor()
        self.spec = QuantSpec(granularity=default) if spec is None else spec
        self.channels = 1 if channels is None or self.spec.channel_axis is None else channels
        self.register_buffer("batches", paddle.zeros([1], dtype="int64"))

    @contextmanager
    def updating_if(self, condition: paddle.Tensor) -> Iterator[None]:
        """While open, buffers change only if the boolean ``condition`` of one element is true.

        Its value is not read, so that a program of ``to_static`` can compute it, and no GPU
        synchronizes.
        """
        # Not an attribute of the layer, which would be a buffer.
        object.__setattr__(self, "_condition", condition)
        try:
            yield
        finally:
            object.__setattr__(self, "_condition", None)

    @contextmanager
    def reducing(self, reduction: Reduction) -> Iterator[None]:
        """While open, :meth:`update` adds the batches of all processes at once.

        Raises:
            ConfigError: the observer does not support that.
        """
        if not self.reducible:
            raise wrong_value("reduce", reduction.how, f"None for a {type(self).__name__}, whose "
                              "statistics of one batch cannot be combined over processes")
        object.__setattr__(self, "_batch_reduction", reduction)
        try:
            yield
        finally:
            object.__setattr__(self, "_batch_reduction", None)
            object.__setattr__(self, "_condition", None)

    def _all_reduced(self, reduce, *args):
        """Return the result of ``reduce(*args)``, a method of the reduction.

        Later changes of buffers require that the batches of all processes are finite.
        """
        values = reduce(*args)
        if self._batch_reduction is not None:
            object.__setattr__(self, "_condition", self._batch_reduction.finite)
        return values

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Update the statistics with ``x`` and return ``x``."""
        self.update(x)
        return x

    def update(self, x: paddle.Tensor) -> None:
        """Add one tensor to the statistics."""
        with paddle.no_grad():
            self._update(constant(x))
            self._assign("batches", self.batches + 1)

    def update_qparams(self, x: paddle.Tensor) -> Tuple[paddle.Tensor, Optional[paddle.Tensor]]:
        """Update the statistics with ``x`` and return the :meth:`qparams` that quantize ``x``."""
        self.update(x)
        return self.qparams()

    def qparams(self) -> Tuple[paddle.Tensor, Optional[paddle.Tensor]]:
        """Compute (abs_max, zero point). The zero point is None for a symmetric spec."""
        if self.spec.symmetric:
            return self.abs_max(), None
        return affine_qparams(*self.range(), self.spec)

    def result(self) -> Tuple[paddle.Tensor, Optional[paddle.Tensor]]:
        return self.qparams()

    def buffers_copy(self) -> Dict[str, paddle.Tensor]:
        """Return copies of the statistics by name."""
        return {name: value.detach().clone() for name, value in own_buffers(self).items()}

    def reset(self) -> None:
        """Forget all batches."""
        with paddle.no_grad():
            for name, value in list(own_buffers(self).items()):
                self._assign(name, paddle.zeros_like(value))

    def load_state_dict(self, state: Dict[str, paddle.Tensor]) -> None:
        for name in list(own_buffers(self)):
            self._assign(name, state[name])

    @property
    def accepts_abs_max(self) -> bool:
        """True if updating with the single element max|x| is equivalent to updating with x."""
        return self.abs_max_only and self.spec.channel_axis is None and not self.spec.binary

    @abc.abstractmethod
    def abs_max(self) -> paddle.Tensor:
        """Compute scale * quant_max, the largest magnitude of a symmetric spec: float32, shape
        [1] or [channels]."""

    def range(self) -> Tuple[paddle.Tensor, paddle.Tensor]:
        """Compute the (lowest, highest) value to represent, each of the shape of abs_max."""
        abs_max = self.abs_max()
        return -abs_max, abs_max

    def merge(self, other: "Observer") -> None:
        """Add the statistics of another observer of the same class and spec.

        Raises:
            CalibrationError: the observers differ.
        """
        if type(other) is not type(self) or other.spec != self.spec:
            raise CalibrationError(
                f"cannot merge {type(other).__name__}({getattr(other, 'spec', None)}) into "
                f"{type(self).__name__}({self.spec}): class and spec must be equal")
        sizes = [{name: list(buffer.shape) for name, buffer in each.named_buffers()}
                 for each in (other, self)]
        if sizes[0] != sizes[1]:
            raise CalibrationError(
                f"cannot merge a {type(other).__name__} with statistics of the sizes {sizes[0]} "
                f"into one of {sizes[1]}: create both with the same arguments")
        with paddle.no_grad():
            if not self.num_batches:
                self.load_state_dict(dict(other.named_buffers()))
            elif other.num_batches:
                self._merge(other)
                self._assign("batches", self.batches + other.batches)

    def _share_of(self, other):
        """Return the share of the batches of both observers that ``other`` has observed."""
        return other.num_batches / (self.num_batches + other.num_batches)

    @property
    def num_batches(self) -> int:
        """Number of batches observed."""
        return int(self.batches.item())

    @abc.abstractmethod
    def _update(self, x):
        """Add one tensor to the statistics."""

    @abc.abstractmethod
    def _merge(self, other):
        """Add the statistics of another observer. Both have observed batches."""

    def _assign(self, name, value):
        if self._condition is not None:
            old = getattr(self, name)
            value = paddle.where(self._condition, as_dtype(value, old.dtype), old)
        assign_buffer(self, name, value)

    def _float_buffer(self, name, shape=None, value=0.0, dtype: Any = "float32"):
        shape = [self.channels] if shape is None else shape
        self.register_buffer(name, paddle.full(shape, value, dtype=dtype))

    @staticmethod
    def _at_least_eps(abs_max):
        return as_dtype(abs_max, paddle.float32).clip(min=EPS)


def assign_buffer(layer: nn.Layer, name: str, value: paddle.Tensor) -> None:
    """Assign ``value`` to a buffer of ``layer``."""
    # In place, so that to_static records the change. Attribute access, not own_buffers(): it
    # turns the buffer into a variable of the traced program.
    buffer = getattr(layer, name)
    if buffer.shape == value.shape or not paddle.in_dynamic_mode():
        paddle.assign(as_dtype(value, buffer.dtype), buffer)
    else:
        own_buffers(layer)[name] = as_dtype(value, buffer.dtype)


class Accumulator(Observer):
    """Base of observers that combine measurements of each tensor element by element."""

    reducible = True
    # Name of a buffer of shape [1] or [channels] -> function that combines its value with that of
    # another tensor or observer, None to replace it. Sums are float64.
    statistics: Dict[str, Optional[Callable]] = {}
    # Sign of each measured value if they are extremes: 1 for a maximum, -1 for a minimum; () if
    # they are means over the elements.
    extremes: Tuple[float, ...] = ()

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None):
        super().__init__(spec, channels)
        for name, combine in self.statistics.items():
            self._float_buffer(name, dtype="float64" if combine is paddle.add else "float32")

    @abc.abstractmethod
    def _measure(self, x) -> List[paddle.Tensor]:
        """Return the statistics of one tensor, in order; none to change nothing."""

    def _measured(self, x):
        """Return the statistics of one tensor, or of the tensors of all processes."""
        values = self._measure(x)
        reduction = self._batch_reduction
        if reduction is None:
            return values
        own, shape = values if x.size else [], [self.channels]
        if self.extremes:
            found = self._all_reduced(reduction.extremes, own, self.extremes, shape)
        else:
            count = len(values) or len(self.statistics)
            found = self._all_reduced(reduction.means, own, float(x.size), count, shape)
        return found or values  # nothing is found if the batches of all processes are empty

    def _range_of(self, *values):
        """Return (abs_max, (lowest, highest) value to represent) of measured statistics."""
        (abs_max,) = values
        return abs_max, (-abs_max, abs_max)

    def update_qparams(self, x):
        if not (self.dynamic or self.track_batch):
            return super().update_qparams(x)
        with paddle.no_grad():
            values = self._measured(constant(x))
            if self.track_batch:
                self._combine(values)
                self._assign("batches", self.batches + 1)
            if not values:
                return self.qparams()
            abs_max, limits = self._range_of(*values)
            return (abs_max, None) if self.spec.symmetric else affine_qparams(*limits, self.spec)

    def _update(self, x):
        self._combine(self._measured(x))

    def _merge(self, other):
        self._combine([getattr(other, name) for name in self.statistics])

    def _combine(self, values):
        for (name, combine), value in zip(self.statistics.items(), values):
            old = getattr(self, name)
            value = as_dtype(value, old.dtype)
            self._assign(name, value if combine is None else combine(old, value))

    def _mean(self, name):
        """Return the mean of a sum over the batches, float64."""
        return getattr(self, name) / self.batches.astype("float64").clip(min=1.0)
