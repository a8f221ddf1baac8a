"""Collector of the ranges of keys and values."""

from typing import Any, Dict, List, Optional

import paddle

from ..errors import NonFiniteError
from ..functional.qparams import as_dtype
from .base import Collector


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
        self.token_axis = token_axis
        self._abs_max: Optional[List[paddle.Tensor]] = None

    def update(self, k: paddle.Tensor, v: paddle.Tensor) -> None:
        """Add the keys and values of one call, 4 axes each.

        Raises:
            NonFiniteError: they hold NaN or infinity. The statistics are unchanged.
        """
        if 0 in k.shape or 0 in v.shape:
            return
        with paddle.no_grad():
            k, v = (as_dtype(x.detach(), paddle.float32) for x in (k, v))
            # max() does not reveal NaN: on Paddle 2.6 it ignores them.
            if not all(bool(paddle.isfinite(x).all()) for x in (k, v)):
                raise NonFiniteError("keys or values hold NaN or infinity")
            self._extend([x.abs().max(axis=[0, self.token_axis]) for x in (k, v)])

    def _extend(self, new):
        self._abs_max = list(map(paddle.maximum, self._abs_max or new, new))

    def merge(self, other: "KVRange") -> None:
        if other._abs_max is not None:
            self._extend(other._abs_max)

    def state_dict(self) -> Dict[str, paddle.Tensor]:
        return {} if self._abs_max is None else dict(zip(("k", "v"), self._abs_max))

    def load_state_dict(self, state: Dict[str, paddle.Tensor]) -> None:
        self._abs_max = [state["k"].clone(), state["v"].clone()] if state else None

    def result(self) -> Any:
        """Return (max|k|, max|v|), each float32 [kv_heads, head_dim], or None without data."""
        return None if self._abs_max is None else tuple(self._abs_max)
