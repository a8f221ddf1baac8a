"""``quant_post_static``: post-training quantization of saved models."""

import os
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import paddle

from ... import engine
from ..._checks import check_bool, check_choice, check_float, check_int, wrong_type
from ...analysis import Sensitivities, sensitivity
from ...config import LayerConfig, QuantizerConfig
from ...engine import plain_value
from ...errors import CalibrationError, ConfigError
from ...export.provenance_file import Provenance, file_digests
from ...graph.fold_batch_norm import fuse
from ...observers import AbsMaxObserver, HistogramObserver, KLObserver, MSEObserver
from ...observers.histogram import HIST_PERCENT
from ...saved_model import SavedModel
from ...saved_model.files import find_files
from ...spec import QuantSpec
from .saved_models import (
    check_op_types,
    prepare_operators,
    quantized_program,
    select_operators,
    weight_config,
)

_DEFAULT_OPS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul")
_OBSERVERS = {"abs_max": AbsMaxObserver, "hist": HistogramObserver, "KL": KLObserver,
              "mse": MSEObserver}


def quant_post_static(model_dir, quantize_model_path, data_loader, model_filename=None,
                      params_filename=None, save_model_filename="model.pdmodel",
                      save_params_filename="model.pdiparams", batch_nums=None, algo="hist",
                      hist_percent=HIST_PERCENT, quantizable_op_type=_DEFAULT_OPS, weight_bits=8,
                      activation_bits=8, weight_quantize_type="channel_wise_abs_max",
                      optimize_model=True, skip_tensor_list=None):
    """Quantize a saved model with calibration data; its Python class is not needed.

    The model is loaded as a :class:`paddleq.SavedModel`, quantized by the engine as
    :class:`paddleq.PTQ` does, and written into the program that was read. A ``.paddleq.yaml``
    beside the files records the provenance.

    Args:
        model_dir: folder of a saved model.
        quantize_model_path: folder to write to.
        data_loader: an iterable of batches: an array, a list or tuple of arrays in the order of
            the model's inputs (further entries, e.g. labels, are ignored), or a dict by the names
            of the inputs.
        model_filename, params_filename: names of the files in ``model_dir``, as for
            :func:`paddleq.quant_post_dynamic`.
        save_model_filename, save_params_filename: names of the files to write.
        batch_nums: stop after this many batches. Default: all.
        algo: observer of the activations: "hist" (default), "KL", "abs_max", "mse".
        hist_percent: share of the magnitudes inside the range, for "hist". Default 0.99999.
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
    program, names = quantized_statically(model_dir, data_loader, model_filename, params_filename,
                                          **options)
    made_by = {
        "made_from": file_digests(find_files(os.fspath(model_dir), model_filename,
                                             params_filename)),
        "quantize": {"method": "quant_post_static", **plain_value(options)}}
    folder = os.fspath(quantize_model_path)
    program.save(os.path.join(folder, save_model_filename),
                 os.path.join(folder, save_params_filename),
                 Provenance.of_program("pdmodel", program, made_by))
    return names


def quantized_statically(model_dir, data_loader, model_filename=None, params_filename=None,
                         batch_nums=None, algo="hist", hist_percent=HIST_PERCENT,
                         quantizable_op_type=_DEFAULT_OPS, weight_bits=8, activation_bits=8,
                         weight_quantize_type="channel_wise_abs_max", optimize_model=True,
                         skip_tensor_list=None):
    """Return (program, names of its integer weights) as :func:`quant_post_static` writes it."""
    model, _ = _calibrated(
        model_dir, data_loader, model_filename, params_filename, batch_nums, algo, hist_percent,
        quantizable_op_type, weight_bits, activation_bits, weight_quantize_type, optimize_model,
        skip_tensor_list)
    return quantized_program(model)


def sensitivity_post_static(model_dir, data_loader, model_filename=None, params_filename=None,
                            batch_nums=None, algo="hist", hist_percent=HIST_PERCENT,
                            quantizable_op_type=_DEFAULT_OPS, weight_bits=8, activation_bits=8,
                            weight_quantize_type="channel_wise_abs_max", optimize_model=True,
                            skip_tensor_list=None):
    """Measure the loss of the output when each operator of a saved model is quantized alone.

    Args:
        model_dir, and all others: as for :func:`quant_post_static`.

    Returns:
        :class:`~paddleq.analysis.Sensitivities`, named after the weights; ``sqnr`` is that of the
        outputs, in dB.

    Raises:
        PaddleqError: as :func:`quant_post_static`.

    Examples:
        >>> import tempfile, paddle, paddleq
        >>> from paddle.static import InputSpec
        >>> from paddleq.frontends.paddleslim.post_static import sensitivity_post_static
        >>> folder = tempfile.mkdtemp()
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4), paddle.nn.Linear(4, 4))
        >>> _ = net.eval()
        >>> paddle.jit.save(net, folder + "/net", [InputSpec([None, 8], "float32", "x")])
        >>> len(sensitivity_post_static(folder, [paddle.rand([16, 8])]))
        2
    """
    model, batches = _calibrated(
        model_dir, data_loader, model_filename, params_filename, batch_nums, algo, hist_percent,
        quantizable_op_type, weight_bits, activation_bits, weight_quantize_type, optimize_model,
        skip_tensor_list)
    weights, types = model.weight_names, model.operator_types
    return Sensitivities(replace(row, name=weights[row.name], type=types[row.name])
                         for row in sensitivity(model, batches))


def _calibrated(model_dir, data_loader, model_filename, params_filename, batch_nums, algo,
                hist_percent, quantizable_op_type, weight_bits, activation_bits,
                weight_quantize_type, optimize_model, skip_tensor_list):
    """Return the calibrated SavedModel, and the batches as lists of its inputs."""
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        check_int(name, bits, 2, 8)
    check_choice("algo", algo, _OBSERVERS)
    check_float("hist_percent", hist_percent, 0.0, 1.0, open_low=True, open_high=True)
    check_choice("weight_quantize_type", weight_quantize_type,
                 ("channel_wise_abs_max", "abs_max"))
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
    names = select_operators(model, op_types, skip)
    try:
        batches = [_arrays(batch, model.input_names)
                   for batch in islice(iter(data_loader), batch_nums)]
    except TypeError:
        raise wrong_type("data_loader", data_loader, "an iterable of batches") from None
    if not batches:
        raise CalibrationError("data_loader must yield at least one batch, but is empty")
    observer = _OBSERVERS[algo]
    if algo == "hist":
        observer = partial(observer, hist_percent=hist_percent)
    config = LayerConfig(weight=weight_config(weight_bits, weight_quantize_type != "abs_max"),
                         activation=QuantizerConfig(observer, QuantSpec(activation_bits)))
    prepare_operators(model, names, config, (
        lambda: fuse(model, lambda: model(*batches[0]))) if optimize_model else None)
    engine.calibrate(model, batches)
    return model, batches


def _arrays(batch, feeds):
    """Return the tensors of a batch, in the order of the model's inputs."""
    if isinstance(batch, dict):
        if not set(feeds) <= set(batch):
            raise ConfigError(f"a batch must have the model's inputs {', '.join(feeds)}, but has "
                              f"{', '.join(map(str, batch))}")
        batch = [batch[name] for name in feeds]
    elif isinstance(batch, (list, tuple)):
        if len(batch) < len(feeds):
            raise ConfigError(f"a batch must hold the model's {len(feeds)} inputs "
                              f"({', '.join(feeds)}), but has {len(batch)} entries")
        batch = batch[:len(feeds)]
    else:
        if len(feeds) != 1:
            raise ConfigError(f"a batch must be a list or dict of the model's inputs "
                              f"({', '.join(feeds)}), but is one array")
        batch = [batch]
    return [each if isinstance(each, paddle.Tensor) else paddle.to_tensor(np.asarray(each))
            for each in batch]
