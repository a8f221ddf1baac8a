"""KV caches of a network, from float to int8."""

from contextlib import ExitStack

import paddle
from paddle import nn

from ...engine import patched_forward
from ...errors import CalibrationError, NonFiniteError
from ...functional.qparams import as_dtype
from ...nn import Int8KVCache
from ...nn.attention import hold_cache
from ...nn.class_swap import replace_layers
from ...nn.kv_cache import PER_CHANNEL, PER_TOKEN


def quantize_caches(network, chosen, run, batches):
    """Put int8 caches in place of float ones.

    Args:
        network: holds them all.
        chosen: name -> (``MultiHeadAttention`` or ``KVCache``, "per_channel" or "per_token").
        run: called with the number of a batch, runs it through what holds the caches.
        batches: how many there are.

    Raises:
        NonFiniteError: names the cache that NaN or infinity reached, and the batch.
        CalibrationError: names the per-channel caches that no data reached.
    """
    caches = {}
    for name, (layer, _) in chosen.items():
        if isinstance(layer, nn.MultiHeadAttention):
            hold_cache(layer)
            layer = layer.kv_cache
        caches[name] = layer
    ranges = _ranges({name: cache for name, cache in caches.items()
                      if chosen[name][1] == PER_CHANNEL}, run, batches)
    replace_layers(network, [
        (cache, Int8KVCache(PER_TOKEN, token_axis=cache.token_axis) if name not in ranges
         else Int8KVCache.from_abs_max(*ranges[name], token_axis=cache.token_axis))
        for name, cache in caches.items()])


def _ranges(caches, run, batches):
    """Name -> (max|k|, max|v|), each [kv_heads, head_dim], over all batches."""
    if not caches:
        return {}
    found = {name: _Range(cache.token_axis) for name, cache in caches.items()}

    def observing(name):
        def forward(original, k, v, past=None):
            try:
                found[name].update(k, v)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} at {name} in batch {batch} of the calibration "
                                     "data") from None
            return original(k, v, past)
        return forward

    with ExitStack() as stack:
        for name, cache in caches.items():
            stack.enter_context(patched_forward(cache, observing(name)))
        for batch in range(batches):
            run(batch)
    unseen = [name for name, each in found.items() if each.most is None]
    if unseen:
        raise CalibrationError(f"no keys and values reached {', '.join(unseen)} in {batches} "
                               "batches; calibrate on data that uses them, or leave them float")
    return {name: each.most for name, each in found.items()}


class _Range:
    """max|x| of keys and of values, for each of kv_heads x head_dim."""

    def __init__(self, token_axis):
        self.token_axis, self.most = token_axis, None

    def update(self, k, v):
        """Take in the keys and values of one call, 4 axes each."""
        if 0 in k.shape or 0 in v.shape:
            return
        k, v = (as_dtype(x.detach(), paddle.float32) for x in (k, v))
        # (The maxima would not tell: Paddle 2.6 finds those of what is no NaN.)
        if not all(bool(paddle.isfinite(x).all()) for x in (k, v)):
            raise NonFiniteError("keys or values hold NaN or infinity")
        new = [x.abs().max(axis=[0, self.token_axis]) for x in (k, v)]
        self.most = new if self.most is None else [
            paddle.maximum(old, x) for old, x in zip(self.most, new)]
