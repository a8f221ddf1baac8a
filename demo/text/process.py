"""A process that trains on a processor as fast as that can."""

import os
import sys
from pathlib import Path

from .kept import ROOT

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
