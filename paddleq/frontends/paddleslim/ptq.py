"""Static post-training quantization with PaddleSlim's interface."""

import os
from typing import Any, Optional, Sequence, Union

from paddle import nn

from ... import engine, export
from ..._checks import check_bool
from ...analysis.accuracy import AccuracySearch
from ...config import LayerConfig, Scope
from ...engine.example_inputs import fold_batch_norms
from ...errors import ConfigError
from ...graph.fold_batch_norm import folded_tensors
from ...nn.class_swap import rollback_on_error
from .quantizers import make_quantizer
from .shared import (
    insert_observers,
    layer_classes,
    rules_for,
    skip_rules,
    warn_unused_inputs,
)


class PTQ:
    """Static post-training quantization with PaddleSlim's interface.

    The model of :meth:`quantize` computes in float and observes its inputs. After
    :meth:`calibrate`, or after forward calls and :meth:`convert`, it simulates the quantized one.

    Args:
        activation_quantizer: "KLQuantizer" (default), "HistQuantizer" or "AbsmaxQuantizer", the
            class of that name, a subclass of it, an instance, or the name of a registered
            observer.
        weight_quantizer: "PerChannelAbsmaxQuantizer" (default) or "AbsmaxQuantizer", the class,
            a subclass, or an instance.
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
                 weight_quantizer: Any = "PerChannelAbsmaxQuantizer", **kwargs: Any) -> None:
        self.activation_quantizer = make_quantizer(
            "activation_quantizer", activation_quantizer, "activation", kwargs)
        self.weight_quantizer = make_quantizer("weight_quantizer", weight_quantizer, "weight", {})

    def quantize(self, model: nn.Layer, inplace: bool = False, fuse: bool = False,
                 fuse_list: Optional[Sequence[Sequence[str]]] = None, inputs: Any = None,
                 skip: Any = None, quantizable_layer_type: Optional[Sequence] = None) -> nn.Layer:
        """Insert observers into ``model``, which collect statistics in each forward pass.

        Args:
            model: a float ``paddle.nn.Layer``.
            inplace: change ``model`` itself. Default False: a copy. The result is in evaluation
                mode.
            fuse: fold batch norms into the convolutions and linear layers before them.
            fuse_list: names of the pairs to fold, ``[["conv1", "bn1"], ...]``. Default None: all
                pairs in the data flow.
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
        warn_unused_inputs(inputs, fuse, "fuse")
        config = LayerConfig(weight=self.weight_quantizer.weight(),
                             activation=self.activation_quantizer.activation())
        model = model if inplace else engine.copy_of(model)
        with rollback_on_error(model, folded_tensors(model) if fuse else ()):
            insert_observers(model, rules_for(classes, config, scope),
                             (lambda: fold_batch_norms(model, inputs, fuse_list)) if fuse else None)
            engine.set_provenance(
                model, "ptq", activation_quantizer=self.activation_quantizer.as_recipe(),
                weight_quantizer=self.weight_quantizer.as_recipe(), fuse=fuse, fuse_list=fuse_list,
                rules=skip_rules(scope), quantizable_layer_type=quantizable_layer_type)
        return model

    def calibrate(self, model, data, num_batches=None):
        """Observe activations on batches of ``data``; see :func:`paddleq.calibrate`.

        Afterwards the model simulates the quantized one.

        Returns:
            Number of batches used.
        """
        return engine.calibrate(model, data, num_batches)

    def convert(self, model: nn.Layer) -> nn.Layer:
        """Compute the scales from the statistics of plain forward calls.

        The model simulates quantization from then on. :meth:`calibrate` ends with this step.
        Layers that no data reached are left float, with a warning.

        Returns:
            The model, in place.

        Raises:
            CalibrationError: no layer saw data.
        """
        engine.check_quantized(model)
        engine.finalize(model)
        engine.set_state(model, "validation")
        engine.leave_uncalled_float(model)
        return model

    def quantize_with_accuracy(self, model, data, metric, max_drop, num_batches=None,
                               max_float=1.0, ranking_batches=4, evaluations=30, **options):
        """Quantize and calibrate ``model``, and keep layers float that cost too much accuracy.

        :func:`paddleq.analysis.keep_accuracy` describes the search.

        Args:
            model: a float ``paddle.nn.Layer``.
            data: batches to calibrate and to rank the layers with, as for
                :func:`paddleq.calibrate`; iterated more than once.
            metric, max_drop, max_float, ranking_batches, evaluations: see
                :func:`paddleq.analysis.keep_accuracy`. Measure the metric on other data.
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
        search = AccuracySearch(data, metric, max_drop, max_float, ranking_batches, evaluations)
        quantized = self.quantize(model, **options)
        self.calibrate(quantized, data, num_batches)
        return quantized, search.run(quantized)

    def save_quantized_model(self, model: nn.Layer, path: Union[str, os.PathLike],
                             input_spec: Optional[Sequence] = None, onnx_format: bool = True,
                             format: str = "pdmodel") -> None:
        """Export for deployment: writes ``path.pdmodel`` and ``path.pdiparams``.

        The model in memory keeps its state. After :meth:`calibrate` or :meth:`convert` it simulates
        the exported file. If it was calibrated by calling it, it still computes in float and
        observes each batch, and a warning says so: call :meth:`convert` before you evaluate it.

        Args:
            model: a calibrated model that :meth:`quantize` returned. It is not changed.
            onnx_format: True (default): ``quantize_linear`` / ``dequantize_linear`` with
                integer weights; False: ``fake_*`` operators with float weights.
            path, input_spec, format: as for :meth:`paddleq.QAT.save_quantized_model`.

        Raises:
            CalibrationError: no layer saw calibration data.
            ExportError: the exported graph contains layers that saw no calibration data; or the
                trace lost quantized layers. Names the layers.
            TraceError: Paddle could not trace the model into a program.
        """
        check_bool("onnx_format", onnx_format)
        export.save(model, path, input_spec, onnx_format=onnx_format, format=format)
