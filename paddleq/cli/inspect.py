"""Commands that analyse models."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import click

from .. import deploy
from ..algorithms import ALGORITHMS
from ..analysis import perplexity as compute_perplexity
from ..checkpoint import CHECKPOINT_FORMATS, load_checkpoint
from ..deploy.runtimes import RUNTIMES
from ..engine.summary import table
from ..errors import ConfigError, DependencyError, FormatError
from ..export.formats import FORMATS
from ..export.pir_to_program import load_program
from ..export.program.inspect import inspect as describe
from ..nn.layer_types import LAYER_TYPES
from ..observers import OBSERVERS
from ..recipes.methods import METHODS, data_of
from ..recipes.run import sensitivities
from ..recipes.schema import ChecksSection
from ..recipes.sources import build_model, read_array, text_encoder
from ..saved_model import SavedModel
from ..saved_model.files import locate
from .options import (
    command,
    data_options,
    default_of,
    model_options,
    ptq_options,
    recipe_of,
    report_written,
)

_BLOCKS = " ▁▂▃▄▅▆▇█"


@command("inspect", """
  paddleq inspect out/model
  paddleq inspect out/model --json > model-description.json""")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def inspect(model, as_json):
    """Show the operators, parameters, scales and histograms of a saved model.

    MODEL is its folder, file or prefix; .pdmodel or .json.
    """
    found = describe(load_program(*locate(model)))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    operators, parameters = found["operators"], found["parameters"]
    sizes = ", ".join(f"{size:,} {dtype}" for dtype, size in parameters["bytes_by_dtype"].items())
    _table("inputs", found["inputs"])
    _table("outputs", found["outputs"])
    _table("operators", [{"type": name, "count": count} for name, count in operators.items()])
    click.echo(f"parameters: {parameters['count']}, {parameters['bytes']:,} bytes ({sizes})")
    _table("quantized weights", found["weights"])
    _table("quantized activations", found["activations"])


def _table(title, rows):
    """Print dicts as a table with the keys of the first as the columns."""
    click.echo(f"{title}: {len(rows) or 'none'}")
    if rows:
        click.echo(textwrap.indent(table([[*rows[0]], *(
            [_cell(key, row[key]) if key in row else "" for key in rows[0]] for row in rows)]),
                                   "  "))


def _cell(key, value):
    if key == "axis":
        return "per tensor" if value == -1 else f"axis {value}"
    if key == "scale":
        return "..".join(f"{edge:.4g}" for edge in (value if isinstance(value, list) else [value]))
    if key == "histogram":
        top = max(value) or 1
        return "".join(_BLOCKS[0 if count == 0 else 1 + (count * 7) // top] for count in value)
    return str(value)


@command("extensions", """
  paddleq extensions | grep formats
  paddleq --import my_package extensions""")
def extensions():
    """List observers, layer types, algorithms, formats, runtimes and methods of recipes.

    "paddleq --import MODULE extensions" includes those that MODULE registers.
    """
    for title, names in (("observers", OBSERVERS), ("layer types", LAYER_TYPES),
                         ("algorithms", ALGORITHMS), ("formats", FORMATS),
                         ("checkpoint formats", CHECKPOINT_FORMATS), ("runtimes", RUNTIMES),
                         ("methods of recipes", METHODS)):
        click.echo(f"{title}: {', '.join(names)}")


@command("sensitivity", """
  paddleq sensitivity float/model -d images.npy --batches 4
  paddleq sensitivity zoo.py:build --weights net.pdparams -d images.npy --algo hist""")
@model_options
@data_options
@ptq_options
@click.option("--json", "as_json", is_flag=True, help="as JSON, worst first")
def sensitivity(model, data, quantize, as_json):
    """Rank layers by the loss when only one of them is quantized, worst first.

    MODEL is as for 'paddleq ptq'. The number is the signal-to-quantization-noise ratio of the
    model's output in dB: 6 dB less is one bit less.
    """
    found = sensitivities(recipe_of(model=model, data={"calibration": data}, quantize=quantize))
    if as_json:
        click.echo(json.dumps([{"layer": row.name, "type": row.type, "sqnr": row.sqnr}
                               for row in found.ranking()], indent=1))
    else:
        click.echo(found.table())


@command("verify", """
  paddleq verify out/model -d images.npy
  paddleq verify out/model -d images.npy --reference out/other --float float/model \\
      --runtime openvino --runtime paddle""")
@click.argument("model")
@data_options
@click.option("--reference", metavar="MODEL",
              help="saved model to compare with, run without optimization (default: MODEL itself)")
@click.option("--float", "float_model", metavar="MODEL",
              help="float model for the comparison of speed and size")
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME",
              help=f"one of {', '.join(RUNTIMES)}; may be repeated (default: all installed ones, "
                   "without paddlelite)")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--top1", type=float, default=default_of(ChecksSection, "top1_agreement"),
              show_default=True, help="minimum share of samples with the same prediction")
@click.option("--error", type=float, default=default_of(ChecksSection, "relative_error"),
              show_default=True, help="maximum relative L2 distance of the outputs")
def verify(model, data, reference, runtimes, **options):
    """Run a saved model in all installed runtimes and compare their outputs.

    Print the agreement of predictions, the distance of outputs, the speed and the size for each
    runtime. Fail if a runtime exceeds a limit.
    """
    recipe = recipe_of(model={"path": model}, data={"evaluation": data},
                       quantize={"method": "dynamic"})
    found = deploy.verify(model, reference, data_of(recipe, "evaluation"),
                          runtimes=list(runtimes) or None, **options)
    click.echo(str(found))
    if not found.ok:
        raise click.ClickException("a runtime exceeds a limit")


@command("explain", """
  paddleq explain out/model --runtime onnxruntime
  paddleq explain out/model.pdmodel --runtime paddle""")
@click.argument("model")
@click.option("--runtime", metavar="NAME",
              help=f"one of {', '.join(RUNTIMES)} (default: the first one that reads the model)")
@click.option("--threads", type=int, default=1, show_default=True)
def explain(model, runtime, threads):
    """List the operators that a runtime computes in int8 and in float, and the reasons.

    MODEL is the prefix of the files or one file. It is compiled by the runtime and not run. The
    operators are those of the runtime's own graph.
    """
    click.echo(str(deploy.explain(model, runtime, threads)))


@command("report", """
  paddleq report zoo.py:build --weights net.pdparams -d images.npy -o report.html""")
@model_options
@data_options
@ptq_options
@click.option("-o", "--output", required=True, metavar="FILE", help="the .html to write")
def report(model, data, quantize, output):
    """Write an HTML report of a quantized Layer: errors, distributions and sensitivity.

    MODEL is MODULE:FUNCTION or FILE.py:FUNCTION. It is quantized as by 'paddleq ptq'.
    """
    if "build" not in model:
        raise ConfigError("MODEL must be MODULE:FUNCTION that builds a Layer, but is "
                          f"{model['path']!r}; use 'paddleq inspect' and 'paddleq sensitivity' "
                          "for saved models")
    sensitivities(recipe_of(model=model, data={"calibration": data}, quantize=quantize), output)
    report_written([output])


@command("perplexity", """
  paddleq perplexity zoo.py:build -d tokens.npy --float zoo.py:build --checkpoint out/w4
  paddleq perplexity out/model -d book.txt --tokenizer tokenizer.json --window 1024 --stride 512""")
@model_options
@click.option("--data", "-d", "source", required=True, metavar="TEXT",
              help="a text file in UTF-8, or a .npy of token numbers")
@click.option("--tokenizer", metavar="TOKENIZER",
              help="for a text file: a tokenizer.json (pip install 'paddleq[text]'), or "
                   "MODULE:FUNCTION from a str to token numbers")
@click.option("--checkpoint", metavar="PREFIX", help="quantized checkpoint to load into the Layer")
@click.option("--float", "float_model", metavar="MODEL",
              help="float model to compare the logits with; one of MODULE:FUNCTION is built with "
                   "the same --arg and --weights")
@click.option("--cache", metavar="FILE",
              help="file for the float model's log-probabilities: written once, then read")
@click.option("--window", type=int, default=512, show_default=True,
              help="tokens in a forward pass")
@click.option("--stride", type=int,
              help="tokens between the beginnings of windows (default: the window)")
@click.option("--max-tokens", type=int, metavar="N", help="use the first N tokens (default: all)")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def perplexity(model, source, tokenizer, checkpoint, float_model, as_json, **options):
    """Compute the perplexity of a language model on a text.

    MODEL is as for 'paddleq ptq': it maps token numbers [1, tokens] to logits. With --float, print
    the KL divergence of its logits from those of the float model too.
    """
    built = _language_model(model)
    if checkpoint is not None:
        if "build" not in model:
            raise ConfigError("--checkpoint has an effect with MODULE:FUNCTION only, but the model "
                              f"is the saved model {model['path']!r}")
        load_checkpoint(built, checkpoint)
    if float_model is not None:
        float_model = _language_model({**model, "build": float_model} if ":" in float_model
                                      else {"path": float_model})
    data, tokenize = source, None
    if source.endswith(".npy"):
        data = read_array(source)
    elif tokenizer is None:
        raise ConfigError(f"--tokenizer is missing, which the text file {source} needs")
    else:
        tokenize = text_encoder(tokenizer, ".")
    found = compute_perplexity(built, data, tokenize=tokenize, float_model=float_model, **options)
    click.echo(json.dumps(dataclasses.asdict(found)) if as_json else str(found))


def _language_model(section):
    if "build" in section:
        return build_model(section["build"], ".", section.get("arguments"), section.get("weights"))
    return SavedModel(*locate(section["path"]))


@command("serve-vdl", """
  paddleq serve-vdl logs
  paddleq serve-vdl logs --model out/model.pdmodel --port 8040""")
@click.argument("logdir")
@click.option("--model", metavar="FILE", help="a .pdmodel whose graph is shown as well")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8040, show_default=True)
def serve_vdl(logdir, model, host, port):
    """Show logs and the graph of a model in VisualDL. Ctrl-C stops the server."""
    if importlib.util.find_spec("visualdl") is None:
        raise DependencyError("serve-vdl needs visualdl: pip install 'paddleq[viz]'")
    if not os.path.isdir(logdir):
        raise FormatError(f"there is no folder {logdir}")
    if model is not None and not os.path.isfile(model):
        raise FormatError(f"there is no file {model}")
    # Without a language the server answers requests without one with an error.
    command = [sys.executable, "-m", "visualdl.server.app", "--logdir", logdir, "--host", host,
               "--port", str(port), "--language", "en"]
    if model is not None:
        command += ["--model", model]
    click.echo(f"http://{host}:{port}/")
    with subprocess.Popen(command) as server:
        try:
            status = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            return
    click.get_current_context().exit(status)
