"""Data flow between layers, found by running the model.

The order in which layers are defined is not used. Tensors are followed from the layers that return
them to those that receive them. Consumers that are not layers, such as an addition in a
``forward``, are invisible to that. To find them, the model runs again with the tensor changed for
all but the known consumer: if an output of the model changes, there are other consumers.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

import numpy as np
from paddle import nn

from .._paddle_compat import batch_norm_state, data_format
from .calls import patched_forwards, tensors_in, trace_calls

PRODUCERS = (nn.Conv1D, nn.Conv2D, nn.Conv3D, nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Linear)
NORMS = (nn.BatchNorm, nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.SyncBatchNorm)


@dataclass
class Pairs:
    """Pairs of a producer and a consumer, by name."""

    found: List[Tuple[str, str]] = field(default_factory=list)  # (producer, its only consumer)
    refused: Dict[Tuple[str, str], str] = field(default_factory=dict)  # with reasons


def find_pairs(model, run):
    """Find producer/norm pairs; ``run()`` is a deterministic forward pass of ``model``."""
    layers = dict(model.named_sublayers(include_self=True))
    producers = {name: layer for name, layer in layers.items() if isinstance(layer, PRODUCERS)}
    weight_owners = {}
    for name, producer in producers.items():
        weight_owners.setdefault(id(producer.weight), []).append(name)

    def refusal_of(producer, norm, tensor, pair):
        owners = weight_owners[id(producer.weight)]
        if len(owners) > 1:
            return f"the weight of {pair[0]} is shared by {', '.join(owners)}"
        return _mismatch(producer, norm, tensor, pair)

    norms = {name: layer for name, layer in layers.items() if isinstance(layer, NORMS)}
    return find_edges(run, producers, norms, refusal_of)


def find_edges(run, producers, consumers, refusal_of=lambda *_: None, called_again=False):
    """Find consumers that are the only reader of a producer's output.

    ``refusal_of(producer, consumer, tensor, names)`` returns the reason to refuse a pair, or None.
    With ``called_again`` a consumer may be called several times in a forward pass.
    """
    calls, output = trace_calls(run, producers, consumers)
    reference = output_values(output)
    called = Counter(call.name for call in calls)
    edges = [(source, changed, call.name) for call in calls
             for source, changed in call.reads[:1] if source is not None]
    readings = Counter((source.name, consumer) for source, _, consumer in edges)
    pairs, candidates = Pairs(), []
    for source, changed, consumer in edges:
        producer, pair = source.name, (source.name, consumer)
        if called[consumer] > 1 and not called_again:
            reason = f"{consumer} is applied {called[consumer]} times in a forward pass"
        elif readings[pair] > 1:
            reason = f"{consumer} reads the output of {producer} {readings[pair]} times"
        elif called[producer] > 1:
            reason = f"{producer} is called {called[producer]} times in a forward pass"
        elif changed:
            reason = f"the output of {producer} is changed in place before {consumer} reads it"
        else:
            reason = refusal_of(producers[producer], consumers[consumer], source.output, pair)
        if reason is None:
            candidates.append((producers[producer], [consumers[consumer]], pair))
        else:
            pairs.refused[pair] = reason
    calls.clear()  # frees the tensors of this pass before the next one
    edges.clear()
    pairs.found = [pair for _, _, pair in _exclusive(candidates, run, reference)]
    for _, _, pair in candidates:
        if pair not in pairs.found:
            pairs.refused[pair] = (f"the output of {pair[0]} feeds something besides {pair[1]}, "
                                   "which would see it changed")
    return pairs


def refusal_reason(pairs, producer, norm):
    """Return the reason that two named layers are not a pair."""
    if (producer, norm) in pairs.refused:
        return pairs.refused[(producer, norm)]
    real = [n for p, n in [*pairs.found, *pairs.refused] if p == producer]
    if real:
        return f"the output of {producer} goes into {real[0]}, not into {norm}"
    return f"the output of {producer} does not go into {norm}"


def channel_axis(layer):
    """Return the channel axis of a producer's output or a norm's input."""
    if isinstance(layer, nn.Linear):
        return -1
    layout = data_format(layer)
    return 1 if len(layout) == 2 or layout[1] == "C" else -1


def _mismatch(producer, norm, tensor, pair):
    activation = batch_norm_state(norm).activation
    if activation:
        return f"{pair[1]} has an activation of its own ({activation})"
    if isinstance(producer, nn.Linear) and isinstance(norm, (nn.BatchNorm2D, nn.BatchNorm3D)):
        return f"{pair[1]} normalizes images, {pair[0]} is a Linear"
    axes = [channel_axis(layer) % len(tensor.shape) for layer in (producer, norm)]
    if axes[0] != axes[1]:
        return (f"{pair[1]} normalizes axis {axes[1]}, but the channels of {pair[0]} are along "
                f"axis {axes[0]}")
    return None


def _exclusive(candidates, run, reference):
    """Return the candidates whose output has no reader but their consumer."""
    if not candidates or _unchanged(candidates, run, reference):
        return candidates
    if len(candidates) == 1:
        return []
    middle = len(candidates) // 2
    return (_exclusive(candidates[:middle], run, reference)
            + _exclusive(candidates[middle:], run, reference))


def _unchanged(candidates, run, reference):
    # NaN propagates through most operators, but not through comparisons and maxima; a second run
    # uses finite values.
    return all(same_values(output_values(_run_changed(candidates, run, change)), reference)
               for change in (lambda y: y * float("nan"), lambda y: 7.0 - 3.0 * y))


def _run_changed(candidates, run, change):
    originals = {}  # id(changed output) -> (changed output, output)
    producers = {id(producer): producer for producer, _, _ in candidates}
    readers = {id(each): each for _, consumers, _ in candidates for each in consumers}

    def original_of(x):
        return originals.get(id(x), (None, x))[1]

    def forward(key, original, *args, **kwargs):
        if key in readers:
            args = map(original_of, args)
            kwargs = {name: original_of(x) for name, x in kwargs.items()}
        output = original(*args, **kwargs)
        if key not in producers:
            return output
        changed = change(output)
        originals[id(changed)] = (changed, output)
        return changed

    with patched_forwards({**producers, **readers}, forward):
        return run()


def output_values(output):
    """Return copies of the tensors in the output of a model, as arrays."""
    return [tensor.numpy().copy() for tensor in tensors_in(output)]


def only_read_by(run, producer, consumers):
    """Return True if the first arguments of ``consumers`` are all uses of the producer's output."""
    return _unchanged([(producer, consumers, None)], run, output_values(run()))


def same_values(a, b):
    """Return True if two lists of arrays are equal to the bit."""
    return len(a) == len(b) and all(
        x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(a, b))
