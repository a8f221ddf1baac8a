"""Print the memory that loading a file takes, as a multiple of the size of the file."""

import os
import sys

import paddle
from paddle import nn

import paddleq
from paddleq.checkpoint import load_state, read_state


def memory(field):
    """Bytes of ``VmRSS`` or ``VmHWM``."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def main(prefix, ending):
    paddle.set_default_dtype("float32")
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(24)])
    path = prefix + ending
    if not os.path.exists(path):
        if ending == ".safetensors":
            paddleq.save_checkpoint(model, prefix)
        else:
            paddle.save(model.state_dict(), path)
        return
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the peak begins anew
    before = memory("VmRSS")
    if ending == ".safetensors":
        paddleq.load_checkpoint(model, prefix)
    else:
        load_state(model, read_state(path), path)
    sys.stdout.write(f"{(memory('VmHWM') - before) / os.path.getsize(path)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
