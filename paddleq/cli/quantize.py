"""Commands that quantize. Each builds a recipe from its options."""

import os

import click

from ..errors import ConfigError, FormatError, RecipeError
from ..export import FORMATS, save
from ..frontends.paddleslim import QAT
from ..recipes import Recipe
from ..recipes import run as run_recipe
from ..recipes.recipe import load_yaml
from ..recipes.run import input_specs, written_files
from ..recipes.sources import build_model, load_weights
from .main import FAILED, STATUS
from .options import (
    data_options,
    data_section,
    layer_options,
    model_section,
    output_option,
    ptq_options,
    ptq_section,
    recipe_of,
    split_options,
)

_FORMATS = click.Choice(list(FORMATS))
_formats_option = click.option(
    "--format", "formats", type=_FORMATS, multiple=True, default=["pdmodel"], show_default=True,
    help="may be repeated; pir is for a Layer")


@click.command(epilog="""\b
examples:
  paddleq ptq float/model -d images.npy --batches 8 -o out/model
  paddleq ptq zoo.py:build --weights net.pdparams -d photos/ \\
      --transform '{Resize: {size: 256}}' --transform '{CenterCrop: {size: 224}}' \\
      --input image:?x3x224x224 --skip '^head$' -o out/model

""" + STATUS)
@click.argument("model")
@data_options
@layer_options
@output_option
@_formats_option
@ptq_options
@click.option("--seed", type=int, default=0, show_default=True)
def ptq(model, output, formats, seed, weights, arguments, inputs, **options):
    """Quantize a trained model with a few batches of data (PTQ).

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer.
    """
    data, how = split_options(options)
    _run(recipe_of({
        "seed": seed, "model": model_section(model, weights, arguments, inputs),
        "data": {"calibration": data_section(**data)}, "quantize": ptq_section(**how),
        "export": _exports(output, formats)}))


@click.command(epilog="""\b
examples:
  paddleq dynamic float/model -o out/model
  paddleq dynamic float/model --bits 16 --per-tensor -o out/model

""" + STATUS)
@click.argument("model")
@layer_options
@output_option
@_formats_option
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", show_default=True)
@click.option("--per-tensor", is_flag=True, help="one scale per weight instead of one per channel")
@click.option("--op-type", "op_types", multiple=True, metavar="TYPE",
              help="operators whose weights are quantized, 'mul' means Linear; may be repeated")
def dynamic(model, output, formats, bits, per_tensor, op_types, weights, arguments, inputs):
    """Store weights as integers. No data is needed.

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer.
    """
    quantize = {"method": "dynamic", "weight_bits": int(bits),
                "weight_quantize_type": "abs_max" if per_tensor else "channel_wise_abs_max"}
    if op_types:
        quantize["quantizable_op_type"] = list(op_types)
    _run(recipe_of({"model": model_section(model, weights, arguments, inputs),
                    "quantize": quantize, "export": _exports(output, formats)}))


@click.command("qat-export", epilog="""\b
examples:
  paddleq qat-export zoo.py:build --weights trained.pdparams --input x:?x3x224x224 -o out/model
  paddleq qat-export zoo.py:build --weights trained.pdparams --config qat.yaml \\
      --input x:?x3x224x224 -o out/model

""" + STATUS)
@click.argument("model")
@layer_options
@output_option
@click.option("--config", metavar="FILE", help="configuration of QAT as YAML")
@click.option("--format", type=_FORMATS, default="pdmodel", show_default=True)
def qat_export(model, output, config, format, weights, arguments, inputs):
    """Export a model after quantization-aware training (QAT).

    MODEL is MODULE:FUNCTION or FILE.py:FUNCTION that returns the float Layer; --weights is
    the state_dict of the trained quantized Layer.
    """
    if ":" not in model:
        raise ConfigError(f"MODEL must be MODULE:FUNCTION that builds a Layer, but is {model!r}")
    for name, value in (("--weights", weights), ("--input", inputs)):
        if not value:
            raise ConfigError(f"{name} is missing")
    section = model_section(model, None, arguments, inputs)
    net = build_model(model, ".", section.get("arguments"))
    settings = {} if config is None else _yaml_file(config)
    qat = QAT(settings)
    net = qat.quantize(net)
    load_weights(net, weights)
    save(net, output, input_specs(section["input_spec"]), qat.config["onnx_format"], format,
         made_by={"command": "qat-export", "model": section, "weights": weights,
                  "quantize": {"method": "qat", "config": settings}})
    click.echo(f"wrote {', '.join(written_files(output, format))}")


@click.command("run", epilog="""\b
examples:
  paddleq run recipe.yaml
  paddleq run out/model.paddleq.yaml    # repeats an export

""" + STATUS)
@click.argument("recipe")
def run(recipe):
    """Run a RECIPE: a YAML file with a model, data, quantization, exports and checks."""
    _run(Recipe.load(recipe))


def _run(recipe):
    result = run_recipe(recipe)
    for report in result.reports:
        click.echo(str(report))
    size = sum(os.path.getsize(path) for path in result.files)
    click.echo(f"wrote {', '.join(os.path.relpath(path) for path in result.files)}: {size:,} bytes")
    if not result.ok:
        click.echo("paddleq: error: a check failed", err=True)
        click.get_current_context().exit(FAILED)


def _exports(output, formats):
    """Return the section ``export``. A pir file beside others gets a separate path.

    Its .pdiparams file has the name, but not the content, of the one of a .pdmodel file.
    """
    formats = list(dict.fromkeys(formats))
    return [{"format": each,
             "path": f"{output}_pir" if each == "pir" and len(formats) > 1 else output}
            for each in formats]


def _yaml_file(path):
    try:
        with open(path, encoding="utf-8") as file:
            return load_yaml(file.read(), path)[0]
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise FormatError(f"cannot read {path}: {error}") from error
