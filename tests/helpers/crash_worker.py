"""Kill a process that saves a checkpoint, before each of its steps in turn.

    PYTHONPATH=... python crash_worker.py FOLDER [interleaved]

A step opens a file for writing, or renames one, in ``FOLDER``. Each attempt overwrites a checkpoint
of ones with one of twos; the file of an attempt is ``FOLDER/<number>/model``. Prints a JSON list
with the number of renames that each killed process had finished, the total at the end.
``interleaved`` renames each file right after it was written, which is the wrong order.
"""

import json
import os
import signal
import sys
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

import paddle
from paddle import nn

import paddleq
from paddleq.checkpoint import save_load


def network():
    return nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))


def save(folder, number):
    model = network()
    for value in model.state_dict().values():
        value.set_value(paddle.full_like(value, float(number)))
    paddleq.save_checkpoint(model, os.path.join(folder, "model"))


def interleaved(writers):
    """Write and rename one file after another."""
    for path, write in writers.items():
        write(f"{path}.new")
        os.replace(f"{path}.new", path)


def attempt(folder, kill_at):
    """Save in a child process that kills itself before step ``kill_at``.

    Returns:
        (True if the child was killed, finished renames).
    """
    folder = os.path.join(folder, str(kill_at))
    os.mkdir(folder)
    save(folder, 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event, args):
            nonlocal steps
            writes = event == "open" and str(args[1] or "").startswith(("w", "x"))
            if not (writes or event == "os.rename") or folder not in str(args[0]):
                return
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            if event == "os.rename":
                os.write(writer, b".")

        sys.addaudithook(count)
        save(folder, 2)
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return os.WIFSIGNALED(status), len(pipe.read())


def main():
    folder = sys.argv[1]
    if sys.argv[2:] == ["interleaved"]:
        save_load.write_together = interleaved
    renames, killed = [], True
    while killed:
        killed, count = attempt(folder, len(renames))
        renames.append(count)
    print(json.dumps(renames))


if __name__ == "__main__":
    main()
