"""Paddle-Lite 2.12 in its own interpreter, and models calibrated for it."""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from paths import HELPERS, ROOT

import paddleq
from paddleq.deploy.model_file import model_files
from paddleq.deploy.runtimes.paddle_lite import with_integers


class Lite:
    """Run Paddle-Lite in a Python 3.7 subprocess.

    Each call starts a new process, because Paddle-Lite aborts its process on an error.
    """

    def __init__(self):
        named = os.environ.get("PADDLEQ_LITE_PYTHON")
        self.python = Path(named) if named else ROOT / ".venv-lite" / "bin" / "python"
        if not self.python.is_file():
            pytest.fail(f"{self.python} does not exist: run `make lite-env` to create a Python 3.7 "
                        "with paddlelite 2.12, or set PADDLEQ_LITE_PYTHON")
        site = subprocess.run(
            [str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
            check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        self.libraries = os.path.join(site, "paddlelite", "libs")

    def _run(self, script, *args):
        done = subprocess.run(
            [str(self.python), str(HELPERS / "lite" / script), *map(str, args)],
            env={**os.environ, "LD_LIBRARY_PATH": self.libraries, "PYTHONPATH": ""},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert done.returncode == 0, (
            f"{script} failed with exit code {done.returncode}:\n{done.stdout[-999:]}")

    def convert(self, path):
        """Convert ``path.pdmodel`` for arm and return the size of ``path.nb`` in bytes."""
        self._run("opt_arm.py", f"{path}.pdmodel", f"{path}.pdiparams", path)
        return os.path.getsize(f"{path}.nb")

    def outputs(self, path, inputs):
        """Return the outputs of ``path.pdmodel`` on x86, as Predictor loads it there."""
        source, target = f"{path}.in.npz", f"{path}.out.npz"
        np.savez(source, *inputs)
        (file,) = model_files(f"{path}.pdmodel")
        with tempfile.TemporaryDirectory() as folder:
            self._run("run_x86.py", *with_integers(file, folder, "x86"), source, target)
        with np.load(target) as found:
            return [found[f"arr_{i}"] for i in range(len(found.files))]

    def run(self, path, x):
        """Return the only output of ``path.pdmodel`` for the only input ``x`` on x86."""
        output, = self.outputs(path, [x])
        return output


def calibrated(net, batches, weight_bits=8, layers=None):
    ptq = paddleq.PTQ("AbsmaxQuantizer",
                      paddleq.paddleslim.PerChannelAbsmaxQuantizer(quant_bits=weight_bits))
    quantized = ptq.quantize(net, quantizable_layer_type=layers)
    ptq.calibrate(quantized, batches)
    return ptq, quantized
