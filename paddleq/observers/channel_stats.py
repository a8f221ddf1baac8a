"""Collectors of the statistics that algorithms for weights and KV caches use."""

import copy
from typing import Any, Dict, Iterable, Tuple

import paddle
from paddle.distributed import ReduceOp

from .._checks import check_choice, wrong_value
from .._distributed import all_reduce, groups
from .._paddle_compat import scalar
from ..errors import CalibrationError, NonFiniteError
from ..functional.qparams import as_dtype
from .base import Collector

KINDS = ("abs_max", "mean_abs", "hessian", "range")
# Functions that combine extremes; the other statistics are means over the tokens.
_NAMES = {"range": ["min", "max"]}  # of the statistics of a kind
_EXTREMES = {"abs_max": paddle.maximum, "min": paddle.minimum, "max": paddle.maximum}


class ChannelStats(Collector):
    """Statistics of each feature of the inputs [..., K] of a Linear layer, in float32.

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
        super().__init__()
        self.kinds = frozenset(kinds)
        for kind in self.kinds:
            check_choice("kinds", kind, KINDS)
        self.tokens = 0

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
            self._add(self._measure(x), x.shape[0])

    def _measure(self, x):
        found = {"hessian": _mean_of_squares(x)} if "hessian" in self.kinds else {}
        magnitude = x.abs() if self.kinds & {"abs_max", "mean_abs"} else x
        if "abs_max" in self.kinds:
            found["abs_max"] = magnitude.max(axis=0)
        if "mean_abs" in self.kinds:
            found["mean_abs"] = magnitude.mean(axis=0)
        if "range" in self.kinds:
            # Per feature, because divided_by() scales each feature by its own factor.
            found["min"], found["max"] = x.min(axis=0), x.max(axis=0)
        return found

    def _add(self, values, tokens):
        """Add statistics of ``tokens`` input vectors. The tensors may be overwritten."""
        self.tokens += tokens
        for name, new in values.items():
            if name in self._values:
                old, share = self._values[name], tokens / self.tokens
                new = (_EXTREMES[name](old, new) if name in _EXTREMES
                       else old.scale_(1.0 - share).add_(new.scale_(share)))
            self._values[name] = new

    def merge_processes(self, features: int) -> None:
        """Merge the statistics of the processes that ``paddle.distributed`` connects.

        All of them have the same result, to the last bit.

        Args:
            features: K, for a process without inputs.
        """
        if not groups():
            return
        tokens = int(all_reduce(paddle.to_tensor([self.tokens]), ReduceOp.SUM).numpy()[0])
        if tokens:
            for name in sorted(name for kind in self.kinds for name in _NAMES.get(kind, [kind])):
                self._values[name] = self._over_processes(name, features, tokens)
            self.tokens = tokens

    def _over_processes(self, name, features, tokens):
        value = self._values.get(name)
        if name not in _EXTREMES:
            shape = [features] * (2 if name == "hessian" else 1)
            share = (paddle.zeros(shape) if value is None else
                     value * paddle.to_tensor(self.tokens / tokens, dtype="float32"))
            return all_reduce(share, ReduceOp.SUM)
        if value is None:
            value = paddle.full([features], float("inf" if name == "min" else "-inf"))
        return all_reduce(value.clone(), ReduceOp.MIN if name == "min" else ReduceOp.MAX)

    def merge(self, other: "ChannelStats") -> None:
        """Add the statistics of another collector.

        Raises:
            CalibrationError: the other one collects other statistics.
        """
        if other.kinds != self.kinds:
            raise CalibrationError(f"cannot merge statistics of the kinds {sorted(other.kinds)} "
                                   f"into {sorted(self.kinds)}: the kinds must be equal")
        if other.tokens:
            with paddle.no_grad():
                self._add({name: value.clone() for name, value in other._values.items()},
                          other.tokens)

    def state_dict(self) -> Dict[str, paddle.Tensor]:
        return {"tokens": paddle.to_tensor([self.tokens], dtype="int64"), **super().state_dict()}

    def load_state_dict(self, state: Dict[str, paddle.Tensor]) -> None:
        values = dict(state)
        self.tokens = int(scalar(values.pop("tokens")))
        super().load_state_dict(values)

    def result(self) -> Any:
        """Return each collected statistic by its kind."""
        return {kind: getattr(self, kind) for kind in KINDS if kind in self.kinds}

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
        return self._checked("hessian")["hessian"]

    @property
    def range(self) -> Tuple[paddle.Tensor, paddle.Tensor]:
        """(minimum, maximum) of all features, each of shape [1]."""
        values = self._checked("range")
        return values["min"].min().reshape([1]), values["max"].max().reshape([1])

    def divided_by(self, s: paddle.Tensor) -> "ChannelStats":
        """Return the statistics of x / s for positive factors s [K]."""
        quotient = copy.copy(self)
        quotient._values = {}
        with paddle.no_grad():
            for name, value in self._values.items():
                quotient._values[name] = value / s if name != "hessian" else (
                    (value / s.unsqueeze(1)).divide_(s.unsqueeze(0).expand(value.shape)))
        return quotient


class HessianCollector(ChannelStats):
    """Mean of x^T x over all tokens of the inputs [..., K] of a Linear layer.

    This is half of the second derivative of the squared output error with respect to each column of
    the weight.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import HessianCollector
        >>> collector = HessianCollector()
        >>> collector.update(paddle.to_tensor([[1.0, -2.0], [3.0, 0.0]] * 2))
        >>> collector.result().tolist()
        [[5.0, -1.0], [-1.0, 2.0]]
    """

    def __init__(self) -> None:
        super().__init__({"hessian"})

    def result(self) -> paddle.Tensor:
        """Return the mean, float32 [K, K].

        Raises:
            CalibrationError: there were no inputs.
        """
        return self.hessian


class KVRange(Collector):
    """max|k| and max|v| of each feature of each head of a KV cache.

    Args:
        token_axis: the axis of tokens in keys and values [batch, heads, tokens, head_dim] (2) or
            [batch, tokens, heads, head_dim] (1).

    Examples:
        >>> import paddle
        >>> from paddleq.observers import KVRange
        >>> collector = KVRange(token_axis=2)
        >>> k, v = paddle.to_tensor([[[[1.0], [-2.0]]]]), paddle.to_tensor([[[[0.5], [0.0]]]])
        >>> collector.update(k, v)
        >>> [each.tolist() for each in collector.result()]
        [[[2.0]], [[0.5]]]
    """

    num_inputs = 2

    def __init__(self, token_axis: int):
        super().__init__()
        self.token_axis = token_axis

    def update(self, k: paddle.Tensor, v: paddle.Tensor) -> None:
        """Add the keys and values of one call, 4 axes each.

        Raises:
            NonFiniteError: they hold NaN or infinity. The statistics are unchanged.
        """
        if 0 in k.shape or 0 in v.shape:
            return
        with paddle.no_grad():
            both = {name: as_dtype(x.detach(), paddle.float32) for name, x in (("k", k), ("v", v))}
            # max() does not reveal NaN: on Paddle 2.6 it ignores them.
            if not all(bool(paddle.isfinite(x).all()) for x in both.values()):
                raise NonFiniteError("keys or values hold NaN or infinity")
            self._extend({name: x.abs().max(axis=[0, self.token_axis])
                          for name, x in both.items()})

    def _extend(self, values):
        for name, value in values.items():
            old = self._values.get(name)
            self._values[name] = value if old is None else paddle.maximum(old, value)

    def merge_processes(self) -> None:
        """Merge the values of the processes that ``paddle.distributed`` connects.

        Each of them must have received keys and values.
        """
        for name in sorted(self._values) if groups() else ():
            self._values[name] = all_reduce(self._values[name].clone(), ReduceOp.MAX)

    def merge(self, other: "KVRange") -> None:
        self._extend(other._values)

    def result(self) -> Any:
        """Return (max|k|, max|v|), each float32 [kv_heads, head_dim], or None without data."""
        return (self._values["k"], self._values["v"]) if self._values else None


def _mean_of_squares(x):
    x = x * x.shape[0] ** -0.5
    square = paddle.matmul(x, x, transpose_x=True)
    # The largest element of a positive semidefinite matrix is on its diagonal.
    if not bool(paddle.isfinite(paddle.diagonal(square)).all()):
        raise NonFiniteError("an input of the layer holds NaN, infinity or values whose square is "
                             "not finite in float32")
    return square
