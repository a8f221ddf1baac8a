"""Commands that look at models."""

import json

import click

from ..export.inspect import inspect as describe
from ..export.load import load_saved
from ..frontends.saved_models import find_files
from ..recipes.run import saved_model
from .main import STATUS

_BLOCKS = " ▁▂▃▄▅▆▇█"


@click.command(epilog="""\b
examples:
  paddleq inspect out/model
  paddleq inspect out/model --json > model-description.json

""" + STATUS)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def inspect(model, as_json):
    """Show what is in a saved model: operators, parameters, scales and histograms.

    MODEL is its folder, file or prefix; .pdmodel or .json.
    """
    found = describe(load_saved(*find_files(*saved_model(model), None)))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for what in ("inputs", "outputs"):
        click.echo(f"{what}:")
        for each in found[what]:
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
        ("scales", lambda row: "per tensor" if row["axis"] == -1 else f"axis {row['axis']}"),
        ("threshold", lambda row: "..".join(f"{edge:.4g}" for edge in row["threshold"])),
        ("integers", lambda row: _bars(row.get("histogram")))])
    _table("quantized activations", found["activations"], [
        ("tensor", lambda row: row["name"]), ("read by", lambda row: row["reader"]),
        ("bits", lambda row: str(row["bits"])),
        ("threshold", lambda row: f"{row['threshold']:.4g}")])


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
