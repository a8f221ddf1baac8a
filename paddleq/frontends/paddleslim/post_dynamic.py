"""``quant_post_dynamic``: weight-only quantization of saved models and layers."""

import os

from paddle import nn

from ... import engine
from ..._checks import check_bool, check_choice, check_int, wrong_type
from ...config import LayerConfig, QuantConfig
from ...engine.select import select
from ...errors import ConfigError, ModelError
from ...export.pir_to_program import load_program
from ...export.provenance_file import file_digests
from ...export.trace import trace_float
from ...saved_model import SavedModel
from ...saved_model.files import find_files
from .saved_models import (
    DEFAULT_OPS,
    WEIGHT_QUANTIZERS,
    check_op_types,
    operator_rules,
    quantized_program,
    save_program,
)

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


def quant_post_dynamic(model_dir, save_model_dir=None, model_filename=None, params_filename=None,
                       save_model_filename="model.pdmodel",
                       save_params_filename="model.pdiparams",
                       quantizable_op_type=DEFAULT_OPS, weight_bits=8,
                       generate_test_model=False, weight_quantize_type="channel_wise_abs_max",
                       input_spec=None):
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
        weight_quantize_type: "channel_wise_abs_max" (default) or "abs_max".
        input_spec: list of InputSpec, to write a live layer.

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
    options = {"weight_bits": weight_bits, "weight_quantize_type": weight_quantize_type,
               "quantizable_op_type": list(quantizable_op_type)}
    if save_model_dir is not None:
        outputs = {"quantized_model": {}}
        if generate_test_model:
            outputs["test_model"] = {"as_float": True}
        programs = {kind: weights_as_integers(
            trace_float(model_dir, input_spec) if live else load_program(*files),
            **options, **form) for kind, form in outputs.items()}
        source = {"model": type(model_dir).__name__} if live else {"made_from": file_digests(files)}
        for kind, program in programs.items():
            save_program(program, os.path.join(os.fspath(save_model_dir), kind),
                         save_model_filename, save_params_filename, **source,
                         quantize={"method": "dynamic", **options}, **outputs[kind])
    if not live:
        return None
    config = LayerConfig(weight=WEIGHT_QUANTIZERS[weight_quantize_type](weight_bits).weight())
    rules = QuantConfig()
    for cls in dict.fromkeys(cls for op in op_types for cls in _LAYERS.get(op, ())):
        rules.add_type(cls, config)
    if not select(model_dir, rules).selected:
        raise ModelError(f"the model has no weight of the op types {', '.join(sorted(op_types))}")
    return engine.freeze(engine.prepare(engine.copy_of(model_dir), rules))


def weights_as_integers(program, quantizable_op_type=DEFAULT_OPS, weight_bits=8,
                        weight_quantize_type="channel_wise_abs_max", as_float=False):
    """Return ``program`` with its weights quantized, as :func:`quant_post_dynamic` writes it."""
    model = SavedModel.from_program(program)
    config = LayerConfig(weight=WEIGHT_QUANTIZERS[weight_quantize_type](weight_bits).weight())
    engine.prepare(model, operator_rules(model, check_op_types(quantizable_op_type), config))
    return quantized_program(model, as_float)[0]
