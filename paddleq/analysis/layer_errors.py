"""Quantization error of each layer, alone and accumulated over the layers before it."""

from dataclasses import dataclass
from typing import Iterable, List, Optional, Sequence

from paddle import nn

from .._layer_state import read_state
from ..engine import (
    check_model,
    eager_evaluation,
    iter_batches,
    quantized_layers,
    quantizing_only,
    run_batches,
)
from ..errors import ConfigError, ModelError
from ..graph import FoldedNorm
from ..graph.calls import capture_calls
from ..nn.call_numbers import repeated_call
from .layer_results import LayerResults, check_calibrated, frozen_layers, is_frozen
from .sqnr import SQNR, float_tensors, format_db


@dataclass(frozen=True)
class LayerError:
    """Errors of one quantized layer: SQNR in dB, ``None`` where there is nothing to compare.

    Attributes:
        name: name of the layer.
        type: class of the float layer.
        alone: SQNR of its output with the inputs of the float model.
        accumulated: SQNR of its output when all layers are quantized.
        input: SQNR of its quantized inputs, compared with the inputs of the float model.
        weight: SQNR of its quantized weights. Comparing ``input`` and ``weight`` shows the source
            of the error.

    Examples:
        >>> from paddleq.analysis import LayerError
        >>> row = LayerError("fc", "Linear", alone=11.0, accumulated=10.2, input=11.1, weight=45.0)
        >>> row.input < row.weight  # the activation causes the error
        True
    """

    name: str
    type: str
    alone: Optional[float]
    accumulated: Optional[float]
    input: Optional[float]
    weight: Optional[float]


class LayerErrors(LayerResults):
    """Result of :func:`layer_errors`: :class:`LayerError` rows in the order of the model.

    Attributes:
        rows: the rows.
        output: SQNR of the output of the model in dB.

    Examples:
        >>> from paddleq.analysis import LayerError, LayerErrors
        >>> print(LayerErrors([LayerError("conv1", "Conv2D", 35.0, 35.0, 36.2, 44.0),
        ...                    LayerError("conv2", "Conv2D", 12.5, 12.1, 12.6, 45.1)], output=14.0))
        layer | type   | alone | accumulated | input | weight
        ------+--------+-------+-------------+-------+-------
        conv2 | Conv2D | 12.5  | 12.1        | 12.6  | 45.1
        conv1 | Conv2D | 35.0  | 35.0        | 36.2  | 44.0
        SQNR in dB; output of the model: 14.0
    """

    def __init__(self, rows: Iterable[LayerError], output: Optional[float]):
        super().__init__(rows)
        self.output = output

    def ranking(self) -> List[LayerError]:
        """Return the rows by ``alone``, worst first, without layers that no data reached."""
        return sorted((row for row in self.rows if row.alone is not None),
                      key=lambda row: row.alone)

    def table(self) -> str:
        """Return the rows as text, worst first, and a line for the output of the model."""
        return f"{super().table()}\nSQNR in dB; output of the model: {format_db(self.output)}"

    def _columns(self):
        return {column: lambda row, column=column: format_db(getattr(row, column))
                for column in ("alone", "accumulated", "input", "weight")}


def layer_errors(model: nn.Layer, data: Iterable, float_model: Optional[nn.Layer] = None,
                 num_batches: Optional[int] = None) -> LayerErrors:
    """Compare the output of each quantized layer with the float one.

    Each batch runs twice. The float pass also computes each layer quantized on the same inputs
    (``alone``). The quantized pass gives the error that includes all layers before it
    (``accumulated``). The float outputs of one batch are kept in memory in between.

    The ratio is 10 * log10(sum(float^2) / sum((quantized - float)^2)) over all batches and calls
    of a layer: 20 dB are an error of 10 %, 40 dB of 1 %; one bit is worth 6 dB. If a batch norm or
    ReLU is fused with the layer, the output of the last of them is compared.

    Args:
        model: quantized model with its scales, calibrated or trained.
        data: iterable of batches, as for :func:`paddleq.calibrate`.
        float_model: model to compare with. Default: ``model`` without its quantizers. Pass the
            float model from which ``model`` was made, with the same layer names, if quantization
            also changed the weights (training, GPTQ), or if layers are frozen to integers. Frozen
            layers have no ``input`` and ``weight`` errors.
        num_batches: number of batches to use. Default: all.

    Returns:
        :class:`LayerErrors`, which can be iterated and printed; ``worst(5)`` are the names of the
        five worst layers.

    Raises:
        CalibrationError: the model is not calibrated, or there is no batch.
        ModelError: the model is not quantized, or ``float_model`` is quantized or another network.
        NonFiniteError: the output of a layer is NaN or infinite; names the layer.
        ConfigError, ConfigTypeError: a batch does not fit the ``forward`` of the model.

    Examples:
        >>> import paddle, paddleq
        >>> data = [paddle.linspace(-1, 1, 64).reshape([16, 4])]
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.Linear(8, 2))
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, data)
        >>> errors = paddleq.analysis.layer_errors(quantized, data)
        >>> [row.name for row in errors], errors["1"].accumulated > 25
        (['0', '1'], True)
    """
    comparison = LayerComparison(model, float_model)
    run_batches(lambda inputs: comparison.add(*inputs),
                iter_batches(model, data, num_batches, "comparing layers"), "data")
    return comparison.result()


class LayerComparison:
    """Implementation of :func:`layer_errors` that receives one batch at a time."""

    def __init__(self, model: nn.Layer, float_model: Optional[nn.Layer] = None):
        frozen = frozen_layers(model)
        if not frozen:
            check_calibrated(model)
        elif float_model is None:
            raise ConfigError("float_model must be the float model, because model has layers that "
                              "are frozen to integers, but is None")
        if float_model is not None:
            check_model(float_model)
        self.model = model
        self.reference = model if float_model is None else float_model
        self.layers = {**dict(quantized_layers(model)), **frozen}
        self.all_layers = dict(model.named_sublayers(include_self=True))
        self.blocks = {name: read_state(layer).block for name, layer in self.layers.items()}
        self.fused = {name: [other for other, each in self.all_layers.items()
                             if block is not None and (each is block.norm or each is block.relu)
                             or isinstance(each, FoldedNorm) and each._folded_into == name]
                      for name, block in self.blocks.items()}
        self.reference_layers = dict(self.reference.named_sublayers(include_self=True))
        missing = [name for own, fused in self.fused.items() for name in (own, *fused)
                   if name not in self.reference_layers]
        if missing:
            raise ModelError("float_model must have the layers of model, but has no "
                             f"{', '.join(map(repr, missing))}")
        self.ratios = {name: {column: SQNR(f"the {tensor} of {name or 'the model'!r}")
                              for column, tensor in (("alone", "output"), ("accumulated", "output"),
                                                     ("input", "input"))}
                       for name in self.layers}
        self.output = SQNR("the output of the model")
        self._floats = {}  # name -> float outputs of the layer, one for each call on this batch

    def add(self, args: Sequence, kwargs: dict) -> None:
        """Run a batch through both models."""
        self._floats = {name: [] for name in self.layers}
        with eager_evaluation(self.model, self.reference):
            references = {name: self.reference_layers[name] for name in self.layers}
            with quantizing_only(self.model, ()), capture_calls(references, self._compare_alone):
                expected = self.reference(*args, **kwargs)
            with capture_calls(self.layers, self._compare_accumulated):
                self.output.add(expected, self.model(*args, **kwargs))

    def result(self) -> LayerErrors:
        """Return the errors over all batches so far."""
        with eager_evaluation(self.model):
            rows = [LayerError(name, type(self.reference_layers[name]).__name__
                               if is_frozen(layer) else layer._float_class.__name__,
                               weight=_weight_ratio(layer, name),
                               **{column: ratio.db for column, ratio in self.ratios[name].items()})
                    for name, layer in self.layers.items()]
        return LayerErrors(rows, self.output.db)

    def _compare_alone(self, name, args, kwargs, output):
        layer, ratios = self.layers[name], self.ratios[name]
        expected = self._fused_output(name, output, self.reference_layers)
        # Copies, because a following operator may change its input in place.
        self._floats[name].append([tensor.clone() for tensor in float_tensors(expected)])
        number = len(self._floats[name]) - 1
        if is_frozen(layer):
            with repeated_call(layer, number):
                found = layer.forward(*args, **kwargs)
            ratios["alone"].add(expected, self._fused_output(name, found))
            return
        layer._paddleq.compute_float = False
        try:
            with repeated_call(layer, number):
                found = layer.swapped_forward(args, kwargs)
            ratios["alone"].add(expected, self._fused_output(name, found))
            for before, after in _quantized_inputs(layer, args, kwargs, number):
                ratios["input"].add(before, after)
        finally:
            layer._paddleq.compute_float = True

    def _compare_accumulated(self, name, _args, _kwargs, output):
        # With control flow that depends on the data, a call may have no counterpart.
        if self._floats[name]:
            self.ratios[name]["accumulated"].add(self._floats[name].pop(0),
                                                 self._fused_output(name, output))

    def _fused_output(self, name, output, layers=None):
        """Apply the norm and ReLU that are fused with a layer to its output."""
        block = self.blocks[name]
        relu_input = None if block is None else block._relu_input
        for member in self.fused[name]:
            output = (layers or self.all_layers)[member].forward(output)
        if block is not None:
            block._relu_input = relu_input
        return output


def _quantized_inputs(layer, args, kwargs, number):
    """Return (float, quantized) of each argument of a call that the layer quantizes."""
    new_args, new_kwargs = layer.quantize_inputs(args, kwargs, number)
    pairs = [*zip(args, new_args), *((kwargs[name], new_kwargs[name]) for name in kwargs)]
    return [(before, after) for before, after in pairs if before is not after]


def _weight_ratio(layer, name):
    """Return the SQNR of the quantized weights of the layer in dB, None without any."""
    if is_frozen(layer):
        return None
    ratio = SQNR(f"the weight of {name or 'the model'!r}")
    for weight in layer._paddleq.kind.weights:
        if layer.weight_parts(weight)[1] is not None:
            value = layer.weight_to_quantize(weight)
            ratio.add(value, layer.quantized_weight(weight, value))
    return ratio.db
