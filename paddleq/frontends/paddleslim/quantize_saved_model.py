"""Quantize saved models with the engine and write their programs."""

import inspect
import logging
import os
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Iterable, List, Tuple

from ... import engine
from ..._checks import check_bool, check_choice, check_float, check_int, wrong_type
from ...algorithms.bias_correction import correct_on_batches, parse_bias_correction
from ...algorithms.equalization import equalize_on
from ...algorithms.reconstruction.driver import reconstruct_on
from ...analysis import Sensitivities, sensitivity
from ...analysis.accuracy import accuracy_search
from ...config import LayerConfig
from ...config.layer_config import check_activation_observer
from ...engine.hooks import eager_evaluation
from ...export.markers import simulated_weight
from ...export.paddle.lower import ProgramLowering, save_for
from ...export.program.program import Program
from ...export.provenance_file import Provenance
from ...export.trace import trace
from ...graph.fold_batch_norm import fuse
from ...observers import OBSERVERS
from ...observers.histogram import HIST_PERCENT
from ...saved_model import SavedModel
from .operator_rules import DEFAULT_OPS, check_op_types, operator_rules, warn_unmatched
from .quantizers import (
    AbsmaxQuantizer,
    MSEQuantizer,
    ObserverQuantizer,
    PerChannelAbsmaxQuantizer,
    PerChannelMSEQuantizer,
)
from .shared import SCOPES, extend_rules
from .static_arguments import SampleBatches

_logger = logging.getLogger("paddleq")
# weight_quantize_type -> quantizer of the weights
WEIGHT_QUANTIZERS = {"channel_wise_abs_max": PerChannelAbsmaxQuantizer,
                     "abs_max": AbsmaxQuantizer,
                     "channel_wise_mse": PerChannelMSEQuantizer, "mse": MSEQuantizer}


def sensitivity_post_static(files, data_loader, **options):
    """Measure the loss of the output when each operator of a saved model is quantized alone.

    Return :class:`~paddleq.analysis.Sensitivities`, named after the weights, or the outputs of
    operators without weights. The arguments are those of :func:`calibrated_model`.
    """
    batches = list(islice(data_loader, options.get("batch_nums")))  # iterated twice
    model = calibrated_model(files, batches, **options)

    def named(row):
        binding = model.bindings.get(row.name)
        if binding is None:
            return replace(row, type=getattr(model, row.name).function.operator.type)
        return replace(row, name=binding.weight, type=binding.operator.type)

    return Sensitivities(map(named, sensitivity(model, batches)))


def calibrated_model(files, data_loader, config=None, batch_nums=None,
                     quantizable_op_type=DEFAULT_OPS, optimize_model=True, skip_tensor_list=None,
                     round_type=None, bias_correction=False, accuracy=None, equalize=False,
                     scope=SCOPES[0], **quantizers):
    """Return the calibrated :class:`paddleq.SavedModel` that :func:`quant_post_static` writes.

    The arguments are those of that function and the files of the model. A ``config`` replaces
    the ``quantizers``: the bits, ``algo``, ``hist_percent`` and ``weight_quantize_type``.
    ``round_type`` is an :class:`paddleq.algorithms.AdaRound`, or None to round to nearest.
    ``scope`` is that of :class:`paddleq.PTQ`.
    """
    config = _layer_config(**quantizers) if config is None else config
    for name, spec in (("weight_bits", config.weight_spec),
                       ("activation_bits", config.activation_spec)):
        check_int(name, spec and spec.bits, 2, 8)
    check_bool("optimize_model", optimize_model)
    correction = parse_bias_correction(bias_correction)
    if accuracy is not None:
        accuracy_search(accuracy, ())  # checks it
    if batch_nums is not None:
        check_int("batch_nums", batch_nums, 1)
    skip = [] if skip_tensor_list is None else skip_tensor_list
    if isinstance(skip, str) or not all(isinstance(name, str) for name in skip):
        raise wrong_type("skip_tensor_list", skip_tensor_list, "a list of names")
    op_types = check_op_types(quantizable_op_type) - {"lookup_table_v2"}
    model = SavedModel(*files)
    warn_unmatched(model, quantizable_op_type)
    rules = operator_rules(model, op_types, config, skip, scope)
    if optimize_model:  # after the rules, because variables in skip_tensor_list may be gone then
        model.fold_affines()
    argument = "data_loader"
    if isinstance(data_loader, SampleBatches):
        data_loader, argument = data_loader.of(model), "sample_generator"
    if accuracy is not None and isinstance(data_loader, Iterable):
        data_loader = list(islice(data_loader, batch_nums))  # read again
    batches = engine.iter_batches(model, data_loader, batch_nums, "calibrating",
                                  argument=argument)
    first = next(batches)
    if round_type is not None or correction is not None:
        batches = list(batches)  # read again

    def run(inputs):
        args, kwargs = inputs
        return model(*args, **kwargs)

    def run_first():
        with first.errors_named():
            run(first)

    def change():
        if optimize_model:
            fuse(model, run_first)
        if equalize:
            with eager_evaluation(model):
                equalize_on(model, lambda: run(first))

    finish = extend_rules(model, rules, scope, optimize_model, skip)
    engine.prepare(model, rules, change)
    finish()
    with engine.calibrating(model):
        engine.run_batches(run, chain([first], batches))
    if round_type is not None:
        reconstruct_on(model, [first, *batches], round_type)
    if correction is not None:
        correct_on_batches(model, [first, *batches], correction)
    if accuracy is not None:
        accuracy_search(accuracy, data_loader).run(model)
    return model


def _layer_config(algo="hist", hist_percent=HIST_PERCENT, weight_bits=8, activation_bits=8,
                  weight_quantize_type="channel_wise_abs_max"):
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        check_int(name, bits, 2, 8)
    check_activation_observer("algo", algo)
    check_float("hist_percent", hist_percent, 0.0, 1.0, open_low=True, open_high=True)
    check_choice("weight_quantize_type", weight_quantize_type, WEIGHT_QUANTIZERS)
    taken = "hist_percent" in inspect.signature(OBSERVERS[algo]).parameters
    if not taken and hist_percent != HIST_PERCENT:
        _logger.warning("hist_percent=%s has no effect: the observer %r does not take it",
                        hist_percent, algo)
    arguments = {"hist_percent": hist_percent} if taken else {}
    return LayerConfig(
        weight=WEIGHT_QUANTIZERS[weight_quantize_type](weight_bits).weight(),
        activation=ObserverQuantizer(algo, activation_bits, **arguments).activation())


def weight_only_model(program, quantizable_op_type=DEFAULT_OPS, weight_bits=8,
                      weight_quantize_type="channel_wise_abs_max"):
    """Return the :class:`paddleq.SavedModel` that :func:`quant_post_dynamic` writes."""
    model = SavedModel.from_program(program)
    warn_unmatched(model, quantizable_op_type)
    engine.prepare(model, operator_rules(model, check_op_types(quantizable_op_type),
                                         weight_only(weight_bits, weight_quantize_type)))
    return model


def weight_only(bits, kind):
    return LayerConfig(weight=WEIGHT_QUANTIZERS[kind](bits).weight())


def quantized_program(model: SavedModel, as_float: bool = False,
                      onnx_format: bool = True) -> Tuple[Program, List[str]]:
    """Return the program of a quantized model, and the names of its quantized weights.

    With ``as_float`` it holds the dequantized weights. ``onnx_format`` is that of
    :func:`paddleq.export.save`.
    """
    weights = sorted({model.weight_names[name] for name, _ in engine.quantized_layers(model)
                      if name in model.weight_names})
    program, marks = trace(model, None)
    if as_float:
        marks = [replace(mark, value=simulated_weight(mark), integers=None) for mark in marks]
    ProgramLowering(program, marks, onnx_format).run()
    return program, weights


def save_program(program: Program, folder: str, model_filename: str, params_filename: str,
                 **made_by: Any) -> None:
    """Write a program with its parameters and provenance to ``folder``."""
    save_for(made_by.get("target", "any"), program, os.path.join(folder, model_filename),
             os.path.join(folder, params_filename), Provenance("pdmodel", program, **made_by))
