"""Quantization of KV caches to int8."""

from typing import Any, Callable, Dict, Tuple

from paddle import nn

from ...engine import collect_inputs, run_batches
from ...nn import Int8KVCache
from ...nn.attention import hold_cache
from ...nn.class_swap import replace_layers
from ...nn.kv_cache import PER_CHANNEL, PER_TOKEN
from ...observers import KVRange
from .shared_inputs import check_reached


def quantize_caches(model: nn.Layer, selected: Dict[str, Tuple[nn.Layer, str]],
                    run: Callable[[int], Any], num_batches: int) -> None:
    """Replace float KV caches by int8 ones, in place.

    Args:
        model: contains all of them.
        selected: name -> (``MultiHeadAttention`` or ``KVCache``, "per_channel" or "per_token").
        run: called with the number of a batch; runs the layers that contain the caches.
        num_batches: number of batches.

    Raises:
        NonFiniteError: NaN or infinity reached a cache; names the cache and the batch.
        CalibrationError: no data reached some per-channel caches; names them.
    """
    caches = {}
    for name, (layer, _) in selected.items():
        if isinstance(layer, nn.MultiHeadAttention):
            hold_cache(layer)
            layer = layer.kv_cache
        caches[name] = layer
    collectors = {name: KVRange(cache.token_axis) for name, cache in caches.items()
                  if selected[name][1] == PER_CHANNEL}
    if collectors:
        with collect_inputs({name: caches[name] for name in collectors}, collectors):
            run_batches(run, range(num_batches))
        check_reached([name for name, each in collectors.items() if each.result() is None],
                      num_batches)
    replace_layers(model, [
        (cache, Int8KVCache.from_abs_max(*collectors[name].result(), token_axis=cache.token_axis)
         if name in collectors else Int8KVCache(PER_TOKEN, token_axis=cache.token_axis))
        for name, cache in caches.items()])
