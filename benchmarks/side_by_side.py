"""Shared parts of timing benchmarks: fixed threads, interleaved timing, tables.

Import it before paddle: it fixes the number of threads.
"""

import os

THREADS = int(os.environ.get("BENCHMARK_THREADS", 2))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ.setdefault("GLOG_minloglevel", "2")

import json  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
import zlib  # noqa: E402, F401  (Paddle 2.6 crashes in zlib unless it was loaded first)

warnings.filterwarnings("ignore", message="No ccache found")

import paddle  # noqa: E402
from tables import table  # noqa: E402, F401  (for those who import all from here)


def interleaved(variants, rounds, runs=1, warmup=1):
    """Time functions side by side: A B C A B C ..., so that all meet the same machine.

    Args:
        variants: dict name -> function without arguments.
        rounds: how often it goes round.
        runs: timed calls of a variant each time it has its turn.
        warmup: calls of each turn that are not timed.

    Returns:
        dict name -> list of seconds.
    """
    times = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in variants.items():
            for _ in range(warmup):
                function()
            for _ in range(runs):
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    return times


def timed(function):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def median(values):
    """The median of a list of numbers."""
    return statistics.median(values)


def child(script, *arguments, environment=None):
    """Run a benchmark script again in a fresh process; returns (last JSON line, all output).

    Raises:
        RuntimeError: with the child's output, if it fails.
    """
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace",
                          env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else None), done.stdout


def heading(text):
    """Print a title with the conditions of the measurement."""
    load = os.getloadavg()[0]
    print(f"\n{text}\nPaddle {paddle.__version__}, {THREADS} threads, load average before "
          f"{load:.1f} on {os.cpu_count()} CPUs")
    if load > 0.5:
        print("Something else is running: absolute times are not to be trusted, ratios less so.")
