"""Run a model up to one of its decoder layers, with recorded outputs of the layers before it.

Only the outputs of the last finished layer are stored, one per batch. Everything between the layers
(embedding, masks, position tables) runs again each time, which is cheap and exact.
"""

import logging
from collections import OrderedDict

import paddle

from ...engine.calibration import map_leaves
from ...errors import CalibrationError
from ...functional.qparams import as_dtype
from ...graph.calls import capture_inputs, patched_forwards, tensors_in
from ...nn.input_slots import is_float_tensor

_logger = logging.getLogger("paddleq")
_PLAIN = (paddle.Tensor, str, int, float, type(paddle.float32), type(None))


class _LayerReached(BaseException):
    """Ends a forward pass. Not an Exception, because a model may catch those."""


class LayerReplay:
    """Forward passes to a decoder layer that replay the outputs of the layers before it."""

    def __init__(self, model, layers, inputs):
        self.model, self.layers, self.inputs = model, layers, inputs
        # Stack -> batch -> (number of the layer, its output).
        self._outputs = {}
        self._stacks = [(name.rpartition(".")[0], type(layer)) for name, layer in layers]
        self._replays = True
        if inputs:
            self._find_order()

    def _find_order(self):
        calls = []
        layers = {number: layer for number, (_, layer) in enumerate(self.layers)}
        with capture_inputs(layers, lambda number, *_: calls.append(number)):
            self._call(0)
        order = list(dict.fromkeys(calls))
        order += [number for number in range(len(self.layers)) if number not in order]
        self.layers = [self.layers[number] for number in order]
        self._stacks = [self._stacks[number] for number in order]
        if len(calls) > len(set(calls)):
            self.disable_replay("a decoder layer is called several times in a forward pass")

    def disable_replay(self, reason):
        """Run finished decoder layers again instead of replaying their outputs."""
        _logger.info("%s: finished decoder layers run again for each statistic", reason)
        self._replays = False
        self._outputs.clear()

    def _call(self, batch):
        args, kwargs = self.inputs[batch]
        with self.inputs[batch].errors_named():
            return self.model(*args, **kwargs)

    def check_dependencies(self, number, readers):
        """Disable the replay if layer ``number`` depends on more than the stored outputs.

        In a replay, all layers before the last finished one return its output. Here they return
        NaN instead, which must not reach the layer, or ``readers`` if ``number`` is None.
        """
        if not (self._replays and self._outputs):
            return
        found = []
        if number is not None:
            if _has_nan(self._forward(number, 0, self._replay_nan, True)):
                found.append(self.layers[number][0])
        else:
            def on_input(name, x):
                if _has_nan(x):
                    found.append(name)

            with capture_inputs(readers, on_input):
                self._forward(None, 0, self._replay_nan)
        if found:
            self.disable_replay(f"{found[0]} reads outputs of other decoder layers than the "
                                "previous one")

    def run(self, number, batch):
        """Return the output of layer ``number`` for a batch, that of the model if it is None."""
        return self._forward(number, batch, self._replay)

    def advance(self, number, batch):
        """Run a batch through layer ``number`` and store its output for the following layers."""
        if not self._replays:
            return
        output = self.run(number, batch)
        unknown = _find_unknown(output)
        if unknown is not None:
            self.disable_replay(f"{self.layers[number][0]} returns a {type(unknown).__name__}, "
                                "whose tensors cannot be stored")
        elif not tensors_in(output):
            self.disable_replay(f"{self.layers[number][0]} returns no tensor, so that it must "
                                "have side effects")
        else:
            self._outputs.setdefault(self._stacks[number], {})[batch] = (number, output)

    def _forward(self, number, batch, replay, only_inputs=False):
        calls = []

        def forward(index, original, *args, **kwargs):
            if index != number:
                return replay(index, batch)
            calls.append((args, kwargs) if only_inputs else original(*args, **kwargs))
            if self._replays:
                raise _LayerReached
            return calls[-1]

        finished = range(len(self.layers) if number is None else number) if self._replays else ()
        patched = [*finished, *([] if number is None else [number])]
        with patched_forwards({index: self.layers[index][1] for index in patched}, forward):
            try:
                output = self._call(batch)
            except _LayerReached:
                return calls[0]
        if number is None:
            return output
        if not calls:
            raise CalibrationError(
                f"{self.layers[number][0]} is not called by {type(self.model).__name__} on "
                f"batch {batch}: no calibration data reaches it")
        return calls

    def _replay(self, index, batch):
        # A copy, because a model may change an output in place.
        return _map(lambda x: x.clone(), self._outputs[self._stacks[index]][batch][1])

    def _replay_nan(self, index, batch):
        number, output = self._outputs[self._stacks[index]][batch]
        return _map(lambda x: x.clone() if index == number else _nan_like(x), output)


def _map(function, structure):
    """Apply ``function`` to each tensor of a nested structure."""
    return map_leaves(lambda x: function(x) if isinstance(x, paddle.Tensor) else x, structure)


def _find_unknown(structure):
    """Return a part that may contain tensors which :func:`_map` does not find, or None."""
    if isinstance(structure, (list, tuple)):
        parts = structure
    elif type(structure) is dict or isinstance(structure, OrderedDict):  # also ModelOutput
        parts = structure.values()
    else:
        return None if isinstance(structure, _PLAIN) else structure
    return next((found for found in map(_find_unknown, parts) if found is not None), None)


def _nan_like(x):
    return paddle.full(x.shape, float("nan"), dtype=x.dtype) if is_float_tensor(x) else x.clone()


def _has_nan(structure):
    return any(is_float_tensor(x) and bool(paddle.isnan(as_dtype(x, paddle.float32)).any())
               for x in tensors_in(structure))
