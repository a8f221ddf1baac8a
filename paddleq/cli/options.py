"""Help and options that commands share, and the recipe sections that the options give."""

import functools
import inspect
import os
import re

import click

from .._checks import check_choice
from ..algorithms.bias_correction import METHODS
from ..algorithms.reconstruction.settings import NEAREST, ROUND_TYPES
from ..config.layer_config import check_activation_observer
from ..errors import ConfigError, RecipeError
from ..recipes import Recipe
from ..recipes.recipe import load_yaml
from ..recipes.schema import DataSection
from ..recipes.sources import build_model
from ..saved_model.full_scope import SCOPES

_STATUS = """\b
exit status:
  0    success; the last line of standard output lists the written files
  1    the model or the data cannot be used, or a check failed; the
       reason is on standard error
  2    the command line or a recipe is wrong
  130  interrupted
Files are written completely or not at all."""


def command(name, examples):
    """Return the decorator of a command; its help shows ``examples`` and the exit status."""
    return click.command(name, epilog=f"\b\nexamples:{examples}\n\n{_STATUS}")


def default_of(section, key):
    """Return the default of a key of recipes, for an option."""
    return section.model_fields[key].default


def yaml_of(text, source):
    """Return the values of a YAML text; ``source`` is its name for messages."""
    try:
        return load_yaml(text, source)[0]
    except RecipeError as error:
        raise ConfigError(f"{source} must be YAML, but is {text!r}") from error


def _argument(text):
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--arg must be NAME=VALUE, but is {text!r}")
    return name, yaml_of(value, "--arg")


def _input(text):
    found = re.fullmatch(r"([^:]+):((?:\?|\d+)(?:x(?:\?|\d+))*)(?::(.+))?", text)
    if found is None:
        raise ConfigError("--input must be NAME:SHAPE or NAME:SHAPE:DTYPE with a shape such as "
                          f"?x3x224x224, but is {text!r}")
    name, shape, dtype = found.groups()
    return {"name": name, "shape": [None if size == "?" else int(size)
                                    for size in shape.split("x")], "dtype": dtype or "float32"}


def converted(convert):
    """Return the callback of an option, which converts its value or each of its values."""
    return lambda _context, option, value: (
        [convert(each) for each in value] if option.multiple else convert(value))


def _section(name, make, *options):
    """Return a decorator that adds options to a command and passes it the section that they give.

    ``make`` returns the section, the parameter ``name`` of the command, from their values.
    """
    keys = list(inspect.signature(make).parameters)

    def decorate(command):
        @functools.wraps(command)
        def run(**values):
            section = make(**{key: values.pop(key) for key in keys})
            return command(**{name: section}, **values)
        return functools.reduce(lambda made, option: option(made), reversed(options), run)
    return decorate


def _model(model, weights, arguments, inputs):
    if ":" in model:
        section = {"build": model, "weights": weights, "arguments": dict(arguments),
                   "input_spec": inputs}
        return {key: value for key, value in section.items() if value}
    for name, value in (("weights", weights), ("arg", arguments), ("input", inputs)):
        if value:
            raise ConfigError(f"--{name} has an effect with MODULE:FUNCTION only, but the model is "
                              f"the saved model {model!r}")
    return {"path": model}


model_options = _section(
    "model", _model, click.argument("model"),
    click.option("--weights", metavar="FILE", help="weights for a Layer (.pdparams, .safetensors)"),
    click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE",
                 callback=converted(_argument),
                 help="argument of the function that builds the Layer; may be repeated"),
    click.option("--input", "inputs", multiple=True, metavar="NAME:SHAPE[:DTYPE]",
                 callback=converted(_input),
                 help="an input of the Layer, such as image:?x3x224x224, ? where a size is open; "
                      "may be repeated (default: what it was calibrated with, the first size "
                      "open)"))


def _data(source, labels, keys, transform, batch_size, batches):
    section = {"source": source, "batch_size": batch_size, "batches": batches,
               "labels": True if labels == "folders" else labels, "keys": list(keys),
               "transform": transform}
    return {key: value for key, value in section.items() if value not in (None, [])}


data_options = _section(
    "data", _data,
    click.option("--data", "-d", "source", required=True, metavar="SOURCE",
                 help="a .npy or .npz, a folder of images, or MODULE:FUNCTION that yields batches"),
    click.option("--labels", metavar="KEY",
                 help="labels: the name of an array of the .npz; 'folders' for a folder of images "
                      "for each class"),
    click.option("--keys", multiple=True, metavar="KEY",
                 help="array of the .npz that is an input; may be repeated (default: all)"),
    click.option("--transform", multiple=True, metavar="STEP",
                 callback=converted(lambda text: yaml_of(text, "--transform")),
                 help="step from an image to an array: a name in paddle.vision.transforms, "
                      "'{Resize: {size: 256}}', or MODULE:FUNCTION; may be repeated"),
    click.option("--batch-size", type=int, default=default_of(DataSection, "batch_size"),
                 show_default=True),
    click.option("--batches", type=int, metavar="N", help="stop after N batches (default: all)"))


def _ptq(algo, hist_percent, weight_bits, activation_bits, per_tensor, no_fuse, skip, scope,
         round_type, bias_correction, equalize):
    activation = {"name": algo, "quant_bits": activation_bits}
    if hist_percent is not None:
        activation["hist_percent"] = hist_percent
    weight = "AbsmaxQuantizer" if per_tensor else "PerChannelAbsmaxQuantizer"
    return {"method": "ptq", "activation_quantizer": activation,
            "weight_quantizer": {"name": weight, "quant_bits": weight_bits},
            "fuse": not no_fuse, **({"skip": list(skip)} if skip else {}),
            **({"scope": scope} if scope != SCOPES[0] else {}),
            **({"round_type": round_type} if round_type != NEAREST else {}),
            **({"bias_correction": bias_correction} if bias_correction else {}),
            **({"equalize": True} if equalize else {})}


per_tensor_option = click.option("--per-tensor", is_flag=True,
                                 help="one scale per weight instead of one per channel")
ptq_options = _section(
    "quantize", _ptq,
    click.option("--algo", metavar="OBSERVER", default="KL", show_default=True,
                 callback=converted(lambda name: check_activation_observer("--algo", name)),
                 help="observer of activations: KL, hist, abs_max, mse or another that 'paddleq "
                      "extensions' lists"),
    click.option("--hist-percent", type=float,
                 help="share of values below the clipping limit, for --algo hist"),
    click.option("--weight-bits", type=int, default=8, show_default=True),
    click.option("--activation-bits", type=int, default=8, show_default=True),
    per_tensor_option,
    click.option("--no-fuse", is_flag=True,
                 help="do not fold batch norms, nor multiplications and additions of constants"),
    click.option("--skip", multiple=True, metavar="NAME",
                 help="do not quantize: name of a layer (and all layers in it), a regular "
                      "expression, or the name of a tensor of a saved model; may be repeated"),
    click.option("--scope", type=click.Choice(SCOPES), default=SCOPES[0], show_default=True,
                 help="full, for a saved model: also the operators between those with weights"),
    click.option("--round-type", metavar="NAME", default=NEAREST, show_default=True,
                 callback=converted(lambda name: check_choice(
                     "--round-type", name, [NEAREST, *ROUND_TYPES])),
                 help="rounding of weights: round (to nearest), or learned from the batches: "
                      "adaround, brecq, qdrop"),
    click.option("--bias-correction", type=click.Choice(METHODS),
                 help="add the mean error of each channel to the biases: fast, in one more pass "
                      "over the batches, or full, in one for each layer"),
    click.option("--equalize", is_flag=True,
                 help="equalize the ranges of the channels of successive layers first"))

output_option = click.option("-o", "--output", required=True, metavar="OUT",
                             help="prefix of the files to write; missing folders are created")


def recipe_of(**sections):
    """Return the :class:`~paddleq.recipes.Recipe` of a command line, for the working folder."""
    sections.setdefault("export", {"path": "unused"})  # of a command that only analyses
    try:
        return Recipe.from_dict({"paddleq": 1, **sections}, "command line")
    except RecipeError as error:
        raise ConfigError("; ".join(f"{key} {problem}"
                                    for _, key, problem in error.problems)) from None


def layer_of(model):
    """Return (Layer, InputSpecs) of a section ``model``."""
    if "build" not in model:
        raise ConfigError("MODEL must be MODULE:FUNCTION that builds a Layer, but is "
                          f"{model['path']!r}")
    if "input_spec" not in model:
        raise ConfigError("--input is missing")
    values = recipe_of(model=model, quantize={"method": "dynamic"}).values.model
    return (build_model(values.build, ".", values.arguments, values.weights),
            values.input_specs())


def report_written(files, note=""):
    """Print the last line of a command: the written files and their size."""
    *first, last = map(os.path.relpath, files)
    names = f"{', '.join(first)} and {last}" if first else last
    click.echo(f"wrote {names}: {note}{sum(map(os.path.getsize, files)):,} bytes")
