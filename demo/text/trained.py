"""The trained models, from disk where they were trained before."""

import os
import subprocess
import sys
from pathlib import Path

from . import attention, data, models, training
from .data import training_tokens
from .kept import ROOT, kept
from .training import RECIPES

# The allocator gives each tensor back to the system at once, which then has to clear its pages
# anew: an elementwise operator takes up to 20 times as long as its work.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2 ** 40)}


def environment():
    """Of a process that trains: one thread, so that sums come in one order whoever asks."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", **KEEP_MEMORY,
             "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    if _is_amd():
        # The matrix products of Paddle's wheels choose code of 2010 where the processor is not
        # Intel's, at a third of the speed, unless told to take that for AVX2.
        found.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    return found


def _is_amd():
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def trained_state(name, seed=0):
    """Weights of a trained model, arrays by name.

    Args:
        name: one of :data:`~.training.RECIPES`.
        seed: of the first weights and of the order of the text.
    """
    sources = [Path(module.__file__).read_bytes()
               for module in (attention, data, models, training)]
    reasons = [*sources, repr(RECIPES[name]).encode(), training_tokens().tobytes()]
    return kept(f"{name}-{seed}", reasons, lambda path: subprocess.run(
        [sys.executable, "-m", "demo.text", name, str(seed), str(path)],
        env=environment(), check=True))


def trained(name, seed=0):
    """A trained model, in evaluation mode: see :func:`trained_state`."""
    model = RECIPES[name].make()
    model.set_state_dict(trained_state(name, seed))
    model.eval()
    return model
