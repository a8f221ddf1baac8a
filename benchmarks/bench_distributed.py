#!/usr/bin/env python3
"""Cost of reducing activation statistics over processes in a training step.

    python benchmarks/bench_distributed.py [--steps N] [--latency MICROSECONDS]

Trains MobileNetV1 in two processes on the CPU (gloo), in turn with and without the reduction, and
prints the operations and bytes of a step and the median times. Then it estimates the time that the
reductions of a step take on more devices: each is a sum of log2(devices) messages, twice, of the
given latency, because a few bytes take no time beside it.
"""

import argparse
import math
import os
import socket
import statistics
import subprocess
import sys
import time

import paddle
import paddle.distributed as dist

import paddleq
from paddleq.engine import fake_quantizers

DEVICES = (8, 64, 512)


def measure(steps):
    """Train in this process, one of two; rank 0 prints the figures."""
    dist.init_parallel_env()
    paddle.seed(dist.get_rank())
    net = paddleq.QAT().quantize(paddle.vision.models.mobilenet_v1(scale=0.5))
    model = paddle.DataParallel(net)
    optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
    quantizers = [q for _, q in fake_quantizers(net) if q.reduce is not None]
    sizes, original = [], dist.all_reduce

    def counted(x, *args, **kwargs):
        sizes.append(x.size * x.element_size())
        return original(x, *args, **kwargs)

    dist.all_reduce = counted
    times = {"max": [], None: []}
    for step in range(2 * steps + 2):
        reduce = "max" if step % 2 else None
        for quantizer in quantizers:
            quantizer.reduce = reduce
        x = paddle.rand([4, 3, 224, 224])
        sizes.clear()
        start = time.perf_counter()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        dist.barrier()
        if step > 1:  # the first of each warm up
            times[reduce].append(time.perf_counter() - start)
        if reduce:
            counts = len(sizes), sum(sizes)
    if dist.get_rank() == 0:
        medians = {reduce: statistics.median(each) for reduce, each in times.items()}
        print("FIGURES", *counts, medians["max"], medians[None])


def run_two(steps):
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    master, *ends = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = [subprocess.Popen(
        [sys.executable, __file__, "--steps", str(steps), "--process"], text=True,
        stdout=subprocess.PIPE, env={
            **os.environ, "PADDLE_MASTER": master, "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ENDPOINTS": ",".join(ends),
            "PADDLE_CURRENT_ENDPOINT": end, "PADDLE_DISTRI_BACKEND": "gloo",
            "OMP_NUM_THREADS": "1"}) for rank, end in enumerate(ends)]
    output = processes[0].communicate()[0]
    if processes[1].wait() or processes[0].returncode:
        raise SystemExit("a process failed")
    line = next(line for line in output.splitlines() if line.startswith("FIGURES"))
    return [float(text) for text in line.split()[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--latency", type=float, default=10.0, help="of a message, microseconds")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        measure(options.steps)
        return
    operations, size, reduced, local = run_two(options.steps)
    print(f"MobileNetV1, 2 processes: {operations:.0f} reductions and {size:.0f} bytes a step")
    print(f"seconds a step: {reduced:.3f} with the reductions, {local:.3f} without, "
          f"ratio {reduced / local:.3f}")
    for devices in DEVICES:
        each = 2 * math.ceil(math.log2(devices)) * options.latency
        print(f"{devices} devices, estimated: {operations * each / 1000:.1f} ms a step "
              f"({each:.0f} us each, {options.latency:g} us a message)")


if __name__ == "__main__":
    main()
