"""Which layer feeds which, found by running the model.

Nothing is concluded from the order in which layers were defined. A batch goes through the model
and hooks see which tensor object goes where. Whether a tensor has consumers that are no layers
(an addition inside a ``forward``) hooks cannot see; so the model runs again with that tensor
spoiled for everybody but the one known consumer, and if any output changes, there are more.
"""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import nn

PRODUCERS = (nn.Conv1D, nn.Conv2D, nn.Conv3D, nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Linear)
NORMS = (nn.BatchNorm, nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.SyncBatchNorm)


class Pairs:
    """What a probe found.

    Attributes:
        found: list of (producer name, consumer name) where that is the producer's only consumer.
        refused: dict (producer name, norm name) -> why that pair must not be fused.
    """

    def __init__(self):
        self.found = []
        self.refused = {}


class _Calls:
    """Outputs of producers and inputs of consumers in one forward pass."""

    def __init__(self):
        self.outputs = {}  # id(tensor) -> (producer, tensor, its inplace version)
        self.calls = {}  # producer or consumer -> number of calls
        self.edges = []  # (producer or None, consumer, tensor, changed in place in between)

    def produced(self, layer, _inputs, output):
        self.calls[layer] = self.calls.get(layer, 0) + 1
        if isinstance(output, paddle.Tensor):
            # The tensor is kept alive, so that no later one gets its id.
            self.outputs[id(output)] = (layer, output, output.inplace_version)

    def consumed(self, layer, inputs):
        self.calls[layer] = self.calls.get(layer, 0) + 1
        producer, tensor, version = self.outputs.get(id(inputs[0]), (None, None, 0))
        changed = tensor is not None and tensor.inplace_version != version
        self.edges.append((producer, layer, tensor, changed))


@contextmanager
def observed(handles):
    """While open, the hooks are there."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_pairs(model, run):
    """Find producer/norm pairs.

    Args:
        model: the layer to look into.
        run: called without arguments, does one forward pass of ``model`` and returns its output.
            It must be deterministic (evaluation mode, no quantization).

    Returns:
        :class:`Pairs`.
    """
    layers = dict(model.named_sublayers(include_self=True))
    producers = {name: layer for name, layer in layers.items() if isinstance(layer, PRODUCERS)}
    weight_owners = {}
    for name, producer in producers.items():
        weight_owners.setdefault(id(producer.weight), []).append(name)

    def why_refused(producer, norm, tensor, pair):
        owners = weight_owners[id(producer.weight)]
        if len(owners) > 1:
            return f"the weight of {pair[0]} is shared by {', '.join(owners)}"
        return _mismatch(producer, norm, tensor, pair)

    norms = {name: layer for name, layer in layers.items() if isinstance(layer, NORMS)}
    return find_edges(run, producers, norms, why_refused)


def find_edges(run, producers, consumers, why_refused=lambda *_: None, called_again=False):
    """Find which producer's output goes into which consumer and nowhere else.

    Args:
        run: as for :func:`find_pairs`.
        producers, consumers: name -> layer.
        why_refused: called as ``why_refused(producer, consumer, tensor, names)``; says why this
            pair must not be, or None.
        called_again: whether a consumer may be called several times in a forward pass.

    Returns:
        :class:`Pairs`.
    """
    names = {id(layer): name for name, layer in [*producers.items(), *consumers.items()]}
    calls = _Calls()
    with observed([p.register_forward_post_hook(calls.produced) for p in producers.values()]
                + [c.register_forward_pre_hook(calls.consumed) for c in consumers.values()]):
        reference = _values(run())
    pairs, candidates = Pairs(), []
    readings = Counter((producer, consumer) for producer, consumer, _, _ in calls.edges)
    for producer, consumer, tensor, changed in calls.edges:
        if producer is None:
            continue
        pair = (names[id(producer)], names[id(consumer)])
        if calls.calls[consumer] > 1 and not called_again:
            reason = f"{pair[1]} is applied {calls.calls[consumer]} times in a forward pass"
        elif readings[producer, consumer] > 1:
            reason = f"{pair[1]} reads the output of {pair[0]} {readings[producer, consumer]} times"
        elif calls.calls[producer] > 1:
            reason = f"{pair[0]} is called {calls.calls[producer]} times in a forward pass"
        elif changed:
            reason = f"the output of {pair[0]} is changed in place before {pair[1]} reads it"
        else:
            reason = why_refused(producer, consumer, tensor, pair)
        if reason is None:
            candidates.append((producer, [consumer], pair))
        else:
            pairs.refused[pair] = reason
    calls.outputs.clear()
    pairs.found = [pair for _, _, pair in _exclusive(candidates, run, reference)]
    for _, _, pair in candidates:
        if pair not in pairs.found:
            pairs.refused[pair] = (f"the output of {pair[0]} feeds something besides {pair[1]}, "
                                   "which would see it changed")
    return pairs


def why_not(pairs, producer, norm):
    """Why two named layers were not found to be a pair."""
    if (producer, norm) in pairs.refused:
        return pairs.refused[(producer, norm)]
    real = [n for p, n in [*pairs.found, *pairs.refused] if p == producer]
    if real:
        return f"the output of {producer} goes into {real[0]}, not into {norm}"
    return f"the output of {producer} does not go into {norm}"


def channel_axis(layer):
    """Axis of the channels of what a producer gives or a norm takes."""
    if isinstance(layer, nn.Linear):
        return -1
    data_format = getattr(layer, "_data_format", None) or layer._data_layout
    return 1 if len(data_format) == 2 or data_format[1] == "C" else -1


def _mismatch(producer, norm, tensor, pair):
    if getattr(norm, "_act", None):
        return f"{pair[1]} has an activation of its own ({norm._act})"
    if isinstance(producer, nn.Linear) and isinstance(norm, (nn.BatchNorm2D, nn.BatchNorm3D)):
        return f"{pair[1]} normalizes images, {pair[0]} is a Linear"
    axes = [channel_axis(layer) % len(tensor.shape) for layer in (producer, norm)]
    if axes[0] != axes[1]:
        return (f"{pair[1]} normalizes axis {axes[1]}, but the channels of {pair[0]} are along "
                f"axis {axes[0]}")
    return None


def _exclusive(candidates, run, reference):
    """Those of the candidates whose output nobody but their consumer reads."""
    if not candidates:
        return []
    if _unchanged(candidates, run, reference):
        return candidates
    if len(candidates) == 1:
        return []
    middle = len(candidates) // 2
    return (_exclusive(candidates[:middle], run, reference)
            + _exclusive(candidates[middle:], run, reference))


def _unchanged(candidates, run, reference):
    # NaN spreads through nearly everything, but a comparison or a maximum may swallow it: a
    # second run spoils with ordinary numbers.
    return all(_same(_values(_run_spoiled(candidates, run, spoil)), reference)
               for spoil in (lambda y: y * float("nan"), lambda y: 7.0 - 3.0 * y))


def _run_spoiled(candidates, run, spoil):
    true, handles = {}, []

    def spoil_output(layer, _inputs, output):
        spoiled = spoil(output)
        true[id(spoiled)] = (spoiled, output)
        return spoiled

    def restore_input(layer, inputs):
        if not inputs:  # it came by keyword
            return None
        _, output = true.get(id(inputs[0]), (None, inputs[0]))
        return (output, *inputs[1:])

    for producer, consumers, _ in candidates:
        handles.append(producer.register_forward_post_hook(spoil_output))
        handles += [each.register_forward_pre_hook(restore_input) for each in consumers]
    with observed(handles):
        return run()


def _values(output):
    if isinstance(output, paddle.Tensor):
        return [output.numpy().copy()]
    if isinstance(output, dict):
        output = [output[key] for key in sorted(output, key=str)]
    if isinstance(output, (list, tuple)):
        return [value for item in output for value in _values(item)]
    return []


def only_read_by(run, producer, consumers):
    """Whether what ``producer`` gives goes into ``consumers`` and nowhere else.

    Args:
        run: as for :func:`find_pairs`.
        producer: a layer that is called once, and gives a tensor.
        consumers: layers whose first argument that tensor is.
    """
    return _unchanged([(producer, consumers, None)], run, _values(run()))


def _same(a, b):
    return len(a) == len(b) and all(
        x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(a, b))
