"""Processes that ``paddle.distributed`` connects, with gloo on the CPU."""

import os
import socket
import subprocess
import sys

from paths import HELPERS

WORKER = HELPERS / "distributed_worker.py"


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def environments(ranks):
    """The environment variables of each process, as ``paddle.distributed.launch`` sets them."""
    ports = _free_ports(ranks + 1)
    endpoints = [f"127.0.0.1:{port}" for port in ports[1:]]
    for rank, endpoint in enumerate(endpoints):
        yield {**os.environ, "PADDLE_MASTER": f"127.0.0.1:{ports[0]}",
               "PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": str(ranks),
               "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
               "PADDLE_CURRENT_ENDPOINT": endpoint, "PADDLE_DISTRI_BACKEND": "gloo",
               "OMP_NUM_THREADS": "1", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}


def run_ranks(folder, *scenarios, ranks=2, timeout=600):
    """Run scenarios of ``distributed_worker.py`` in connected processes.

    The files that they write are in ``folder``. Returns (exit code, output) of each process.
    """
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), *scenarios],
                         env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True)
        for environment in environments(ranks)]
    results = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout)
            results.append((process.returncode, output))
    finally:
        for process in processes:
            process.kill()
    return results
