"""The error that quantization makes in each layer, and the one that has come together there."""

from dataclasses import dataclass
from typing import Optional

from ..engine import (
    capture_calls,
    check_model,
    eager_evaluation,
    iter_batches,
    quantized_layers,
    quantizing_only,
)
from ..errors import ModelError
from ..graph import FoldedNorm
from .check_deployable import check_simulates
from .ranked import Ranked
from .sqnr import SQNR, shown, tensors_in


@dataclass(frozen=True)
class LayerError:
    """What one quantized layer loses; ratios in dB, None where there is nothing to compare.

    Attributes:
        name, type: of the float layer.
        alone: SQNR of its output when its inputs are those of the float model.
        accumulated: SQNR of its output when all layers are quantized.
        input, weight: SQNR of its quantized inputs and weights themselves, on the float model's
            inputs: which of the two is to blame. None where there is no such quantizer.

    Examples:
        >>> from paddleq.analysis import LayerError
        >>> row = LayerError("fc", "Linear", alone=11.0, accumulated=10.2, input=11.1, weight=45.0)
        >>> row.input < row.weight  # its activation is to blame
        True
    """

    name: str
    type: str
    alone: Optional[float]
    accumulated: Optional[float]
    input: Optional[float]
    weight: Optional[float]


class LayerErrors(Ranked):
    """What :func:`layer_errors` returns: :class:`LayerError` rows in the model's order.

    Attributes:
        rows: the rows.
        output: SQNR of the model's output in dB.

    Examples:
        >>> from paddleq.analysis import LayerError, LayerErrors
        >>> print(LayerErrors([LayerError("conv1", "Conv2D", 35.0, 35.0, 36.2, 44.0),
        ...                    LayerError("conv2", "Conv2D", 12.5, 12.1, 12.6, 45.1)], output=14.0))
        layer | type   | alone | accumulated | input | weight
        ------+--------+-------+-------------+-------+-------
        conv2 | Conv2D | 12.5  | 12.1        | 12.6  | 45.1
        conv1 | Conv2D | 35.0  | 35.0        | 36.2  | 44.0
        SQNR in dB; of the model's output: 14.0
    """

    def __init__(self, rows, output):
        super().__init__(rows)
        self.output = output

    def ranking(self):
        """The rows by ``alone``, worst first; without those of layers that no data reached."""
        return sorted((row for row in self.rows if row.alone is not None),
                      key=lambda row: row.alone)

    def table(self):
        """The rows as text, worst first, and a line for the model's output."""
        return f"{super().table()}\nSQNR in dB; of the model's output: {shown(self.output)}"

    def _titles(self):
        return "layer", "type", "alone", "accumulated", "input", "weight"

    def _cells(self, row):
        return (row.name or "(model)", row.type, shown(row.alone), shown(row.accumulated),
                shown(row.input), shown(row.weight))


def layer_errors(model, loader, float_model=None, batch_num=None):
    """Compare every quantized layer's output with the float one.

    Each batch runs twice: once in float, where each layer is also computed quantized on the same
    inputs (``alone``: what it loses itself), and once quantized (``accumulated``: what it loses
    with all that came before it). The float outputs of one batch are held meanwhile.

    The ratio is 10 * log10(sum(float^2) / sum((quantized - float)^2)) over all batches and calls
    of a layer: 20 dB are an error of 10 %, 40 dB of 1 %; one bit is worth 6 dB. Where a batch norm
    or ReLU was joined to the layer, the output is what leaves them.

    Args:
        model: a quantized model with its scales: calibrated or trained.
        loader: an iterable of batches, as for :func:`paddleq.calibrate`.
        float_model: what to compare with; None (default): ``model`` without its quantizers. Say it
            where quantization also changed the weights (training, GPTQ): the float model from
            which ``model`` was made, its layers under the same names.
        batch_num: look at this many batches. Default: all.

    Returns:
        :class:`LayerErrors`: iterate over it, ``print`` it, or ask for its ``worst(5)``.

    Raises:
        CalibrationError: the model is not calibrated, or the loader is empty.
        ModelError: the model is not quantized, or ``float_model`` is, or is another network.
        NonFiniteError: NaN or infinity in a layer's output; names the layer.
        ConfigError, ConfigTypeError: a batch does not fit the model's ``forward``.

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
    for args, kwargs in iter_batches(model, loader, batch_num, "comparing layers"):
        comparison.add(args, kwargs)
    return comparison.result()


class LayerComparison:
    """What :func:`layer_errors` does, batch by batch."""

    def __init__(self, model, float_model=None):
        check_simulates(model)
        if float_model is not None:
            check_model(float_model)
        self.model = model
        self.reference = model if float_model is None else float_model
        self.layers = dict(quantized_layers(model))
        self.ends = {name: End(model, layer, name) for name, layer in self.layers.items()}
        self.reference_layers = _layers_like(self.reference, self.ends)
        self.ratios = {name: {column: SQNR(f"{what} {name or 'the model'!r}") for column, what in (
            ("alone", "the output of"), ("accumulated", "the output of"),
            ("input", "the input of"))} for name in self.layers}
        self.output = SQNR("the model's output")
        self._floats = {}  # name -> what left the layer, for each of its calls on this batch

    def add(self, args, kwargs):
        """Run a batch through both models."""
        self._floats = {name: [] for name in self.layers}
        with eager_evaluation(self.model, self.reference):
            with quantizing_only(self.model, ()), capture_calls(
                    {name: self.reference_layers[name] for name in self.layers}, self._see_float):
                expected = self.reference(*args, **kwargs)
            with capture_calls(self.layers, self._see_quantized):
                self.output.add(expected, self.model(*args, **kwargs))

    def result(self):
        """:class:`LayerErrors` of all batches so far."""
        with eager_evaluation(self.model):
            rows = [LayerError(name, type(layer)._paddleq_float_class.__name__,
                               weight=_weight_ratio(layer, name),
                               **{column: ratio.db for column, ratio in self.ratios[name].items()})
                    for name, layer in self.layers.items()]
        return LayerErrors(rows, self.output.db)

    def _see_float(self, name, args, kwargs, output):
        layer, end, ratios = self.layers[name], self.ends[name], self.ratios[name]
        expected = end.of(output, self.reference_layers)
        # Copies: what follows may change its input in place.
        self._floats[name].append([tensor.clone() for tensor in tensors_in(expected)])
        layer._paddleq_as_float = False
        try:
            ratios["alone"].add(expected, end.of(layer.quantized_forward(args, kwargs)))
            for before, after in _quantized_inputs(layer, args, kwargs):
                ratios["input"].add(before, after)
        finally:
            layer._paddleq_as_float = True

    def _see_quantized(self, name, _args, _kwargs, output):
        # (Where control flow depends on the data, a call may have no counterpart.)
        if self._floats[name]:
            self.ratios[name]["accumulated"].add(self._floats[name].pop(0),
                                                 self.ends[name].of(output))


class End:
    """Where a layer's output is looked at: behind the batch norm and ReLU joined to it, if any.

    Args:
        model, layer, name: the quantized layer and the model in which it has this name.
    """

    def __init__(self, model, layer, name):
        self.block = layer._paddleq_block
        joined = [] if self.block is None else [self.block.norm, self.block.relu]
        self.members = {other: each for other, each in model.named_sublayers()
                        if any(each is one for one in joined)
                        or isinstance(each, FoldedNorm) and each._folded_into == name}

    def of(self, output, layers=None):
        """What leaves them when ``output`` leaves the layer.

        Args:
            layers: name -> layer, those of another model that are to be used.
        """
        on_its_way = None if self.block is None else self.block._on_its_way
        for name, member in self.members.items():
            output = (member if layers is None else layers[name]).forward(output)
        if self.block is not None:
            self.block._on_its_way = on_its_way
        return output


def _layers_like(reference, ends):
    """The layers of the float model by their names; raises if one that is needed is missing."""
    layers = dict(reference.named_sublayers(include_self=True))
    missing = [name for own, end in ends.items() for name in (own, *end.members)
               if name not in layers]
    if missing:
        raise ModelError("float_model must have the layers of model, but has no "
                         f"{', '.join(map(repr, missing))}")
    return layers


def _quantized_inputs(layer, args, kwargs):
    """(before, after) of the arguments of a call that the layer quantizes."""
    new_args, new_kwargs = layer.quantize_inputs(args, kwargs)
    pairs = [*zip(args, new_args), *((kwargs[name], new_kwargs[name]) for name in kwargs)]
    return [(before, after) for before, after in pairs if before is not after]


def _weight_ratio(layer, name):
    """SQNR of the layer's quantized weights in dB, None if it has none."""
    ratio = SQNR(f"the weight of {name or 'the model'!r}")
    for weight in layer._paddleq_kind.weights:
        if layer.weight_parts(weight)[1] is not None:
            value = layer.weight_to_quantize(weight)
            ratio.add(value, layer.quantized_weight(weight, value))
    return ratio.db
