"""Commands that convert models to other formats."""

import os

import click

from ..errors import ConfigError
from ..export import to_onnx, to_program_desc
from ..export.program.program import Program
from ..export.trace import trace_float
from ..recipes.run import input_specs, saved_model
from ..recipes.sources import build_model
from .main import STATUS
from .options import layer_options, model_section, output_option


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
              help="file of parameters (default: the .pdiparams file next to the .json)")
def to_pdmodel(model, output, params):
    """Convert a model of Paddle 3 (.json) to a .pdmodel.

    MODEL is the .json file of paddle.jit.save. Paddle-Lite, OpenVINO and the int8 mode of Paddle
    Inference require a .pdmodel.
    """
    # The suffix is optional.
    if output.endswith(".pdmodel"):
        output = output[:-len(".pdmodel")]
    to_program_desc(model, output, params)
    written = [f"{output}.pdmodel", f"{output}.pdiparams"]
    blocks = Program.load(written[0], None).desc.blocks
    count = sum(op.type not in ("feed", "fetch") for block in blocks for op in block.ops)
    size = sum(os.path.getsize(path) for path in written)
    click.echo(f"wrote {' and '.join(written)}: {count} operators, {size:,} bytes")


@click.command(epilog="""\b
examples:
  paddleq export out/model --format onnx -o out/model
  paddleq export zoo.py:build --weights net.pdparams --input image:?x3x224x224 \\
      --format onnx -o out/float

""" + STATUS)
@click.argument("model")
@layer_options
@output_option
@click.option("--format", type=click.Choice(["onnx", "pdmodel"]), required=True)
@click.option("--opset", type=int,
              help="ONNX opset, 13 to 21 (default: 17, or the minimum of the model)")
def export(model, output, format, opset, weights, arguments, inputs):
    """Convert a quantized or float model to another format.

    MODEL is a saved model (its folder, file or prefix) or MODULE:FUNCTION, FILE.py:FUNCTION, which
    returns a paddle.nn.Layer, which is not quantized further.
    """
    if opset is not None and format != "onnx":
        raise ConfigError("--opset is for --format onnx")
    section = model_section(model, weights, arguments, inputs)
    written = [f"{output}.pdmodel", f"{output}.pdiparams"]
    if "build" in section:
        if "input_spec" not in section:
            raise ConfigError("--input is missing")
        net = build_model(section["build"], ".", section.get("arguments"), section.get("weights"))
        spec = input_specs(section["input_spec"])
        if format == "onnx":
            written = [to_onnx(net, output, spec, opset=opset)]
        else:
            program = trace_float(net, spec)
            program.save(*written)
    elif format == "onnx":
        folder, name = saved_model(model)
        path = os.path.join(folder, name) if name else folder
        written = [to_onnx(os.path.splitext(path)[0] if name else path, output, opset=opset)]
    else:
        folder, name = saved_model(model)
        to_program_desc(os.path.join(folder, name or ""), output)
    size = sum(os.path.getsize(path) for path in written)
    click.echo(f"wrote {' and '.join(written)}: {size:,} bytes")
