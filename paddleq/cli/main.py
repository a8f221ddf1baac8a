"""The ``paddleq`` command: for each subcommand a function that describes it and one that runs it.

It stands on argparse, so that installing paddleq brings no package for it.
"""

import argparse
import os
import sys

import paddle

from .. import __version__
from ..errors import ConfigError, PaddleqError
from ..export import to_program_desc
from ..export.program import Program

_DONE, _FAILED, _WRONG_USE = 0, 1, 2

_STATUS = """\
exit status:
  0  done; one line on standard output says what was written
  1  the model cannot be converted or written; one line on standard error says why
  2  the command line is wrong
Nothing is written unless the status is 0. Paddle itself may warn on standard error."""


def main(arguments=None):
    """Run the command.

    Args:
        arguments: list of texts; None for those of the process.

    Returns:
        The exit status. A wrong command line raises ``SystemExit(2)``, as argparse does.

    Examples:
        >>> from paddleq.cli.main import main
        >>> main(["to-pdmodel", "missing.json", "-o", "out"])
        1
    """
    options = _parser().parse_args(arguments)
    try:
        done = options.run(options)
    except PaddleqError as error:
        # One line, whatever the message holds.
        sys.stderr.write(f"paddleq: error: {' '.join(str(error).split())}\n")
        return _WRONG_USE if isinstance(error, ConfigError) else _FAILED
    sys.stdout.write(f"{done}\n")
    return _DONE


def _parser():
    parser = argparse.ArgumentParser(
        prog="paddleq", description="Quantization of PaddlePaddle models, and their export.",
        epilog="example:\n  paddleq to-pdmodel model.json -o out/model\n\n"
               "'paddleq COMMAND --help' has more on each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version",
                        version=f"paddleq {__version__} (Paddle {paddle.__version__})")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    for describe in COMMANDS:
        describe(commands)
    return parser


def _describe_to_pdmodel(commands):
    parser = commands.add_parser(
        "to-pdmodel", help="write a model that Paddle 3 saved (.json) as a .pdmodel",
        description="Write a model that Paddle 3 saved as PIR (.json and .pdiparams) in the "
                    "format that Paddle-Lite,\nOpenVINO and the int8 mode of Paddle Inference "
                    "read (.pdmodel and .pdiparams).",
        epilog="examples:\n"
               "  paddleq to-pdmodel model.json -o out/model\n"
               "      reads model.json and model.pdiparams,\n"
               "      writes out/model.pdmodel and out/model.pdiparams\n"
               "  paddleq to-pdmodel model.json --params weights.pdiparams -o out/model\n\n"
               + _STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the .json that paddle.jit.save wrote")
    parser.add_argument("-o", "--output", required=True, metavar="OUT",
                        help="prefix of the two files to write; folders are made")
    parser.add_argument("--params", metavar="FILE",
                        help="the parameters (default: the .pdiparams beside the .json)")
    parser.set_defaults(run=_to_pdmodel)


def _to_pdmodel(options):
    # "-o out.pdmodel" can only mean this.
    output = options.output
    if output.endswith(".pdmodel"):
        output = output[:-len(".pdmodel")]
    to_program_desc(options.model, output, options.params)
    written = [f"{output}.pdmodel", f"{output}.pdiparams"]
    blocks = Program.load(written[0], None).desc.blocks
    count = sum(op.type not in ("feed", "fetch") for block in blocks for op in block.ops)
    size = sum(os.path.getsize(path) for path in written)
    return f"wrote {' and '.join(written)}: {count} operators, {size:,} bytes"


COMMANDS = [_describe_to_pdmodel]
