"""Metrics of a quantized model that need no labels: agreement with its float model."""

import math
from typing import Any, Iterable, List

from paddle import nn

from .._checks import wrong_value
from ..engine import iter_batches, quantizing_only, run_batches
from .sqnr import SQNR, float_tensors

METRICS = ("error", "labels")
_NOTHING_TO_COMPARE = {
    "error": "a function of the model for a model without floating outputs",
    "labels": "'error' or a function of the model for a model without a floating output whose last "
              "axis is longer than 1"}


class FloatAgreement:
    """Metric of a quantized model: minus the share by which it differs from its float model.

    The first call computes the outputs of the float model. The batches and these outputs are kept
    in memory, because data that is shuffled has other batches in each pass.

    Args:
        kind: "error": relative L2 distance of the outputs; "labels": share of the positions whose
            largest value along the last axis has another index, in outputs of which that axis is
            longer than 1.
        data: batches as for :func:`paddleq.calibrate`.

    Raises:
        ConfigError: the model has no output that can be compared.
    """

    def __init__(self, kind: str, data: Iterable):
        self.kind, self._data = kind, data
        self._batches: List[Any] = []
        self._expected: List[Any] = []

    def __call__(self, model: nn.Layer) -> float:
        """Return the metric of ``model``, at most 0."""
        if not self._expected:
            self._batches = list(iter_batches(model, self._data, None,
                                              "reading data to compare with the float model"))
            with quantizing_only(model, ()):
                self._expected = self._outputs(model)
        found = self._outputs(model)
        return 0.0 - (self._different_labels(found) if self.kind == "labels"
                      else self._error(found))

    def _outputs(self, model):
        kept = []

        def run(inputs):
            args, kwargs = inputs
            outputs = float_tensors(model(*args, **kwargs))
            if self.kind == "labels":
                outputs = [output.argmax(-1).numpy() for output in outputs
                           if output.ndim and output.shape[-1] > 1]
            if not outputs:
                raise wrong_value("metric", self.kind, _NOTHING_TO_COMPARE[self.kind])
            kept.append(outputs)

        run_batches(run, self._batches, "the data of the metric")
        return kept

    def _different_labels(self, found):
        pairs = [pair for each in zip(self._expected, found) for pair in zip(*each)]
        return (sum((one != other).sum() for one, other in pairs)
                / max(1, sum(one.size for one, _ in pairs)))

    def _error(self, found):
        ratio = SQNR("the output of the model")
        for expected, outputs in zip(self._expected, found):
            ratio.add(expected, outputs)
        return math.sqrt(ratio.noise / ratio.signal) if ratio.noise else 0.0
