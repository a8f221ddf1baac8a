"""Collector of the input statistics that weight algorithms use."""

from typing import Dict, Iterable, Tuple

import paddle

from .._checks import check_choice, wrong_value
from .._paddle_compat import scalar
from ..errors import CalibrationError, NonFiniteError
from ..functional.qparams import as_dtype
from .base import Collector
from .hessian import HessianCollector, running_mean

KINDS = ("abs_max", "mean_abs", "hessian", "range")


class ChannelStats(Collector):
    """Statistics of each feature of the inputs [..., K] of a Linear layer.

    Inputs are not stored. Inputs of half precision are accumulated in float32.

    Args:
        kinds: the statistics to collect, of "abs_max", "mean_abs", "hessian" and "range". Reading
            another one raises ``ConfigError``.

    Attributes:
        tokens: number of input vectors.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import ChannelStats
        >>> stats = ChannelStats({"abs_max", "hessian"})
        >>> stats.update(paddle.to_tensor([[1.0, -2.0]]))
        >>> stats.update(paddle.to_tensor([[3.0, 0.0]]))
        >>> stats.tokens, stats.abs_max.tolist(), stats.hessian.tolist()
        (2, [3.0, 2.0], [[5.0, -1.0], [-1.0, 2.0]])
    """

    def __init__(self, kinds: Iterable[str]):
        self.kinds = frozenset(kinds)
        for kind in self.kinds:
            check_choice("kinds", kind, KINDS)
        self.tokens = 0
        self._values: Dict[str, paddle.Tensor] = {}
        self._hessian = HessianCollector() if "hessian" in self.kinds else None

    def update(self, x: paddle.Tensor) -> None:
        """Add inputs [..., K]. A tensor without tokens changes nothing.

        Raises:
            NonFiniteError: ``x`` holds NaN, infinity, or, if the Hessian is collected, values whose
                square is not finite in float32. The statistics are unchanged.
            ConfigError: K differs from the previous inputs.
        """
        if 0 in x.shape:
            return
        with paddle.no_grad():
            x = as_dtype(x.detach(), paddle.float32).reshape([-1, x.shape[-1]])
            if not bool(paddle.isfinite(x).all()):
                raise NonFiniteError("an input of the layer holds NaN or infinity")
            for value in self._values.values():
                if value.shape[0] != x.shape[1]:
                    raise wrong_value("x", list(x.shape), f"[..., {value.shape[0]}] as before")
            if self._hessian is not None:
                self._hessian.update(x)
            self.tokens += x.shape[0]
            magnitude = x.abs() if self.kinds & {"abs_max", "mean_abs"} else x
            if "abs_max" in self.kinds:
                self._extend("abs_max", magnitude.max(axis=0), paddle.maximum)
            if "mean_abs" in self.kinds:
                self._average("mean_abs", magnitude.mean(axis=0), x.shape[0])
            if "range" in self.kinds:
                # Per feature, because divided_by() scales each feature by its own factor.
                self._extend("min", x.min(axis=0), paddle.minimum)
                self._extend("max", x.max(axis=0), paddle.maximum)

    def merge(self, other: "ChannelStats") -> None:
        """Add the statistics of another collector.

        Raises:
            CalibrationError: the other one collects other statistics.
        """
        if other.kinds != self.kinds:
            raise CalibrationError(f"cannot merge statistics of the kinds {sorted(other.kinds)} "
                                   f"into {sorted(self.kinds)}: the kinds must be equal")
        if not other.tokens:
            return
        with paddle.no_grad():
            self.tokens += other.tokens
            for name, value in other._values.items():
                if name == "mean_abs":
                    self._average(name, value.clone(), other.tokens)
                else:
                    self._extend(name, value, paddle.minimum if name == "min" else paddle.maximum)
            if self._hessian is not None and other._hessian is not None:
                self._hessian.merge(other._hessian)

    def state_dict(self) -> Dict[str, paddle.Tensor]:
        state = {"tokens": paddle.to_tensor([self.tokens], dtype="int64"), **self._values}
        if self._hessian is not None:
            state.update({f"hessian.{name}": value
                          for name, value in self._hessian.state_dict().items()})
        return state

    def load_state_dict(self, state: Dict[str, paddle.Tensor]) -> None:
        self.tokens = int(scalar(state["tokens"]))
        self._values = {name: value.clone() for name, value in state.items()
                        if name in ("abs_max", "mean_abs", "min", "max")}
        if self._hessian is not None:
            self._hessian.load_state_dict({name.partition(".")[2]: value for name, value
                                           in state.items() if name.startswith("hessian.")})

    def result(self) -> Dict[str, paddle.Tensor]:
        """Return each collected statistic by its kind."""
        return {kind: getattr(self, kind) for kind in KINDS if kind in self.kinds}

    def _extend(self, name, new, function):
        old = self._values.get(name)
        self._values[name] = new if old is None else function(old, new)

    def _average(self, name, new, tokens):
        self._values[name] = running_mean(self._values.get(name), new, tokens / self.tokens)

    def _checked(self, kind):
        if kind not in self.kinds:
            raise wrong_value("kinds", sorted(self.kinds), f"with {kind!r}, which is asked for")
        if not self.tokens:
            raise CalibrationError("no calibration data has reached the layer: its statistics "
                                   "are empty")
        return self._values

    @property
    def abs_max(self) -> paddle.Tensor:
        """max|x| of each feature, [K]."""
        return self._checked("abs_max")["abs_max"]

    @property
    def mean_abs(self) -> paddle.Tensor:
        """Mean of |x| of each feature, [K]."""
        return self._checked("mean_abs")["mean_abs"]

    @property
    def hessian(self) -> paddle.Tensor:
        """Mean of x^T x over the tokens, [K, K]; see :class:`HessianCollector`."""
        self._checked("hessian")
        assert self._hessian is not None
        return self._hessian.result()

    @property
    def range(self) -> Tuple[paddle.Tensor, paddle.Tensor]:
        """(minimum, maximum) of all features, each of shape [1]."""
        values = self._checked("range")
        return values["min"].min().reshape([1]), values["max"].max().reshape([1])

    def divided_by(self, s: paddle.Tensor) -> "ChannelStats":
        """Return the statistics of x / s for positive factors s [K].

        Examples:
            >>> import paddle
            >>> from paddleq.observers import ChannelStats
            >>> stats = ChannelStats({"abs_max"})
            >>> stats.update(paddle.to_tensor([[1.0, 6.0]]))
            >>> stats.divided_by(paddle.to_tensor([1.0, 3.0])).abs_max.tolist()
            [1.0, 2.0]
        """
        quotient = ChannelStats(self.kinds)
        quotient.tokens = self.tokens
        with paddle.no_grad():
            quotient._values = {name: value / s for name, value in self._values.items()}
            if self._hessian is not None:
                quotient._hessian = self._hessian.divided_by(s)
        return quotient
