"""Running a network up to one of its decoder layers, with the layers before it played back.

What is kept is what the last finished layer gave for each batch. Everything between the layers (the
embedding, masks, tables of positions, whatever a layer is called with) runs anew each time: it is
cheap, and it is what the network itself does.
"""

import logging
from collections import OrderedDict
from contextlib import ExitStack

import paddle

from ...engine import capture_inputs, patched_forward
from ...errors import CalibrationError
from ...functional.qparams import as_dtype

_logger = logging.getLogger("paddleq")
_PLAIN = (paddle.Tensor, str, int, float, type(paddle.float32), type(None))


class _Reached(BaseException):
    """Ends a forward pass. No Exception: a network may catch those."""


class Walk:
    """Batches on their way through the decoder layers of a network.

    Args:
        network: in evaluation mode, as within :func:`paddleq.engine.eager_evaluation`.
        layers: list of (name, layer).
        inputs: the (args, kwargs) of each batch.

    Attributes:
        layers: the same in the order in which they run.
    """

    def __init__(self, network, layers, inputs):
        self.network, self.layers, self.inputs = network, layers, inputs
        # Of each stack, for each batch: (number of the layer, what it gave).
        self._given = {}
        self._stacks = [_stack_of(name, layer) for name, layer in layers]
        self._plays_back = True
        if inputs:
            self._find_order()

    def _find_order(self):
        calls = []

        def noting(number):
            def forward(original, *args, **kwargs):
                calls.append(number)
                return original(*args, **kwargs)
            return forward

        with ExitStack() as stack:
            for number, (_, layer) in enumerate(self.layers):
                stack.enter_context(patched_forward(layer, noting(number)))
            self._call(0)
        order = list(dict.fromkeys(calls))
        order += [number for number in range(len(self.layers)) if number not in order]
        self.layers = [self.layers[number] for number in order]
        self._stacks = [self._stacks[number] for number in order]
        if len(calls) > len(set(calls)):
            self.run_everything("a decoder layer is called several times in a forward pass")

    def run_everything(self, why):
        """Run the decoder layers before the one that is quantized, instead of playing back."""
        _logger.info("%s: decoder layers that are finished are run anew each time", why)
        self._plays_back = False
        self._given.clear()

    def _call(self, batch):
        args, kwargs = self.inputs[batch]
        return self.network(*args, **kwargs)

    def enter(self, number, readers):
        """Find out whether what is kept is all that layer ``number`` depends on.

        Played back, layers before the last finished one give what that one gave. Here they give
        NaN, which must not get there.

        Args:
            number: None for what is outside of the decoder layers.
            readers: name -> layer, those of the stage whose inputs matter.
        """
        if not (self._plays_back and self._given):
            return
        found = []
        if number is not None:
            name = self.layers[number][0]
            found = [name] if _has_nan(self._forward(number, 0, self._spoiled, True)) else []
        else:
            with capture_inputs(readers, lambda name, x: found.append(name) if _has_nan(x) else None):
                self._forward(None, 0, self._spoiled)
        if found:
            self.run_everything(f"{found[0]} reads what other decoder layers than the last one "
                                "before it gave")

    def run(self, number, batch):
        """Run a batch as far as layer ``number``, or to the end where that is None.

        Returns:
            What the layer gives (of several calls a list), or the network.

        Raises:
            CalibrationError: the layer was not called.
        """
        return self._forward(number, batch, self._played)

    def advance(self, number, batch):
        """Run a batch through layer ``number`` and keep what it gives for the layers behind it."""
        if not self._plays_back:
            return
        output = self.run(number, batch)
        unknown = _unknown_in(output)
        if unknown is not None:
            self.run_everything(f"{self.layers[number][0]} gives a {type(unknown).__name__}, whose "
                                "tensors are not known")
        elif not _tensors_in(output):
            self.run_everything(f"{self.layers[number][0]} gives no tensor, so what it does must "
                                "be done in what others hold")
        else:
            self._given.setdefault(self._stacks[number], {})[batch] = (number, output)

    def _forward(self, number, batch, play, only_inputs=False):
        calls = []

        def real(original, *args, **kwargs):
            if only_inputs:
                calls.append((args, kwargs))
            else:
                calls.append(original(*args, **kwargs))
            if self._plays_back:
                raise _Reached
            return calls[-1]

        def playing(index):
            return lambda original, *args, **kwargs: play(index, batch)

        with ExitStack() as stack:
            if self._plays_back:
                for index in range(len(self.layers) if number is None else number):
                    stack.enter_context(patched_forward(self.layers[index][1], playing(index)))
            if number is not None:
                stack.enter_context(patched_forward(self.layers[number][1], real))
            try:
                output = self._call(batch)
            except _Reached:
                return calls[0]
        if number is None:
            return output
        if not calls:
            raise CalibrationError(
                f"{self.layers[number][0]} is not called by {type(self.network).__name__} on "
                f"batch {batch}: no calibration data reaches it")
        return calls

    def _played(self, index, batch):
        # A copy: a network may change in place what a layer gave.
        return _map(lambda x: x.clone(), self._given[self._stacks[index]][batch][1])

    def _spoiled(self, index, batch):
        number, output = self._given[self._stacks[index]][batch]
        return _map(lambda x: x.clone() if index == number else _nan_like(x), output)


def _stack_of(name, layer):
    return name.rpartition(".")[0], type(layer)


def _map(function, structure):
    """The structure with ``function`` of each tensor in place of it."""
    if isinstance(structure, paddle.Tensor):
        return function(structure)
    if isinstance(structure, dict):
        mapped = {key: _map(function, value) for key, value in structure.items()}
        return mapped if type(structure) is dict else type(structure)(mapped)
    if isinstance(structure, (list, tuple)):
        items = [_map(function, item) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else type(structure)(items)
    return structure


def _unknown_in(structure):
    """A part of a structure that may hold tensors which :func:`_map` does not find; or None."""
    if isinstance(structure, (list, tuple)):
        parts = structure
    elif type(structure) is dict or isinstance(structure, OrderedDict):  # of models' outputs too
        parts = structure.values()
    else:
        return None if isinstance(structure, _PLAIN) else structure
    return next((found for found in map(_unknown_in, parts) if found is not None), None)


def _tensors_in(structure):
    found = []
    _map(found.append, structure)
    return found


def _is_float(x):
    return x.dtype in (paddle.float32, paddle.float64, paddle.float16, paddle.bfloat16)


def _nan_like(x):
    return paddle.full(x.shape, float("nan"), dtype=x.dtype) if _is_float(x) else x.clone()


def _has_nan(structure):
    return any(_is_float(x) and bool(paddle.isnan(as_dtype(x, paddle.float32)).any())
               for x in _tensors_in(structure))
