"""Run a model in Paddle-Lite on x86.

    python run_x86.py MODEL.pdmodel MODEL.pdiparams INPUT OUTPUT [N]

INPUT and OUTPUT are .npy files (the first output), or .npz files with arr_0, arr_1 ... in the
order of the model's inputs and outputs. N prints the median duration of N runs in milliseconds.
Needs Python 3.7 with paddlelite, and LD_LIBRARY_PATH set to the wheel's paddlelite/libs.
"""

import sys
import time

import numpy as np
from paddlelite.lite import CxxConfig, Place, PrecisionType, TargetType, create_paddle_predictor


def main():
    model, params, source, target = sys.argv[1:5]
    repeats = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    config = CxxConfig()
    config.set_model_file(model)
    config.set_param_file(params)
    config.set_valid_places([Place(TargetType.X86, PrecisionType.INT8),
                             Place(TargetType.X86, PrecisionType.FP32),
                             Place(TargetType.Host, PrecisionType.FP32)])
    predictor = create_paddle_predictor(config)
    loaded = np.load(source)
    inputs = ([loaded["arr_%d" % i] for i in range(len(loaded.files))]
              if source.endswith(".npz") else [loaded])
    for i, value in enumerate(inputs):
        predictor.get_input(i).from_numpy(value)
    predictor.run()
    outputs = [predictor.get_output(i).numpy() for i in range(len(predictor.get_output_names()))]
    if target.endswith(".npz"):
        np.savez(target, *outputs)
    else:
        np.save(target, outputs[0])
    if repeats:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            predictor.run()
            times.append(1e3 * (time.perf_counter() - start))
        print(sorted(times)[len(times) // 2])


if __name__ == "__main__":
    main()
