"""Options that several commands share, and the recipe sections that they give."""

import functools

import click

from .._checks import check_choice
from ..config.layer_config import check_activation_observer
from ..errors import ConfigError, RecipeError
from ..recipes import Recipe
from ..recipes.recipe import load_yaml
from ..recipes.schema import DTYPES


def _combine(*options):
    def add(function):
        return functools.reduce(lambda made, option: option(made), reversed(options), function)
    return add


# Details of a Layer that a path does not contain.
layer_options = _combine(
    click.option("--weights", metavar="FILE", help="weights for a Layer (.pdparams, .safetensors)"),
    click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE",
                 help="argument of the function that builds the Layer; may be repeated"),
    click.option("--input", "inputs", multiple=True, metavar="NAME:SHAPE[:DTYPE]",
                 help="an input of the Layer, such as image:?x3x224x224, ? where a size is open; "
                      "may be repeated (default: what it was calibrated with, the first size "
                      "open)"),
)

data_options = _combine(
    click.option("--data", "-d", "source", required=True, metavar="SOURCE",
                 help="a .npy or .npz, a folder of images, or MODULE:FUNCTION that yields batches"),
    click.option("--labels", metavar="KEY",
                 help="labels: the name of an array of the .npz; 'folders' for a folder of images "
                      "for each class"),
    click.option("--keys", multiple=True, metavar="KEY",
                 help="array of the .npz that is an input; may be repeated (default: all)"),
    click.option("--transform", multiple=True, metavar="STEP",
                 help="step from an image to an array: a name in paddle.vision.transforms, "
                      "'{Resize: {size: 256}}', or MODULE:FUNCTION; may be repeated"),
    click.option("--batch-size", type=int, default=32, show_default=True),
    click.option("--batches", type=int, metavar="N", help="stop after N batches (default: all)"),
)

ptq_options = _combine(
    click.option("--algo", metavar="OBSERVER", default="KL", show_default=True,
                 callback=lambda _context, _option, value: check_activation_observer(
                     "--algo", value),
                 help="observer of activations: KL, hist, abs_max, mse or another that 'paddleq "
                      "extensions' lists"),
    click.option("--hist-percent", type=float,
                 help="share of values below the clipping limit, for --algo hist"),
    click.option("--weight-bits", type=int, default=8, show_default=True),
    click.option("--activation-bits", type=int, default=8, show_default=True),
    click.option("--per-tensor", is_flag=True,
                 help="one scale per weight instead of one per channel"),
    click.option("--no-fuse", is_flag=True, help="do not fold batch norms"),
    click.option("--skip", multiple=True, metavar="NAME",
                 help="do not quantize: name of a layer (and all layers in it), a regular "
                      "expression, or the name of a tensor of a saved model; may be repeated"),
)

output_option = click.option("-o", "--output", required=True, metavar="OUT",
                             help="prefix of the files to write; missing folders are created")


def model_section(model, weights=None, arguments=(), inputs=()):
    """Return the section ``model`` of a recipe."""
    if ":" not in model:
        given = {"weights": weights, "arg": arguments, "input": inputs}
        for name, value in given.items():
            if value:
                raise ConfigError(f"--{name} has an effect with MODULE:FUNCTION only, but the "
                                  f"model is the saved model {model!r}")
        return {"path": model}
    section = {"build": model}
    if weights:
        section["weights"] = weights
    if arguments:
        section["arguments"] = dict(_argument(text) for text in arguments)
    if inputs:
        section["input_spec"] = [_input(text) for text in inputs]
    return section


def data_section(source, labels, keys, transform, batch_size, batches):
    """Return the section ``data.calibration`` or ``data.evaluation`` of a recipe."""
    section = {"source": source, "batch_size": batch_size, "batches": batches,
               "labels": True if labels == "folders" else labels, "keys": list(keys),
               "transform": [_yaml("--transform", text) for text in transform]}
    return {key: value for key, value in section.items() if value not in (None, [])}


_DATA = ("source", "labels", "keys", "transform", "batch_size", "batches")


def split_options(options):
    """Return (options of :data:`data_options`, options of :data:`ptq_options`)."""
    data = {name: options.pop(name) for name in _DATA}
    return data, options


def ptq_section(algo, hist_percent, weight_bits, activation_bits, per_tensor, no_fuse, skip):
    """Return the section ``quantize`` of a recipe for the method ptq."""
    activation = {"name": algo, "quant_bits": activation_bits}
    if hist_percent is not None:
        activation["hist_percent"] = hist_percent
    weight = "AbsmaxQuantizer" if per_tensor else "PerChannelAbsmaxQuantizer"
    section = {"method": "ptq", "activation_quantizer": activation,
               "weight_quantizer": {"name": weight, "quant_bits": weight_bits},
               "fuse": not no_fuse}
    if skip:
        section["skip"] = list(skip)
    return section


def recipe_of(sections):
    """Return the :class:`~paddleq.recipes.Recipe` of a command line, for the working folder.

    Raises:
        ConfigError: lists the mistakes by key, which has the name of the option.
    """
    try:
        return Recipe.from_dict({"paddleq": 1, **sections}, "command line")
    except RecipeError as error:
        raise ConfigError("; ".join(f"{key} {problem}"
                                    for _, key, problem in error.problems)) from None


def _argument(text):
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--arg must be NAME=VALUE, but is {text!r}")
    return name, _yaml("--arg", value)


def _input(text):
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0]:
        raise ConfigError(f"--input must be NAME:SHAPE or NAME:SHAPE:DTYPE, but is {text!r}")
    sizes = parts[1].split("x")
    if not all(size == "?" or size.isdigit() for size in sizes):
        raise ConfigError(f"--input must have a shape such as ?x3x224x224, but is {text!r}")
    found = {"name": parts[0], "shape": [None if size == "?" else int(size) for size in sizes]}
    dtype = parts[2] if len(parts) == 3 else "float32"
    return {**found, "dtype": check_choice("dtype of --input", dtype, DTYPES)}


def _yaml(option, text):
    try:
        return load_yaml(text, option)[0]
    except RecipeError as error:
        raise ConfigError(f"{option} must be YAML, but is {text!r}") from error
