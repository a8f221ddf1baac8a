"""``quant_post_static`` and ``quant_post_dynamic``: quantization of saved models by the engine."""

import inspect
import logging
import os
from collections.abc import Iterable
from itertools import islice

from paddle import nn

from ... import engine, post_training
from ..._checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_known_keys,
    wrong_type,
)
from ...algorithms.bias_correction import parse_bias_correction
from ...algorithms.reconstruction.settings import NEAREST, parse_round_type, recorded_round_type
from ...analysis.accuracy import accuracy_search
from ...config import LayerConfig, QuantConfig
from ...config.layer_config import check_activation_observer
from ...engine.provenance import plain_value
from ...engine.select import select
from ...errors import ConfigError, ModelError
from ...export.pir_to_program import load_program
from ...export.provenance_file import file_digests
from ...export.save import check_target
from ...export.trace import trace_float
from ...observers import OBSERVERS
from ...observers.histogram import HIST_PERCENT
from ...post_training import PostTrainingPlan
from ...post_training.saved_models import (
    DEFAULT_OPS,
    OP_TYPES,
    calibrated_rules,
    check_op_types,
    quantized_program,
    save_program,
    weight_only_model,
)
from ...saved_model import SavedModel
from ...saved_model.files import find_files
from ...saved_model.full_scope import SCOPES
from .quantizers import (
    AbsmaxQuantizer,
    MSEQuantizer,
    ObserverQuantizer,
    PerChannelAbsmaxQuantizer,
    PerChannelMSEQuantizer,
)
from .static_arguments import (
    ORDER,
    SampleBatches,
    calibration_data,
    check_unneeded,
    dynamic_mode,
    paddleslim_positions,
)

_logger = logging.getLogger("paddleq")
# weight_quantize_type -> quantizer of the weights
WEIGHT_QUANTIZERS = {"channel_wise_abs_max": PerChannelAbsmaxQuantizer,
                     "abs_max": AbsmaxQuantizer,
                     "channel_wise_mse": PerChannelMSEQuantizer, "mse": MSEQuantizer}
# Layer classes by the operators as which programs have them.
_LAYERS = {
    "conv2d": (nn.Conv1D, nn.Conv2D),
    "depthwise_conv2d": (nn.Conv1D, nn.Conv2D),
    "conv3d": (nn.Conv3D,),
    "conv2d_transpose": (nn.Conv1DTranspose, nn.Conv2DTranspose),
    "depthwise_conv2d_transpose": (nn.Conv1DTranspose, nn.Conv2DTranspose),
    "matmul_v2": (nn.Linear,),
    "lookup_table_v2": (nn.Embedding,),
}


@paddleslim_positions(ORDER)
def quant_post_static(model_dir, quantize_model_path, data_loader=None, model_filename=None,
                      params_filename=None, save_model_filename="model.pdmodel",
                      save_params_filename="model.pdiparams", batch_nums=None, algo="hist",
                      hist_percent=HIST_PERCENT, quantizable_op_type=DEFAULT_OPS, weight_bits=8,
                      activation_bits=8, weight_quantize_type="channel_wise_abs_max",
                      optimize_model=True, skip_tensor_list=None, batch_generator=None,
                      sample_generator=None, batch_size=1, is_full_quantize=False,
                      onnx_format=True, round_type=NEAREST, bias_correction=False, target="any",
                      accuracy=None, equalize=False, **unneeded):
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
            "emd", "ptf", "min_max", or another registered one.
        hist_percent: share of the magnitudes inside the range, for "hist" and observers with that
            argument. Default 0.99999.
        quantizable_op_type: operators to quantize. "mul" means Linear, saved as
            mul, matmul or matmul_v2.
        weight_bits, activation_bits: 2 to 8. Default 8.
        weight_quantize_type: "channel_wise_abs_max" (default) or "abs_max"; "channel_wise_mse" or
            "mse" for the ranges with the least squared error of the weight.
        optimize_model: fold batch norms into the weights before them, and multiplications and
            additions of constants into the weights before or after them. Default True.
        skip_tensor_list: names of weights, inputs or outputs whose operators stay float.
        batch_generator, sample_generator: in place of ``data_loader``, functions that return an
            iterator over batches, or over samples without the batch axis: lists of the inputs,
            which are cast to their data types. An array of the only input may have the batch axis:
            each row is a sample. ``batch_size`` samples are a batch; a last one that is not full is
            dropped.
        is_full_quantize: quantize the weighted operators of all types, and the operators between
            them as ``scope="full"`` of :class:`paddleq.PTQ` does. Default False.
        onnx_format: True (default): ``quantize_linear`` / ``dequantize_linear`` with integer
            weights; False: ``fake_*`` operators with float weights.
        round_type: rounding of the weights, as for :class:`paddleq.PTQ`: "round" (default) to
            nearest, "adaround", "brecq", "qdrop", or settings such as
            :class:`paddleq.algorithms.AdaRound`. Others than "round" keep the batches in memory.
        bias_correction: add the mean error of each output channel to the biases: True or "fast"
            in one more pass over the batches, which are kept in memory, "full" in one for each
            layer. See :func:`paddleq.algorithms.correct_biases`. The bias correction of PaddleSlim
            moves the weights instead. Default False.
        target: "any" (default), or "paddle_int8" for Paddle Inference with
            ``enable_mkldnn_int8()`` only; see :func:`paddleq.save_quantized_model`.
        accuracy: arguments of :func:`paddleq.analysis.keep_accuracy`, such as
            ``{"metric": "labels", "max_drop": 0.005, "cost": "macs"}``, to leave operators float
            that cost too much accuracy. The batches are kept in memory. Default None: none.
        equalize: equalize the ranges of the channels of successive layers first; see
            :func:`paddleq.algorithms.equalize`. Default False.
        **unneeded: other arguments of PaddleSlim's: ``executor``, which may also be the first
            positional argument, followed by PaddleSlim's others in its order, ``scope``,
            ``activation_quantize_type``, ``is_use_cache_file``, ``cache_dir`` and
            ``deploy_backend`` have no effect, of which a warning is logged.

    The model runs in dynamic mode, also after ``paddle.enable_static()``.

    Returns:
        Names of the weights that are written as integers.

    Raises:
        ConfigError, ConfigTypeError: a wrong argument, or a batch that does not fit.
        FormatError: the saved model is missing or damaged.
        CalibrationError: there is no batch.
        NonFiniteError: NaN or infinity reached an operator; names the layer and the batch.
        ModelError: there is no weight to quantize.
        AccuracyError: the drop of ``accuracy`` cannot be met.

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
    for name, path in (("model_dir", model_dir), ("quantize_model_path", quantize_model_path)):
        if not isinstance(path, (str, os.PathLike)):
            raise wrong_type(name, path, "a folder")
    check_unneeded(unneeded, _names(quant_post_static))
    check_bool("onnx_format", onnx_format)
    form = {**({} if onnx_format else {"onnx_format": False}),
            **check_target("pdmodel", target, onnx_format)}
    files = find_files(os.fspath(model_dir), model_filename, params_filename)
    settings = parse_round_type("round_type", round_type)
    full = check_bool("is_full_quantize", is_full_quantize)
    op_types = OP_TYPES if full else quantizable_op_type
    options = {
        "batch_nums": batch_nums, "algo": algo, "hist_percent": hist_percent,
        "quantizable_op_type": op_types,
        "weight_bits": weight_bits, "activation_bits": activation_bits,
        "weight_quantize_type": weight_quantize_type, "optimize_model": optimize_model,
        "skip_tensor_list": skip_tensor_list, "bias_correction": bias_correction}
    if accuracy is not None:
        options["accuracy"] = accuracy
    if check_bool("equalize", equalize):
        options["equalize"] = True
    if full:
        options["scope"] = SCOPES[full]
    with dynamic_mode() as wrap:
        data = calibration_data(data_loader, batch_generator, sample_generator, batch_size, wrap)
        config = _layer_config(algo, hist_percent, weight_bits, activation_bits,
                               weight_quantize_type)
        plan = PostTrainingPlan(
            fuse=check_bool("optimize_model", optimize_model), warn_unfused=False,
            scope=SCOPES[full], equalize=equalize, round_type=settings,
            bias_correction=parse_bias_correction(bias_correction))
        if accuracy is not None:
            accuracy_search(accuracy, ())  # checks it
        if batch_nums is not None:
            check_int("batch_nums", batch_nums, 1)
        plan.skip_tensors = _tensor_names(skip_tensor_list)
        check_op_types(op_types)
        model = SavedModel(*files)
        rules = calibrated_rules(model, config, op_types, plan.skip_tensors, plan.scope)
        argument = "data_loader"
        if isinstance(data, SampleBatches):
            data, argument = data.of(model), "sample_generator"
        if accuracy is not None and isinstance(data, Iterable):
            data = list(islice(data, batch_nums))  # read again
            plan.accuracy = accuracy_search(accuracy, data)
        post_training.run(model, rules, plan, data, batch_nums, argument)
        program, names = quantized_program(model, onnx_format=onnx_format)
    if settings is not None:
        options["round_type"] = recorded_round_type(settings)
    save_program(
        program, os.fspath(quantize_model_path), save_model_filename or "model.pdmodel",
        save_params_filename or "model.pdiparams", made_from=file_digests(files),
        quantize={"method": "quant_post_static", **plain_value(options)}, **form)
    return names


def quant_post_dynamic(model_dir, save_model_dir=None, model_filename=None, params_filename=None,
                       save_model_filename="model.pdmodel",
                       save_params_filename="model.pdiparams",
                       quantizable_op_type=DEFAULT_OPS, weight_bits=8,
                       generate_test_model=False, weight_quantize_type="channel_wise_abs_max",
                       input_spec=None, **unknown):
    """Store the weights of a model as integers; they are dequantized when the model runs.

    No data is needed. The file shrinks to about a quarter (8 bits) or half (16 bits) of its size.
    A ``.paddleq.yaml`` beside it records the provenance.

    Args:
        model_dir: folder of a saved model, or a live ``paddle.nn.Layer``.
        save_model_dir: output folder. The quantized model goes to its subfolder
            ``quantized_model``, as PaddleSlim has it. May be None for a live layer.
        model_filename, params_filename: names of the files in ``model_dir``. Default: the only
            ``.pdmodel`` or else the only ``.json`` there and the ``.pdiparams`` of the same name,
            else ``__model__`` and ``__params__`` or one file for each parameter. The output is a
            ``.pdmodel`` in each case.
        save_model_filename, save_params_filename: names of the files to write.
        quantizable_op_type: ops whose weights are quantized. "mul" means Linear, saved as mul,
            matmul or matmul_v2.
        weight_bits: 8 or 16.
        generate_test_model: also write a float32 model with the dequantized weights, to the
            subfolder ``test_model``.
        weight_quantize_type: "channel_wise_abs_max" (default) or "abs_max"; "channel_wise_mse" or
            "mse" for the ranges with the least squared error of the weight.
        input_spec: list of InputSpec, to write a live layer.
        **unknown: must be empty; names an argument of :func:`paddleq.quant_post_static`, which
            calibrates, as such.

    Returns:
        For a live layer: a copy in evaluation mode with integer weights. For a saved model: None.

    Raises:
        ConfigError, ConfigTypeError: a wrong argument.
        FormatError: the saved model is missing or damaged. No file is written.
        ModelError: there is no weight to quantize.

    PaddleSlim does not quantize Linear here (it is saved as ``matmul_v2``, which is not on its
    list), nor depthwise convolutions by default. A channel of zeros stays zero.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4))
        >>> small = paddleq.quant_post_dynamic(net)
        >>> small.state_dict()["0.weight"].dtype == paddle.int8
        True
    """
    _check_unknown(unknown)
    check_choice("weight_bits", check_int("weight_bits", weight_bits), (8, 16))
    check_choice("weight_quantize_type", weight_quantize_type, WEIGHT_QUANTIZERS)
    check_bool("generate_test_model", generate_test_model)
    op_types = check_op_types(quantizable_op_type)
    live = isinstance(model_dir, nn.Layer)
    if not live and not isinstance(model_dir, (str, os.PathLike)):
        raise wrong_type("model_dir", model_dir, "the folder of a saved model or a Layer")
    if save_model_dir is None and not live:
        raise ConfigError("save_model_dir must be a folder, but is None")
    if live:
        engine.check_model(model_dir)
    else:
        files = find_files(os.fspath(model_dir), model_filename, params_filename)
        model_file, params_file = files
    if generate_test_model and save_model_dir is None:
        _logger.warning("generate_test_model has no effect: save_model_dir is None")
    options = {"weight_bits": weight_bits, "weight_quantize_type": weight_quantize_type,
               "quantizable_op_type": list(quantizable_op_type)}
    if save_model_dir is not None:
        program = (trace_float(model_dir, input_spec) if live else
                   load_program(model_file, params_file))
        model = weight_only_model(program, weight_only(weight_bits, weight_quantize_type),
                                  quantizable_op_type)
        outputs = {"quantized_model": {},
                   **({"test_model": {"as_float": True}} if generate_test_model else {})}
        source = {"model": type(model_dir).__name__} if live else {"made_from": file_digests(files)}
        for kind, form in outputs.items():
            save_program(quantized_program(model, **form)[0],
                         os.path.join(os.fspath(save_model_dir), kind), save_model_filename,
                         save_params_filename, **source,
                         quantize={"method": "dynamic", **options}, **form)
    if not live:
        return None
    config, rules = weight_only(weight_bits, weight_quantize_type), QuantConfig()
    for cls in dict.fromkeys(cls for op in op_types for cls in _LAYERS.get(op, ())):
        rules.add_type(cls, config)
    if not select(model_dir, rules).selected:
        raise ModelError(f"the model has no weight of the op types {', '.join(sorted(op_types))}")
    copied = engine.copy_of(model_dir, "quantize it in place with paddleq.quantize(inplace=True)")
    return engine.freeze(engine.prepare(copied, rules))


def _tensor_names(skip):
    skip = [] if skip is None else skip
    if isinstance(skip, str) or not all(isinstance(name, str) for name in skip):
        raise wrong_type("skip_tensor_list", skip, "a list of names")
    return skip


def _layer_config(algo, hist_percent, weight_bits, activation_bits, weight_quantize_type):
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


def weight_only(weight_bits=8, weight_quantize_type="channel_wise_abs_max"):
    """Return the configuration of quantized weights and float activations."""
    return LayerConfig(weight=WEIGHT_QUANTIZERS[weight_quantize_type](weight_bits).weight())


def _check_unknown(unknown):
    """Raise for arguments that ``quant_post_dynamic`` does not have."""
    for name in unknown:
        if name in (*ORDER, *_names(quant_post_static)):
            raise ConfigError(f"{name} is an argument of quant_post_static, which calibrates with "
                              "data; quant_post_dynamic stores weights as integers only")
    check_known_keys("quant_post_dynamic", unknown, _names(quant_post_dynamic))


def _names(function):
    """Return the names of the arguments of a function without its ``**kwargs``."""
    return list(inspect.signature(function).parameters)[:-1]
