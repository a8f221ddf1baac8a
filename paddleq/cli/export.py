"""Commands that write models."""

import os

import click

from ..analysis.layer_costs import COSTS
from ..checkpoint import load_state, read_state
from ..errors import ConfigError
from ..export import FORMATS, save, to_onnx, to_openvino, to_program_desc
from ..export.program.inspect import count_operators
from ..export.program.program import Program
from ..export.trace import trace_float
from ..frontends.paddleslim import QAT, AutoCompressionConfig
from ..recipes import Recipe
from ..recipes import run as run_recipe
from ..recipes.recipe import load_yaml_file
from ..recipes.run import written_files
from ..recipes.schema import RecipeSections
from ..saved_model.files import locate
from .options import (
    command,
    converted,
    data_options,
    default_of,
    layer_of,
    model_options,
    output_option,
    per_tensor_option,
    ptq_options,
    recipe_of,
    report_written,
)

_check_format = converted(lambda name: FORMATS.check(name, "--format"))
_formats_option = click.option(
    "--format", "formats", metavar="FORMAT", callback=_check_format, multiple=True,
    default=["pdmodel"], show_default=True,
    help="pdmodel, onnx, pir (of a Layer) or another that 'paddleq extensions' lists; may be "
         "repeated")


@command("ptq", """
  paddleq ptq float/model -d images.npy --batches 8 -o out/model
  paddleq ptq zoo.py:build --weights net.pdparams -d photos/ \\
      --transform '{Resize: {size: 256}}' --transform '{CenterCrop: {size: 224}}' \\
      --input image:?x3x224x224 --skip '^head$' -o out/model
  paddleq ptq float/model -d images.npy --max-drop 0.005 --metric labels --cost macs -o out/model
      leaves layers float until 0.5 % of the labels differ from the float model's""")
@model_options
@data_options
@output_option
@_formats_option
@ptq_options
@click.option("--max-drop", type=float, metavar="DROP",
              help="leave layers float, at the least cost, until the drop of the metric is allowed")
@click.option("--metric", metavar="METRIC",
              help="for --max-drop: error (relative L2 distance from the float model, default), "
                   "labels (share of labels other than the float model's), or MODULE:FUNCTION of "
                   "the model, larger is better")
@click.option("--cost", type=click.Choice(COSTS), help="for --max-drop (default: layers)")
@click.option("--seed", type=int, default=default_of(RecipeSections, "seed"), show_default=True)
def ptq(model, data, quantize, output, formats, max_drop, metric, cost, seed):
    """Quantize a trained model with a few batches of data (PTQ).

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer.
    """
    chosen = {key: value for key, value in (("metric", metric), ("cost", cost)) if value}
    if max_drop is not None:
        quantize["accuracy"] = {"metric": "error", "max_drop": max_drop, **chosen}
    elif chosen:
        raise ConfigError(f"--{next(iter(chosen))} has an effect with --max-drop only")
    _run(recipe_of(seed=seed, model=model, data={"calibration": data}, quantize=quantize,
                   export=_exports(output, formats)))


@command("distill", """
  paddleq distill float/model -d images.npy --epochs 2 -o out/model
  paddleq distill float/model -d images.npy --config act.yaml -o out/model
      with the sections Distillation, QuantAware and TrainConfig of PaddleSlim
  paddleq distill float/model -d train.npz --eval-data held_out.npz --weight-bits 4 \\
      --loss relative_l2 --steps 500 -o out/model""")
@model_options
@data_options
@output_option
@_formats_option
@click.option("--config", metavar="FILE",
              help="configuration of PaddleSlim's auto compression (ACT) as YAML; other options "
                   "take precedence")
@click.option("--eval-data", metavar="SOURCE",
              help="data like --data; the state with the smallest loss on it is written "
                   "(default: a part of --data that is not trained on)")
@click.option("--loss", metavar="NAME", help="loss of the outputs: soft_label, l2, relative_l2, "
                                             "cosine, l1 (default: by their values)")
@click.option("--epochs", type=int, help="passes over the data (default: 1)")
@click.option("--steps", type=int, help="number of batches to train on, in place of --epochs")
@click.option("--learning-rate", type=float, help="highest rate of a cosine schedule with warm-up, "
                                                  "relative to the magnitude of parameters "
                                                  "(default: from the first batches); absolute "
                                                  "with --optimizer")
@click.option("--optimizer", metavar="NAME", help="class of paddle.optimizer (default: Adam)")
@click.option("--weight-bits", type=int)
@click.option("--activation-bits", type=int)
@click.option("--skip", multiple=True, metavar="NAME",
              help="do not quantize: a layer, or the name of a tensor of a saved model; may be "
                   "repeated")
@click.option("--seed", type=int, default=default_of(RecipeSections, "seed"), show_default=True)
def distill(model, data, output, formats, config, eval_data, loss, epochs, steps, learning_rate,
            optimizer, weight_bits, activation_bits, skip, seed):
    """Train a quantized model towards the outputs of the float model, without labels (QAT).

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer.
    """
    act = AutoCompressionConfig()
    if config is not None:
        act = AutoCompressionConfig.parse(load_yaml_file(config)[0],
                                          os.path.dirname(os.path.abspath(config)))
        if act.model is not None and act.model != locate(model.get("path", "")):
            raise ConfigError(f"Global of {config} names the model {act.model[0]}, but MODEL is "
                              f"{model.get('path', model.get('build'))}; give one of them")
    lengths = {"epochs": epochs, "train_iter": steps}
    train = {key: value for key, value in act.train.items()
             if key not in lengths or not any(lengths.values())}
    train.update({key: value for key, value in (
        *lengths.items(), ("learning_rate", learning_rate), ("optimizer_builder", optimizer))
        if value is not None})
    settings = {**act.quantization, **{key: value for key, value in (
        ("weight_bits", weight_bits), ("activation_bits", activation_bits)) if value is not None}}
    losses = act.losses if loss is None else [{"loss": loss}]
    quantize = {"method": "distill", "config": settings, "losses": losses, "train": train,
                "teacher": act.teacher and act.teacher[0], "skip": list(skip)}
    sections = {"calibration": data, "training": {key: value for key, value in data.items()
                                                  if key != "batches"}}
    if eval_data is not None:
        sections["evaluation"] = {**sections["training"], "source": eval_data}
    _run(recipe_of(seed=seed, model=model, data=sections, export=_exports(output, formats),
                   quantize={key: value for key, value in quantize.items() if value}))


@command("dynamic", """
  paddleq dynamic float/model -o out/model
  paddleq dynamic float/model --bits 16 --per-tensor -o out/model""")
@model_options
@output_option
@_formats_option
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", show_default=True)
@per_tensor_option
@click.option("--op-type", "op_types", multiple=True, metavar="TYPE",
              help="operators whose weights are quantized, 'mul' means Linear; may be repeated")
def dynamic(model, output, formats, bits, per_tensor, op_types):
    """Store weights as integers. No data is needed.

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer.
    """
    quantize = {"method": "dynamic", "weight_bits": int(bits),
                "weight_quantize_type": "abs_max" if per_tensor else "channel_wise_abs_max"}
    if op_types:
        quantize["quantizable_op_type"] = list(op_types)
    _run(recipe_of(model=model, quantize=quantize, export=_exports(output, formats)))


@command("qat-export", """
  paddleq qat-export zoo.py:build --weights trained.pdparams --input x:?x3x224x224 -o out/model
  paddleq qat-export zoo.py:build --weights trained.pdparams --config qat.yaml \\
      --input x:?x3x224x224 -o out/model""")
@model_options
@output_option
@click.option("--config", metavar="FILE", help="configuration of QAT as YAML")
@click.option("--format", callback=_check_format, default="pdmodel", show_default=True)
def qat_export(model, output, config, format):
    """Export a model after quantization-aware training (QAT).

    MODEL is MODULE:FUNCTION or FILE.py:FUNCTION that returns the float Layer; --weights is
    the state_dict of the trained quantized Layer.
    """
    weights = model.pop("weights", None)
    if weights is None and "build" in model:
        raise ConfigError("--weights is missing")
    net, spec = layer_of(model)
    settings = {} if config is None else load_yaml_file(config)[0]
    qat = QAT(settings)
    net = qat.quantize(net)
    load_state(net, read_state(weights), weights)
    save(net, output, spec, qat.config["onnx_format"], format,
         made_by={"command": "qat-export", "model": model, "weights": weights,
                  "quantize": {"method": "qat", "config": settings}})
    report_written(written_files(output, format))


@command("run", """
  paddleq run recipe.yaml
  paddleq run out/model.paddleq.yaml    # repeats an export""")
@click.argument("recipe")
def run(recipe):
    """Run a RECIPE: a YAML file with a model, data, quantization, exports and checks."""
    _run(Recipe.load(recipe))


def _run(recipe):
    result = run_recipe(recipe)
    for report in (result.accuracy, *result.reports):
        if report is not None:
            click.echo(str(report))
    report_written(result.files)
    if not result.ok:
        raise click.ClickException("a check failed")


def _exports(output, formats):
    """Return the section ``export``. A pir file beside others gets a separate path.

    Its .pdiparams file has the name, but not the content, of the one of a .pdmodel file.
    """
    formats = list(dict.fromkeys(formats))
    return [{"format": each,
             "path": f"{output}_pir" if each == "pir" and len(formats) > 1 else output}
            for each in formats]


@command("to-pdmodel", """
  paddleq to-pdmodel model.json -o out/model
      reads model.json and model.pdiparams,
      writes out/model.pdmodel and out/model.pdiparams
  paddleq to-pdmodel model.json --params weights.pdiparams -o out/model""")
@click.argument("model")
@output_option
@click.option("--params", metavar="FILE",
              help="file of parameters (default: the .pdiparams file next to the .json)")
def to_pdmodel(model, output, params):
    """Convert a model of Paddle 3 (.json) to a .pdmodel.

    MODEL is the .json file of paddle.jit.save. Paddle-Lite, OpenVINO and the int8 mode of Paddle
    Inference require a .pdmodel.
    """
    output = output[:-len(".pdmodel")] if output.endswith(".pdmodel") else output
    to_program_desc(model, output, params)
    files = [f"{output}.pdmodel", f"{output}.pdiparams"]
    count = sum(count_operators(Program.load(files[0], None)).values())
    report_written(files, f"{count} operators, ")


@command("export", """
  paddleq export out/model --format onnx -o out/model
  paddleq export zoo.py:build --weights net.pdparams --input image:?x3x224x224 \\
      --format onnx -o out/float""")
@model_options
@output_option
@click.option("--format", type=click.Choice(["onnx", "openvino", "pdmodel"]), required=True)
@click.option("--opset", type=int,
              help="ONNX opset, 13 to 21 (default: 17, or the minimum of the model)")
def export(model, output, format, opset):
    """Convert a quantized or float model to another format.

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer, which is not quantized further.
    """
    if opset is not None and format != "onnx":
        raise ConfigError("--opset is for --format onnx")
    source, spec = layer_of(model) if "build" in model else (locate(model["path"])[0], None)
    files = [f"{output}.pdmodel", f"{output}.pdiparams"]
    if format == "onnx":
        files = [to_onnx(source, output, spec, opset=opset)]
    elif format == "openvino":
        files = [to_openvino(source, output, spec), f"{output}.bin"]
    elif "build" in model:
        trace_float(source, spec).save(*files)
    else:
        to_program_desc(source, output)
    report_written(files)
