"""Commands that write a saved model in another format."""

import os

import click

from ..export import to_program_desc
from ..export.program import Program
from .main import STATUS
from .options import output_option


@click.command("to-pdmodel", epilog="""\b
examples:
  paddleq to-pdmodel model.json -o out/model
      reads model.json and model.pdiparams,
      writes out/model.pdmodel and out/model.pdiparams
  paddleq to-pdmodel model.json --params weights.pdiparams -o out/model

""" + STATUS)
@click.argument("model")
@output_option
@click.option("--params", metavar="FILE",
              help="the parameters (default: the .pdiparams beside the .json)")
def to_pdmodel(model, output, params):
    """Write a model that Paddle 3 saved (.json) as a .pdmodel.

    MODEL is the .json that paddle.jit.save wrote. The .pdmodel is what Paddle-Lite, OpenVINO and
    the int8 mode of Paddle Inference read.
    """
    # "-o out.pdmodel" can only mean this.
    if output.endswith(".pdmodel"):
        output = output[:-len(".pdmodel")]
    to_program_desc(model, output, params)
    written = [f"{output}.pdmodel", f"{output}.pdiparams"]
    blocks = Program.load(written[0], None).desc.blocks
    count = sum(op.type not in ("feed", "fetch") for block in blocks for op in block.ops)
    size = sum(os.path.getsize(path) for path in written)
    click.echo(f"wrote {' and '.join(written)}: {count} operators, {size:,} bytes")
