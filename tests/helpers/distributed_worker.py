"""Scenarios of a process that ``paddle.distributed`` connects with others.

    python distributed_worker.py FOLDER SCENARIO...

Each scenario is a function (rank, size) of :mod:`distributed_training` or
:mod:`distributed_calibration` that returns name -> array, written to FOLDER/SCENARIO.RANK.npz.
Tests call the same functions with (0, 1) in their own process.
"""

import sys
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings zlib symbols that break a later import)
from pathlib import Path

import distributed_calibration
import distributed_training
import numpy as np
import paddle.distributed as dist


def run(name, rank, size):
    function, _, argument = name.partition(":")
    module = distributed_training if hasattr(distributed_training, function) else (
        distributed_calibration)
    return getattr(module, function)(rank, size, *([argument] if argument else []))


def main(folder, *scenarios):
    distributed_calibration.FOLDER = folder
    dist.init_parallel_env()
    rank, size = dist.get_rank(), dist.get_world_size()
    for name in scenarios:
        print(name, flush=True)
        np.savez(Path(folder) / f"{name}.{rank}.npz", **run(name, rank, size))


if __name__ == "__main__":
    main(*sys.argv[1:])
