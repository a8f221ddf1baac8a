"""The ``paddleq`` command: its group, its errors and its exit status."""

import ctypes
import importlib
import os
import signal
import sys
from typing import List, Optional

import click

from .. import __version__
from .._checks import hint
from ..errors import ConfigError, PaddleqError

_PR_SET_PDEATHSIG = 1  # of prctl(2): signal that a process gets when its parent ends
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS)
DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
# Command -> its module and the first line of its help. The modules are imported with the command
# that is used, so that the help of the group and completion do not wait for Paddle.
COMMANDS = {
    "ptq": ("export", "Quantize a trained model with a few batches of data (PTQ)."),
    "distill": ("export", "Train a quantized model towards the outputs of the float model."),
    "dynamic": ("export", "Store weights as integers."),
    "qat-export": ("export", "Export a model after quantization-aware training (QAT)."),
    "run": ("export",
            "Run a RECIPE: a YAML file with a model, data, quantization, exports and checks."),
    "export": ("export", "Convert a quantized or float model to another format."),
    "to-pdmodel": ("export", "Convert a model of Paddle 3 (.json) to a .pdmodel."),
    "verify": ("inspect",
               "Run a saved model in all installed runtimes and compare their outputs."),
    "explain": ("inspect",
                "List the operators that a runtime computes in int8 and in float."),
    "inspect": ("inspect",
                "Show the operators, parameters, scales and histograms of a saved model."),
    "sensitivity": ("inspect", "Rank layers by the loss when only one of them is quantized."),
    "perplexity": ("inspect", "Compute the perplexity of a language model on a text."),
    "report": ("inspect",
               "Write an HTML report of a quantized Layer: errors, distributions and sensitivity."),
    "serve-vdl": ("inspect", "Show logs and the graph of a model in VisualDL."),
    "extensions": ("inspect",
                   "List observers, layer types, algorithms, formats, runtimes and methods of "
                   "recipes."),
}


class _Group(click.Group):
    def list_commands(self, ctx):
        return list(COMMANDS)  # in this order

    def resolve_command(self, ctx, args):
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            ctx.fail(f"there is no command {name!r}{hint(name, COMMANDS)}; "
                     f"valid: {', '.join(COMMANDS)}")
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


def load_command(name: str) -> click.Command:
    """Import the command ``name``."""
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    return next(each for each in vars(module).values()
                if isinstance(each, click.Command) and each.name == name)


def _show_version(ctx, _, value):
    if value and not ctx.resilient_parsing:
        import paddle

        click.echo(f"paddleq {__version__} (Paddle {paddle.__version__})")
        ctx.exit()


@click.group(cls=_Group, commands=[click.Command(name, short_help=text)
                                   for name, (_, text) in COMMANDS.items()], no_args_is_help=False,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
             epilog="""\b
examples:
  paddleq ptq float/model -d images.npy -o out/model
  paddleq run recipe.yaml
  paddleq inspect out/model
  paddleq to-pdmodel model.json -o out/model

'paddleq COMMAND --help' describes each command. Completion: eval "$(_PADDLEQ_COMPLETE=bash_source
paddleq)", or zsh_source, fish_source.""")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False,
              callback=_show_version, help="Show the version and exit.")
@click.option("--import", "modules", multiple=True, metavar="MODULE",
              help="Python module that registers extensions; may be repeated")
def paddleq(modules=()):
    """Quantize and export PaddlePaddle models."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"--import {module}: {error}") from error


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line, by default of the process, and return its exit status."""
    if arguments is None and _can_crash(sys.argv[1:]):
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return _wait(child)
        _prepare_child()
    try:
        return paddleq.main(arguments, prog_name="paddleq", standalone_mode=False) or DONE
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if context is not None:
            sys.stderr.write(context.get_usage() + "\n")
        return _report_error(error.format_message(), WRONG_USE
                             if isinstance(error, click.UsageError) else FAILED)
    except PaddleqError as error:
        return _report_error(str(error), WRONG_USE if isinstance(error, ConfigError) else FAILED)
    except (KeyboardInterrupt, click.Abort):
        return _report_error("interrupted", INTERRUPTED)


def _can_crash(arguments):
    """Return True for commands that give files to Paddle, which ends the process on some.

    Only there, and not where Paddle has a device that a process loses when it forks.
    """
    if (sys.platform != "linux" or {"-h", "--help"} & set(arguments)
            or not COMMANDS.keys() - {"serve-vdl", "extensions"} & set(arguments)):
        return False
    import paddle

    return not paddle.is_compiled_with_cuda() and not paddle.is_compiled_with_xpu()


def _prepare_child():
    """Let the child process end with its parent, and take a repeated interrupt as one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import paddle

    paddle.disable_signal_handler()  # the parent reports a crash

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal and from the parent
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def _wait(child):
    """Return the exit status of a child process that runs a command."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    if number in _CRASHES:
        return _report_error(
            f"the process was ended by {signal.Signals(number).name} inside Paddle or another "
            "library: a file of the model is damaged, or has an operator that it cannot run",
            FAILED)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return FAILED


def _report_error(message, status):
    # One line for each mistake, even if a message contains newlines.
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    if status != WRONG_USE:
        lines = [" ".join(lines)]
    lines[-1] = f"paddleq: error: {lines[-1]}"
    sys.stderr.write("\n".join(lines) + "\n")
    return status
