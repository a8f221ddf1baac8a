"""Quantize a network with a resume_dir in processes that are killed at random times.

Run as ``python resume_worker.py folder kills seed``. Each process is a fork of this one before any
computation. Prints the digest of the uninterrupted result, the digest of each finished one, and the
number of kills by number of finished layers.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import zlib  # noqa: F401  (before paddle, as in conftest.py)

import paddle
from rules import rules
from transformers import Llama, sentences

from paddleq import PerGroup, QuantSpec
from paddleq.algorithms import GPTQ, SmoothQuant, quantize_layer_by_layer
from paddleq.config import LayerConfig

POLICY = LayerConfig(QuantSpec(4, granularity=PerGroup(16)), smoother=SmoothQuant(),
                      rounder=GPTQ())
DEPTH = 6


def quantize(resume_dir, result):
    """The work of one process: leaves the digest of the network in the file ``result``."""
    paddle.seed(7)
    network = Llama(DEPTH)
    quantize_layer_by_layer(network, None, rules(network, POLICY, "per_channel"), sentences(4),
                            resume_dir=resume_dir, progress=False)
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    digest.update(network(sentences(1)[0])["logits"].numpy().tobytes())
    with open(result, "w", encoding="utf-8") as file:
        file.write(digest.hexdigest())


def started(resume_dir, result):
    """The process id of a fork that does the work."""
    pid = os.fork()
    if pid:
        return pid
    try:
        quantize(resume_dir, result)
        os._exit(0)
    finally:
        os._exit(1)


def digest_in(result):
    with open(result, encoding="utf-8") as file:
        return file.read()


def main(folder, kills, seed):
    dice, resume_dir = random.Random(seed), os.path.join(folder, "resume")
    result = os.path.join(folder, "result")
    begin = time.monotonic()
    assert os.waitpid(started(None, result), 0)[1] == 0
    whole = time.monotonic() - begin
    report = {"uninterrupted": digest_in(result), "resumed": [], "kills": []}
    while len(report["kills"]) < kills or os.path.exists(resume_dir):
        os.remove(result)
        pid = started(resume_dir, result)
        if len(report["kills"]) < kills:
            time.sleep(dice.uniform(0, 0.6 * whole))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            finished = [n for n in (os.listdir(resume_dir) if os.path.isdir(resume_dir) else [])
                        if n.startswith("layer") and n.endswith(".json")]
            report["kills"].append(len(finished))
            open(result, "w", encoding="utf-8").close()
            continue
        assert status == 0
        report["resumed"].append(digest_in(result))
        shutil.rmtree(resume_dir)
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
