"""Command that lists the registered extension points."""

import click

from ..algorithms import ALGORITHMS
from ..deploy.runtimes import RUNTIMES
from ..export.formats import FORMATS
from ..nn.layer_types import LAYER_TYPES
from ..observers import OBSERVERS
from .main import STATUS


@click.command("extensions", epilog=STATUS)
def extensions():
    """List observers, layer types, algorithms, export formats and runtimes.

    "paddleq --import MODULE extensions" includes those that MODULE registers.

    \b
    examples:
      paddleq extensions | grep formats
      paddleq --import my_package extensions
    """
    for title, names in (("observers", OBSERVERS), ("layer types", LAYER_TYPES),
                         ("algorithms", ALGORITHMS), ("formats", FORMATS),
                         ("runtimes", RUNTIMES)):
        click.echo(f"{title}: {', '.join(names)}")
