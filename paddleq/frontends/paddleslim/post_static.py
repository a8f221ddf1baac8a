"""``quant_post_static``: post-training quantization of saved models."""

import inspect
import os
from dataclasses import replace
from itertools import chain, islice

from ... import engine
from ..._checks import check_bool, check_choice, check_float, check_int, wrong_type
from ...analysis import Sensitivities, sensitivity
from ...config import LayerConfig
from ...config.layer_config import check_activation_observer
from ...engine import plain_value
from ...export.provenance_file import file_digests
from ...graph.fold_batch_norm import fuse
from ...observers import OBSERVERS
from ...observers.histogram import HIST_PERCENT
from ...saved_model import SavedModel
from ...saved_model.files import find_files
from .quantizers import ObserverQuantizer
from .saved_models import (
    DEFAULT_OPS,
    WEIGHT_QUANTIZERS,
    check_op_types,
    operator_rules,
    quantized_program,
    save_program,
)


def quant_post_static(model_dir, quantize_model_path, data_loader, model_filename=None,
                      params_filename=None, save_model_filename="model.pdmodel",
                      save_params_filename="model.pdiparams", batch_nums=None, algo="hist",
                      hist_percent=HIST_PERCENT, quantizable_op_type=DEFAULT_OPS, weight_bits=8,
                      activation_bits=8, weight_quantize_type="channel_wise_abs_max",
                      optimize_model=True, skip_tensor_list=None):
    """Quantize a saved model with calibration data; its Python class is not needed.

    The model is loaded as a :class:`paddleq.SavedModel`, quantized by the engine as
    :class:`paddleq.PTQ` does, and written into the program that was read. A ``.paddleq.yaml``
    beside the files records the provenance.

    Args:
        model_dir: folder of a saved model.
        quantize_model_path: folder to write to.
        data_loader: an iterable of batches, as for :func:`paddleq.calibrate`: an array, a list or
            tuple of arrays in the order of the model's inputs (further entries, e.g. labels, are
            ignored), or a dict by the names of the inputs.
        model_filename, params_filename: names of the files in ``model_dir``, as for
            :func:`paddleq.quant_post_dynamic`.
        save_model_filename, save_params_filename: names of the files to write.
        batch_nums: stop after this many batches. Default: all.
        algo: observer of the activations: "hist" (default), "KL", "abs_max", "mse", "avg",
            "min_max", or another registered one.
        hist_percent: share of the magnitudes inside the range, for "hist" and observers with that
            argument. Default 0.99999.
        quantizable_op_type: operators to quantize. "mul" means Linear, saved as
            mul, matmul or matmul_v2.
        weight_bits, activation_bits: 2 to 8. Default 8.
        weight_quantize_type: "channel_wise_abs_max" (default) or "abs_max".
        optimize_model: fold batch norms into the weights before them. Default True.
        skip_tensor_list: names of weights, inputs or outputs whose operators stay float.

    Returns:
        Names of the weights that are written as integers.

    Raises:
        ConfigError, ConfigTypeError: a wrong argument, or a batch that does not fit.
        FormatError: the saved model is missing or damaged.
        CalibrationError: there is no batch.
        NonFiniteError: NaN or infinity reached an operator; names the layer and the batch.
        ModelError: there is no weight to quantize.

    No file is written if an error occurs.

    Examples:
        >>> import os, tempfile, paddle, paddleq
        >>> from paddle.static import InputSpec
        >>> folder = tempfile.mkdtemp()
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4), paddle.nn.ReLU())
        >>> _ = net.eval()
        >>> paddle.jit.save(net, folder + "/float/net", [InputSpec([None, 8], "float32", "x")])
        >>> batches = [paddle.rand([16, 8]) for _ in range(4)]
        >>> names = paddleq.quant_post_static(folder + "/float", folder + "/int8", batches)
        >>> len(names), sorted(os.listdir(folder + "/int8"))
        (1, ['model.paddleq.yaml', 'model.pdiparams', 'model.pdmodel'])
    """
    if not isinstance(quantize_model_path, (str, os.PathLike)):
        raise wrong_type("quantize_model_path", quantize_model_path, "a folder")
    options = {
        "batch_nums": batch_nums, "algo": algo, "hist_percent": hist_percent,
        "quantizable_op_type": quantizable_op_type, "weight_bits": weight_bits,
        "activation_bits": activation_bits, "weight_quantize_type": weight_quantize_type,
        "optimize_model": optimize_model, "skip_tensor_list": skip_tensor_list}
    program, names = quantized_program(calibrated_model(
        model_dir, data_loader, model_filename, params_filename, **options))
    save_program(
        program, os.fspath(quantize_model_path), save_model_filename, save_params_filename,
        made_from=file_digests(find_files(os.fspath(model_dir), model_filename, params_filename)),
        quantize={"method": "quant_post_static", **plain_value(options)})
    return names


def sensitivity_post_static(model_dir, data_loader, **options):
    """Measure the loss of the output when each operator of a saved model is quantized alone.

    Return :class:`~paddleq.analysis.Sensitivities`, named after the weights. The arguments are
    those of :func:`calibrated_model`.
    """
    batches = list(islice(data_loader, options.get("batch_nums")))  # iterated twice
    model = calibrated_model(model_dir, batches, **options)
    return Sensitivities(
        replace(row, name=model.bindings[row.name].weight,
                type=model.bindings[row.name].operator.type)
        for row in sensitivity(model, batches))


def calibrated_model(model_dir, data_loader, model_filename=None, params_filename=None,
                     config=None, batch_nums=None, quantizable_op_type=DEFAULT_OPS,
                     optimize_model=True, skip_tensor_list=None, **quantizers):
    """Return the calibrated :class:`paddleq.SavedModel` that :func:`quant_post_static` writes.

    The arguments are those of that function. A ``config`` replaces its ``quantizers``: the bits,
    ``algo``, ``hist_percent`` and ``weight_quantize_type``.
    """
    config = _layer_config(**quantizers) if config is None else config
    for name, spec in (("weight_bits", config.weight_spec),
                       ("activation_bits", config.activation_spec)):
        check_int(name, spec and spec.bits, 2, 8)
    check_bool("optimize_model", optimize_model)
    if not isinstance(model_dir, (str, os.PathLike)):
        raise wrong_type("model_dir", model_dir, "a folder")
    if batch_nums is not None:
        check_int("batch_nums", batch_nums, 1)
    skip = [] if skip_tensor_list is None else skip_tensor_list
    if isinstance(skip, str) or not all(isinstance(name, str) for name in skip):
        raise wrong_type("skip_tensor_list", skip_tensor_list, "a list of names")
    op_types = check_op_types(quantizable_op_type) - {"lookup_table_v2"}
    model = SavedModel(*find_files(os.fspath(model_dir), model_filename, params_filename))
    rules = operator_rules(model, op_types, config, skip)
    batches = engine.iter_batches(model, data_loader, batch_nums, "calibrating",
                                  argument="data_loader")
    first = next(batches)

    def run(inputs):
        args, kwargs = inputs
        return model(*args, **kwargs)

    engine.prepare(model, rules,
                   (lambda: fuse(model, lambda: run(first))) if optimize_model else None)
    with engine.calibrating(model):
        engine.run_batches(run, chain([first], batches))
    return model


def _layer_config(algo="hist", hist_percent=HIST_PERCENT, weight_bits=8, activation_bits=8,
                  weight_quantize_type="channel_wise_abs_max"):
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        check_int(name, bits, 2, 8)
    check_activation_observer("algo", algo)
    check_float("hist_percent", hist_percent, 0.0, 1.0, open_low=True, open_high=True)
    check_choice("weight_quantize_type", weight_quantize_type, WEIGHT_QUANTIZERS)
    taken = "hist_percent" in inspect.signature(OBSERVERS[algo]).parameters
    arguments = {"hist_percent": hist_percent} if taken else {}
    return LayerConfig(
        weight=WEIGHT_QUANTIZERS[weight_quantize_type](weight_bits).weight(),
        activation=ObserverQuantizer(algo, activation_bits, **arguments).activation())
