"""Static post-training quantization with PaddleSlim's interface."""

import copy
import os
from typing import Any, Optional, Sequence, Union

from paddle import nn

from ... import engine, export, post_training
from ..._checks import check_bool, check_choice
from ..._distributed import groups
from ...algorithms.bias_correction import parse_bias_correction
from ...algorithms.reconstruction.settings import (
    NEAREST,
    has_learned_rounding,
    parse_round_type,
    recorded_round_type,
)
from ...analysis.accuracy import AccuracySearch
from ...analysis.mixed_bits import BitSearch, check_choices
from ...config import LayerConfig, Scope
from ...errors import ConfigError
from ...graph.fold_batch_norm import folded_tensors
from ...nn.class_swap import rollback_on_error
from ...post_training import PostTrainingPlan
from ...saved_model.full_scope import SCOPES
from .quantizers import make_quantizer
from .shared import layer_classes, rules_for, skip_rules, warn_unused_inputs


class PTQ:
    """Static post-training quantization with PaddleSlim's interface.

    The model of :meth:`quantize` computes in float and observes its inputs. After
    :meth:`calibrate`, or after forward calls and :meth:`convert`, it simulates the quantized one.

    Args:
        activation_quantizer: "KLQuantizer" (default), "HistQuantizer" or "AbsmaxQuantizer", the
            class of that name, a subclass of it, an instance, or the name of a registered
            observer.
        weight_quantizer: "PerChannelAbsmaxQuantizer" (default), "AbsmaxQuantizer",
            "PerChannelMSEQuantizer" or "MSEQuantizer", the class, a subclass, or an instance.
        round_type: rounding of the weights, by :meth:`calibrate`: "round" (default) to nearest,
            "adaround", "brecq", "qdrop" or another registered name, or its settings, such as
            :class:`paddleq.algorithms.AdaRound`.
        bias_correction: add the mean error of each output channel to the biases after
            :meth:`calibrate`: True or "fast" in one more pass over the data, "full" in one for
            each layer. See :func:`paddleq.algorithms.correct_biases`. Default False.
        equalize: equalize the ranges of the channels of successive layers before they are
            observed, on the ``inputs`` of :meth:`quantize` or the first batch, after ``fuse``;
            see :func:`paddleq.algorithms.equalize`. Default False.
        scope: "weighted" (default): quantize the inputs of layers with weights. "full", for a
            :class:`paddleq.SavedModel`: also those of additions, concatenations, average pools
            and products between them, and the outputs of convolutions that operators in float
            read, without which ONNX Runtime computes the convolutions in float. Paddle Inference
            with ``enable_mkldnn_int8()`` fuses these operators, and does not round between them.
        **kwargs: arguments of the activation quantizer, unless it is an instance:
            ``quant_bits``, ``bins``, ``upsample_bins``, ``hist_percent``.

    Raises:
        ConfigError, ConfigTypeError: an unknown quantizer or argument, or an invalid value.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Conv2D(1, 4, 3), paddle.nn.ReLU())
        >>> ptq = paddleq.PTQ("HistQuantizer", upsample_bins=127, hist_percent=0.999)
        >>> quantized = ptq.quantize(net)
        >>> ptq.calibrate(quantized, [paddle.rand([2, 1, 8, 8])])
        1
    """

    def __init__(self, activation_quantizer: Any = "KLQuantizer",
                 weight_quantizer: Any = "PerChannelAbsmaxQuantizer",
                 round_type: Any = NEAREST, bias_correction: Union[bool, str] = False,
                 scope: str = SCOPES[0], equalize: bool = False, **kwargs: Any) -> None:
        self.scope = check_choice("scope", scope, SCOPES)
        self.equalize = check_bool("equalize", equalize)
        self.bias_correction = parse_bias_correction(bias_correction)
        self.activation_quantizer = make_quantizer(
            "activation_quantizer", activation_quantizer, "activation", kwargs)
        self.weight_quantizer = make_quantizer("weight_quantizer", weight_quantizer, "weight", {})
        self.round_type = parse_round_type("round_type", round_type)
        self._bits: dict = {}  # name of a layer -> its bits, of quantize_with_bits

    def quantize(self, model: nn.Layer, inplace: bool = False, fuse: bool = False,
                 fuse_list: Optional[Sequence[Sequence[str]]] = None, inputs: Any = None,
                 skip: Any = None, quantizable_layer_type: Optional[Sequence] = None) -> nn.Layer:
        """Insert observers into ``model``, which collect statistics in each forward pass.

        Args:
            model: a float ``paddle.nn.Layer``.
            inplace: change ``model`` itself. Default False: a copy. The result is in evaluation
                mode.
            fuse: fold batch norms into the convolutions and linear layers before them, and
                multiplications and additions of parameters (``self.scale * x + self.bias``) into
                the weighted layers before or after them, along the data flow.
            fuse_list: names of the pairs to fold, ``[["conv1", "bn1"], ...]``. Default None: all
                norms and affine operators in the data flow that can be.
            inputs: example inputs (a tensor, a list of arguments or a dict) from which the pairs
                are found. Default None: the first calibration batch.
            skip: layers to leave float: a layer's name (the layer and all layers in it), a
                regular expression searched in all names, a layer class, or a list of them.
            quantizable_layer_type: layer classes or their names. Default: all registered ones
                but Embedding.

        Returns:
            The quantized model.

        Raises:
            ModelError: the model is already quantized, is not float32 or has nothing to quantize.
            FusionError: a pair of ``fuse_list`` cannot be folded; gives the reason.
            ConfigError: an entry of ``skip`` matches no layer.
        """
        check_bool("inplace", inplace)
        check_bool("fuse", fuse)
        engine.check_model(model)
        scope = Scope.parse(skip, model)
        if fuse_list is not None and not fuse:
            raise ConfigError("fuse_list has an effect with fuse=True only, but fuse is False")
        classes = None if quantizable_layer_type is None else layer_classes(
            "quantizable_layer_type", quantizable_layer_type)
        engine.warn_unmatched_types(model, classes or (), "quantizable_layer_type")
        warn_unused_inputs(inputs, fuse or self.equalize, "fuse")
        rules = rules_for(classes, self._config(), scope)
        for name, bits in self._bits.items():
            rules.add(Scope(names=[name]), bits and self._with_bits(*bits)._config())
        model = model if inplace else engine.copy_of(model)
        with rollback_on_error(model, folded_tensors(model) if fuse or self.equalize else ()):
            post_training.prepare(model, rules, self._plan(fuse=fuse, fuse_list=fuse_list), inputs)
            engine.set_provenance(
                model, "ptq", activation_quantizer=self.activation_quantizer.as_recipe(),
                weight_quantizer=self.weight_quantizer.as_recipe(), fuse=fuse, fuse_list=fuse_list,
                rules=[*(skip_rules(scope) or ()), *self._bit_rules()] or None,
                quantizable_layer_type=quantizable_layer_type,
                round_type=recorded_round_type(self.round_type),
                bias_correction=self.bias_correction, equalize=self.equalize or None,
                **({} if self.scope == SCOPES[0] else {"scope": self.scope}))
        return model

    def _plan(self, **settings: Any) -> PostTrainingPlan:
        """Return the plan of these arguments, with more of its ``settings``."""
        return PostTrainingPlan(**{
            "scope": self.scope, "equalize": self.equalize, "round_type": self.round_type,
            "bias_correction": self.bias_correction, **settings})

    def _config(self):
        return LayerConfig(weight=self.weight_quantizer.weight(),
                           activation=self.activation_quantizer.activation())

    def _with_bits(self, weight, activation):
        """Return a PTQ with other bits and without learned rounding and bias correction."""
        found = copy.copy(self)
        found.round_type = found.bias_correction = None
        for side, bits in (("weight_quantizer", weight), ("activation_quantizer", activation)):
            quantizer = copy.copy(getattr(self, side))
            quantizer.quant_bits = bits
            setattr(found, side, quantizer)
        return found

    def _bit_rules(self):
        """Return the bits of the layers as rules of recipes."""
        rules = []
        for name, bits in self._bits.items():
            ptq = bits and self._with_bits(*bits)
            rules.append({"name": name, **({"skip": True} if ptq is None else {
                "weight_quantizer": ptq.weight_quantizer.as_recipe(),
                "activation_quantizer": ptq.activation_quantizer.as_recipe()})})
        return rules

    def calibrate(self, model, data, num_batches=None):
        """Observe activations on batches of ``data``; see :func:`paddleq.calibrate`.

        With another ``round_type`` than "round" the batches are kept, and the rounding of the
        weights is learned on them; see :func:`paddleq.algorithms.reconstruct`. With
        ``bias_correction`` they are kept too, and the biases are corrected last. Afterwards the
        model simulates the quantized one.

        Returns:
            Number of batches used.
        """
        engine.check_quantized(model)
        return post_training.calibrate(model, self._plan(), engine.iter_batches(
            model, data, num_batches, "calibrating", allow_empty=bool(groups())))

    def convert(self, model: nn.Layer) -> nn.Layer:
        """Compute the scales from the statistics of plain forward calls.

        The model simulates quantization from then on. :meth:`calibrate` ends with this step.
        Layers that no data reached are left float, with a warning.

        Returns:
            The model, in place.

        Raises:
            CalibrationError: no layer saw data.
            ConfigError: ``round_type`` or ``bias_correction`` needs the data again, which
                :meth:`calibrate` has.
        """
        engine.check_quantized(model)
        if self.round_type is not None and not has_learned_rounding(model):
            raise ConfigError("round_type must be 'round' for forward calls and convert(), but is "
                              f"{type(self.round_type).__name__}, which learns the rounding from "
                              "batches: call calibrate(model, data)")
        if self.bias_correction is not None:
            raise ConfigError("bias_correction must be False for forward calls and convert(), but "
                              f"is {self.bias_correction!r}, which reads the batches again: call "
                              "calibrate(model, data)")
        engine.finalize(model)
        engine.set_state(model, "validation")
        engine.leave_uncalled_float(model)
        return model

    def quantize_with_accuracy(self, model, data, metric, max_drop, num_batches=None,
                               max_float=1.0, ranking_batches=4, evaluations=30, cost="layers",
                               **options):
        """Quantize and calibrate ``model``, and keep layers float that cost too much accuracy.

        :func:`paddleq.analysis.keep_accuracy` describes the search.

        Args:
            model: a float ``paddle.nn.Layer``, which may be a :class:`paddleq.SavedModel`.
            data: batches to calibrate and to rank the layers with, as for
                :func:`paddleq.calibrate`; iterated more than once.
            metric, max_drop, max_float, ranking_batches, evaluations, cost: see
                :func:`paddleq.analysis.keep_accuracy`. A function should measure the metric on
                other data.
            num_batches: calibrate on this many batches. Default: all.
            **options: of :meth:`quantize`.

        Returns:
            (the quantized model, calibrated; :class:`paddleq.analysis.AccuracyReport`: layers left
            float, the metric before and after, number of evaluations).

        Raises:
            AccuracyError: the drop cannot be met; reports the smallest drop found.
            CalibrationError, ModelError, ConfigError, ConfigTypeError: see :meth:`quantize`,
                :meth:`calibrate` and :func:`paddleq.analysis.keep_accuracy`.

        Examples:
            >>> import paddle, paddleq
            >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
            >>> net[0].weight.set_value(paddle.to_tensor([[500.0, 0.0], [0.0, 1.0]]))
            >>> net[1].weight.set_value(paddle.to_tensor([[0.001], [1.0]]))
            >>> x = paddle.linspace(0, 1, 32).reshape([16, 2])
            >>> expected = net(x)
            >>> def metric(model):
            ...     return -(model(x) - expected).abs().max()
            >>> quantized, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_accuracy(
            ...     net, [x], metric, max_drop=0.05)
            >>> list(report.left_float), type(quantized[1]).__name__
            (['1'], 'Linear')
        """
        search = AccuracySearch(data, metric, max_drop, max_float, ranking_batches, evaluations,
                                cost)
        quantized = self.quantize(model, **options)
        self.calibrate(quantized, data, num_batches)
        return quantized, search.run(quantized)

    def quantize_with_bits(self, model, data, choices=((8, 8), (4, 8), None), metric="error",
                           max_drop=None, max_cost=None, cost="bytes", num_batches=None,
                           ranking_batches=4, evaluations=30, **options):
        """Quantize and calibrate ``model`` with the bits of each layer that cost least.

        A copy of the model is calibrated for each choice, and
        :func:`~paddleq.analysis.sensitivity` measures the loss of each layer with it. Dynamic
        programming gives the choices of all layers for each cost. Bisection by the metric finds
        the cheapest ones that pass; each layer is then tried with fewer bits.

        Args:
            model: a float ``paddle.nn.Layer``, which may be a :class:`paddleq.SavedModel`.
            data: batches, as for :func:`paddleq.calibrate`; iterated more than once.
            choices: (bits of the weights, bits of the activations) from 2 to 16 that a layer can
                have; None leaves it float, but not all layers. No runtime here has int8 kernels
                for activations of other bits than 8: it computes these layers in float, with the
                rounding. ONNX has 16 bits from opset 21 on.
            metric: as for :func:`paddleq.analysis.keep_accuracy`. Default "error".
            max_drop: allowed drop of the metric; the cost is the least that meets it.
            max_cost: allowed share of the cost of the float model, instead; the noise of the
                layers is the least that it allows.
            cost: "bytes" (default) of the weights, or "bit_operations": multiplications times the
                bits of both factors, 32 in float.
            num_batches: calibrate on this many batches. Default: all.
            ranking_batches: number of batches for the sensitivities. Default 4.
            evaluations: evaluations of the metric after which no further trial is made. The
                search before the trials needs at most 9. Default 30.
            **options: of :meth:`quantize`, except ``inplace``: several copies are needed.

        Returns:
            (the quantized model, calibrated; :class:`paddleq.analysis.BitsReport`). A
            ``round_type`` and ``bias_correction`` apply to the result, not to the search.

        Raises:
            AccuracyError: no choice meets the drop.
            ConfigError, ConfigTypeError: an invalid argument, or a cost that no choice meets.
            CalibrationError, ModelError: see :meth:`quantize` and :meth:`calibrate`.

        Examples:
            >>> import paddle, paddleq
            >>> _ = paddle.seed(0)
            >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 8), paddle.nn.Linear(8, 64))
            >>> data = [paddle.rand([32, 8])]
            >>> quantized, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_bits(
            ...     net, data, max_cost=0.2)
            >>> report.layers, round(report.cost_share, 3)
            ({'0': (8, 8), '1': (4, 8)}, 0.139)
        """
        if check_bool("inplace", options.pop("inplace", False)):
            raise ConfigError("inplace must be False for quantize_with_bits, which quantizes "
                              "several copies of the model")
        search = BitSearch(data, metric, max_drop, max_cost, cost, ranking_batches, evaluations)
        choices, models = check_choices(choices), {}
        for choice in choices:
            if choice is not None:
                ptq = self._with_bits(*choice)
                models[choice] = ptq.quantize(model, **options)
                ptq.calibrate(models[choice], data, num_batches)
        report, ptq = search.run(models, None in choices), copy.copy(self)
        ptq._bits = report.layers
        quantized = ptq.quantize(model, **options)
        ptq.calibrate(quantized, data, num_batches)
        return quantized, report

    def save_quantized_model(self, model: nn.Layer, path: Union[str, os.PathLike],
                             input_spec: Optional[Sequence] = None, onnx_format: bool = True,
                             format: str = "pdmodel", target: Optional[str] = None) -> None:
        """Export for deployment: writes ``path.pdmodel`` and ``path.pdiparams``.

        The model in memory keeps its state. After :meth:`calibrate` or :meth:`convert` it simulates
        the exported file. If it was calibrated by calling it, it still computes in float and
        observes each batch, and a warning says so: call :meth:`convert` before you evaluate it.

        Args:
            model: a calibrated model that :meth:`quantize` returned. It is not changed.
            onnx_format: True (default): ``quantize_linear`` / ``dequantize_linear`` with
                integer weights; False: ``fake_*`` operators with float weights.
            path, input_spec, format, target: as for :meth:`paddleq.QAT.save_quantized_model`.

        Raises:
            CalibrationError: no layer saw calibration data.
            ExportError: the exported graph contains layers that saw no calibration data; or the
                trace lost quantized layers. Names the layers.
            TraceError: Paddle could not trace the model into a program.
        """
        check_bool("onnx_format", onnx_format)
        export.save(model, path, input_spec, onnx_format=onnx_format, format=format,
                    target=target)
