"""Commands that analyse models."""

import importlib.util
import json
import os
import subprocess
import sys

import click

from .. import deploy
from ..errors import ConfigError, DependencyError, FormatError
from ..export.pir_to_program import load_program
from ..export.program.inspect import inspect as describe
from ..recipes.run import saved_model, sensitivities, write_report
from ..recipes.sources import open_data
from ..saved_model.files import find_files
from .main import FAILED, STATUS
from .options import (
    data_options,
    data_section,
    layer_options,
    model_section,
    ptq_options,
    ptq_section,
    recipe_of,
    split_options,
)

_BLOCKS = " ▁▂▃▄▅▆▇█"


@click.command(epilog="""\b
examples:
  paddleq inspect out/model
  paddleq inspect out/model --json > model-description.json

""" + STATUS)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def inspect(model, as_json):
    """Show the operators, parameters, scales and histograms of a saved model.

    MODEL is its folder, file or prefix; .pdmodel or .json.
    """
    found = describe(load_program(*find_files(*saved_model(model), None)))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for group in ("inputs", "outputs"):
        click.echo(f"{group}:")
        for each in found[group]:
            click.echo(f"  {each['name']}  {each['dtype']} {each['shape']}")
    click.echo("operators:")
    for name, count in found["operators"].items():
        click.echo(f"  {count:5d}  {name}")
    parameters = found["parameters"]
    by = ", ".join(f"{size:,} {dtype}" for dtype, size in parameters["bytes_by_dtype"].items())
    click.echo(f"parameters: {parameters['count']}, {parameters['bytes']:,} bytes ({by})")
    _table("quantized weights", found["weights"], [
        ("name", lambda row: row["name"]), ("dtype", lambda row: row["dtype"]),
        ("bits", lambda row: str(row["bits"])), ("shape", lambda row: str(row["shape"])),
        ("granularity",
         lambda row: "per tensor" if row["axis"] == -1 else f"axis {row['axis']}"),
        ("scale", lambda row: "..".join(f"{edge:.4g}" for edge in row["scale"])),
        ("integers", lambda row: _bars(row.get("histogram")))])
    _table("quantized activations", found["activations"], [
        ("tensor", lambda row: row["name"]), ("read by", lambda row: row["reader"]),
        ("bits", lambda row: str(row["bits"])),
        ("scale", lambda row: f"{row['scale']:.4g}")])


@click.command(epilog="""\b
examples:
  paddleq sensitivity float/model -d images.npy --batches 4
  paddleq sensitivity zoo.py:build --weights net.pdparams -d images.npy --algo hist

""" + STATUS)
@click.argument("model")
@data_options
@layer_options
@ptq_options
@click.option("--json", "as_json", is_flag=True, help="as JSON, worst first")
def sensitivity(model, weights, arguments, inputs, as_json, **options):
    """Rank layers by the loss when only one of them is quantized, worst first.

    MODEL is as for 'paddleq ptq'. The number is the signal-to-quantization-noise ratio of the
    model's output in dB: 6 dB less is one bit less.
    """
    data, how = split_options(options)
    found = sensitivities(recipe_of({
        "model": model_section(model, weights, arguments, inputs),
        "data": {"calibration": data_section(**data)}, "quantize": ptq_section(**how),
        "export": [{"path": "unused"}]}))
    if as_json:
        click.echo(json.dumps([{"layer": row.name, "type": row.type, "sqnr": row.sqnr}
                               for row in found.ranking()], indent=1))
    else:
        click.echo(found.table())


@click.command(epilog="""\b
examples:
  paddleq verify out/model -d images.npy
  paddleq verify out/model -d images.npy --reference out/other --float float/model \\
      --runtime openvino --runtime paddle

""" + STATUS)
@click.argument("model")
@data_options
@click.option("--reference", metavar="MODEL",
              help="saved model to compare with, run without optimization (default: MODEL itself)")
@click.option("--float", "float_model", metavar="MODEL",
              help="float model for the comparison of speed and size")
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME",
              help=f"one of {', '.join(deploy.runtimes.RUNTIMES)}; may be repeated (default: all "
                   "installed ones, without paddlelite)")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--top1", type=float, default=0.99, show_default=True,
              help="minimum share of samples with the same prediction")
@click.option("--error", type=float, default=0.1, show_default=True,
              help="maximum relative L2 distance of the outputs")
def verify(model, reference, float_model, runtimes, threads, top1, error, **data):
    """Run a saved model in all installed runtimes and compare their outputs.

    Print the agreement of predictions, the distance of outputs, the speed and the size for each
    runtime. Fail if a runtime exceeds a limit.
    """
    section = data_section(**data)
    found = deploy.verify(model, reference, open_data(**section), float_model=float_model,
                          runtimes=list(runtimes) or None, threads=threads, top1=top1,
                          error=error)
    click.echo(str(found))
    if not found.ok:
        click.echo("paddleq: error: a runtime exceeds a limit", err=True)
        click.get_current_context().exit(FAILED)


@click.command(epilog="""\b
examples:
  paddleq report zoo.py:build --weights net.pdparams -d images.npy -o report.html

""" + STATUS)
@click.argument("model")
@data_options
@layer_options
@ptq_options
@click.option("-o", "--output", required=True, metavar="FILE", help="the .html to write")
def report(model, output, weights, arguments, inputs, **options):
    """Write an HTML report of a quantized Layer: errors, distributions and sensitivity.

    MODEL is MODULE:FUNCTION or FILE.py:FUNCTION. It is quantized as by 'paddleq ptq'.
    """
    if ":" not in model:
        raise ConfigError(f"MODEL must be MODULE:FUNCTION that builds a Layer, but is {model!r}; "
                          "use 'paddleq inspect' and 'paddleq sensitivity' for saved models")
    data, how = split_options(options)
    write_report(recipe_of({
        "model": model_section(model, weights, arguments, inputs),
        "data": {"calibration": data_section(**data)}, "quantize": ptq_section(**how),
        "export": [{"path": "unused"}]}), output)
    click.echo(f"wrote {output}: {os.path.getsize(output):,} bytes")


@click.command("serve-vdl", epilog="""\b
examples:
  paddleq serve-vdl logs
  paddleq serve-vdl logs --model out/model.pdmodel --port 8040

""" + STATUS)
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


def _table(title, rows, columns):
    click.echo(f"{title}: {len(rows) or 'none'}")
    if not rows:
        return
    cells = [[name for name, _ in columns]] + [[get(row) for _, get in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        click.echo("  " + "  ".join(cell.ljust(width)
                                    for cell, width in zip(row, widths)).rstrip())


def _bars(counts):
    if not counts:
        return ""
    top = max(counts) or 1
    return "".join(_BLOCKS[0 if count == 0 else 1 + (count * 7) // top] for count in counts)
