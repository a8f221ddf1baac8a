"""Paddle-Lite, in a process of a Python interpreter that has it."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Union

from ..._atomic_write import write_together
from ...errors import InferenceError
from ...export.pir_to_program import load_program
from ...export.program.op_builder import OpBuilder
from ...export.program.passes.activation_steps import restore_quantizers
from ...export.program.passes.dequantize_weights import (
    INFERENCE_WEIGHTS,
    restore_dequantize_linear,
)
from ..model_file import model_files, pdmodel_prefix
from . import lite_child
from .base import Runtime, Session, register_runtime

INTERPRETER = "PADDLEQ_LITE_PYTHON"  # environment variable with the path of the interpreter
_CHILD = str(Path(__file__).with_name("lite_child.py"))
_TRANSPOSED = {"conv2d_transpose": "Filter", "depthwise_conv2d_transpose": "Filter"}
_LAST_BYTES = 2000  # of its output, for error messages
_PROBE = ("import importlib.util, os, sysconfig; print(importlib.util.find_spec('paddlelite') and "
          "os.path.join(sysconfig.get_path('platlib'), 'paddlelite', 'libs'))")


@register_runtime("paddlelite")
class PaddleLite(Runtime):
    """Paddle-Lite on x86, in a process of the interpreter ``PADDLEQ_LITE_PYTHON``.

    Its kernels for x86 are exact for convolutions with weights of at most 7 bits only, and compute
    no quantized Linear, so it is not used by ``runtime="auto"``.
    """

    title, module = "Paddle-Lite", "paddlelite"
    kinds = (".pdmodel",)
    remedy = (f"set {INTERPRETER} to a Python 3.6 or 3.7 that has it "
              "(pip install numpy paddlelite==2.12)")

    def installed(self):
        return self._libraries() is not None

    def version(self):
        script = ("import pkg_resources; "
                  "print(pkg_resources.get_distribution('paddlelite').version)")
        return _run([_interpreter(), "-c", script], env=self.environment()).stdout.strip()

    def load(self, file, threads, as_is=False):
        file.check()
        with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
            paths = with_integers(file, folder, "x86")
            return _Session(file, self.command("run", *paths, threads), self.environment())

    def command(self, *arguments):
        """Return the command line of a Paddle-Lite process."""
        return [_interpreter(), _CHILD, *map(str, arguments)]

    def environment(self):
        """Return the environment of the process, with the libraries of Paddle-Lite."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith("PYTHON")}
        return {**kept, "LD_LIBRARY_PATH": self._libraries()}

    def _libraries(self):
        if importlib.util.find_spec("paddlelite") is None and INTERPRETER not in os.environ:
            return None
        try:
            done = _run([_interpreter(), "-c", _PROBE])
        except OSError:
            return None
        found = done.stdout.strip()
        return found if done.returncode == 0 and found != "None" else None


def _interpreter():
    return os.environ.get(INTERPRETER, sys.executable)


def _run(command, env=None, stderr=subprocess.PIPE):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, errors="replace",
                          universal_newlines=True, check=False, env=env)


class _Session(Session):
    def __init__(self, file, command, environment):
        self.inputs, self.outputs = file.inputs, file.outputs
        self._file, self._lock = file, threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log, env=environment)
        self._receive("load")

    def run(self, arrays):
        with self._lock:
            with contextlib.suppress(OSError):  # if the process has ended, _receive raises
                lite_child.send(self._process.stdin, arrays)
            return self._receive("run")

    def clone(self):
        return self  # one process, one thread at a time

    def close(self):
        self._process.kill()
        self._process.communicate()  # closes the pipes
        self._log.close()

    def _receive(self, doing):
        arrays = lite_child.receive(self._process.stdout)
        if arrays is None:
            code = self._process.wait()
            self._log.seek(0, os.SEEK_END)
            self._log.seek(max(self._log.tell() - _LAST_BYTES, 0))
            message = self._log.read().decode(errors="replace").strip().splitlines()
            raise InferenceError(f"Paddle-Lite ended with {code} in {doing} of "
                                 f"{self._file}: {' '.join(message[-3:])[-500:]}")
        return arrays


def with_integers(file, folder, places):
    """Write a copy in which weighted operators of quantized inputs compute with integers.

    Paddle Inference's int8 mode computes some wrongly and refuses transposed convolutions.
    Paddle-Lite has int8 kernels for them, those of transposed convolutions for ARM alone, and
    refuses weights that are computed otherwise.

    Args:
        file: the :class:`ModelFile`.
        folder: of the copy.
        places: as those of :func:`to_lite`.

    Returns:
        The paths of both files, those of ``file`` if it is not quantized.
    """
    if not file.quantized:
        return file.path, file.params or ""
    slots = {**INFERENCE_WEIGHTS, **_TRANSPOSED} if places == "arm" else INFERENCE_WEIGHTS
    program = load_program(file.path, file.params)
    restore_quantizers(program)
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        restore_dequantize_linear(builder, block, slots, per_token=False)
    paths = os.path.join(folder, "m.pdmodel"), os.path.join(folder, "m.pdiparams")
    program.save(*paths, workarounds=False)
    return paths


def to_lite(path: Union[str, "os.PathLike[str]"], out: Union[str, "os.PathLike[str]", None] = None,
            places: str = "arm") -> str:
    """Convert a ``.pdmodel`` to Paddle-Lite's ``.nb``.

    It runs in the interpreter of the environment variable ``PADDLEQ_LITE_PYTHON``.

    Args:
        path: prefix of the ``.pdmodel`` and ``.pdiparams``.
        out: prefix of the file to write. Default: ``path``.
        places: "arm" (default), "x86", "opencl" or another that Paddle-Lite's ``opt`` knows.

    Returns:
        The path of the ``.nb``.

    Raises:
        DependencyError: Paddle-Lite is not installed.
        FormatError: the model is missing or damaged.
        InferenceError: Paddle-Lite cannot convert it.

    Examples:
        >>> import paddleq
        >>> try:
        ...     paddleq.deploy.to_lite("out/no_such_model")
        ... except (paddleq.errors.DependencyError, paddleq.errors.FormatError) as error:
        ...     print("refused")
        refused
    """
    lite = PaddleLite()
    lite.require()
    prefix = pdmodel_prefix("path", path)
    (file,) = model_files(prefix + ".pdmodel")
    file.check()
    target = (prefix if out is None else os.fspath(out)) + ".nb"

    def convert(new):  # opt appends .nb
        with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
            model, params = with_integers(file, folder, places)
            done = _run(lite.command("opt", model, params, places, new), lite.environment(),
                        subprocess.STDOUT)
        if done.returncode != 0 or not os.path.exists(new + ".nb"):
            message = " ".join(done.stdout.strip().splitlines()[-3:])[-500:]
            raise InferenceError(f"Paddle-Lite's opt ended with {done.returncode} on {file}: "
                                 f"{message}")
        os.replace(new + ".nb", new)

    write_together({target: convert})
    return target
