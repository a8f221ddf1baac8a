"""Script for the interpreter of Paddle-Lite (Python 3.6 and later), which has no paddleq.

    lite_child.py run MODEL PARAMS THREADS     serves runs on x86 over stdin and stdout
    lite_child.py opt MODEL PARAMS PLACES OUT  writes OUT.nb

A message is its length in 8 bytes, then arrays in the .npy format. Paddle-Lite aborts the
process on errors.
"""

import io
import os
import struct
import sys

import numpy as np


def run(model, params, threads):
    from paddlelite.lite import CxxConfig, Place, PrecisionType, TargetType, create_paddle_predictor

    # Output of Paddle-Lite goes to stderr; stdout is for messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    config = CxxConfig()
    config.set_model_file(model)
    config.set_param_file(params)
    config.set_valid_places([Place(TargetType.X86, PrecisionType.INT8),
                             Place(TargetType.X86, PrecisionType.FP32),
                             Place(TargetType.Host, PrecisionType.FP32)])
    config.set_threads(int(threads))
    predictor = create_paddle_predictor(config)
    send(answers, [])  # loaded
    while True:
        arrays = receive(sys.stdin.buffer)
        if arrays is None:
            return
        for i, array in enumerate(arrays):
            predictor.get_input(i).from_numpy(array)
        predictor.run()
        send(answers, [predictor.get_output(i).numpy()
                       for i in range(len(predictor.get_output_names()))])


def optimize(model, params, places, out):
    from paddlelite.lite import Opt

    opt = Opt()
    opt.set_model_file(model)
    opt.set_param_file(params)
    opt.set_valid_places(places)
    opt.set_model_type("naive_buffer")
    opt.set_optimize_out(out)
    opt.run()


def send(stream, arrays):
    content = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
    stream.write(struct.pack("<Q", content.tell()) + content.getvalue())
    stream.flush()


def receive(stream):
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = struct.unpack("<Q", head)[0]
    content, arrays = io.BytesIO(stream.read(size)), []
    while content.tell() < size:
        arrays.append(np.lib.format.read_array(content, allow_pickle=False))
    return arrays


if __name__ == "__main__":
    {"run": run, "opt": optimize}[sys.argv[1]](*sys.argv[2:])
