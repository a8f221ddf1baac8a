"""Shared parts of the analyses: results with one row for each layer, and checks of the model."""

import abc
from typing import Any, Callable, Dict, Iterable, Iterator, List

from paddle import nn

from .._checks import check_int, check_layer, hint
from ..engine import check_quantized, fake_quantizers, is_left_float, quantized_layers
from ..engine.state import uncalled_layers
from ..engine.summary import table
from ..errors import CalibrationError, ConfigError, ModelError
from ..fake_quant.fake_quantize import State
from ..nn.integer_layer import IntegerLayer


class LayerResults(abc.ABC):
    """Rows with a ``name`` and a ``type``, one for each layer, in the order of the model."""

    def __init__(self, rows: Iterable):
        self.rows = list(rows)

    def __iter__(self) -> Iterator:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Any:
        """Return the row of the layer ``name``."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"there is no layer {name!r}{hint(name, [row.name for row in self])}")

    def __str__(self) -> str:
        return self.table()

    @abc.abstractmethod
    def ranking(self) -> List:
        """Return the rows, worst first, without those of layers that no data reached."""

    def worst(self, count: int = 1) -> List[str]:
        """Return the names of the ``count`` worst layers, worst first."""
        check_int("count", count, 1)
        return [row.name for row in self.ranking()[:count]]

    def table(self) -> str:
        """Return the rows as text, worst first. Layers that no data reached come last."""
        ranking, columns = self.ranking(), self._columns()
        rows = ranking + [row for row in self.rows if row not in ranking]
        return table([("layer", "type", *columns),
                      *((row.name or "(model)", row.type, *(text(row) for text in columns.values()))
                        for row in rows)])

    @abc.abstractmethod
    def _columns(self) -> Dict[str, Callable[[Any], str]]:
        """Return, by title, functions that format a number of a row."""


def is_frozen(layer: nn.Layer) -> bool:
    """Return True if ``layer`` has integer weights instead of simulated quantization."""
    return isinstance(layer, IntegerLayer)


def frozen_layers(model: nn.Layer) -> Dict[str, nn.Layer]:
    """Return the layers of ``model`` that are frozen to integers, by name."""
    check_layer("model", model, "a quantized paddle.nn.Layer")
    return {name: layer for name, layer in model.named_sublayers(include_self=True)
            if is_frozen(layer)}


def check_simulated(model: nn.Layer) -> None:
    """Raise unless ``model`` is quantized and no layer is frozen to integers."""
    frozen = frozen_layers(model)
    if frozen:
        raise ModelError(f"the layer {next(iter(frozen))!r} is frozen to integers, whose "
                         "quantization cannot be disabled; analyse the model before freeze()")
    check_quantized(model)


def computed_layers(model: nn.Layer) -> Dict[str, nn.Layer]:
    """Return the quantized layers by name, but those that calibration left float."""
    return {name: layer for name, layer in quantized_layers(model) if not is_left_float(layer)}


def check_calibrated(model: nn.Layer) -> None:
    """Raise unless ``model`` is simulated and its quantizers have a scale and use it.

    Layers that no data reached need none, if there are others.
    """
    check_simulated(model)
    found, uncalled = fake_quantizers(model), set()
    if any(quantizer.initialized and not quantizer.observer.dynamic for _, quantizer in found):
        uncalled = {id(quantizer) for _, layer in uncalled_layers(model)
                    for _, quantizer in layer.quantizers()}
    pending = [name for name, quantizer in found
               if quantizer.state is State.CALIBRATION
               or not quantizer.initialized and id(quantizer) not in uncalled]
    if pending:
        raise CalibrationError(
            f"{len(pending)} of {len(found)} quantizers are not calibrated: {', '.join(pending)}; "
            "run calibrate() (PTQ) or training steps (QAT) that reach these layers first")
