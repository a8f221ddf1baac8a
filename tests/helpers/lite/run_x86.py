"""Run one model on x86: python run_x86.py MODEL.pdmodel MODEL.pdiparams INPUT.npy OUTPUT.npy [N].

Runs under Python 3.7 with paddlelite, with LD_LIBRARY_PATH at the wheel's paddlelite/libs. With N
it prints the milliseconds of one run, the median of N.
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
                             Place(TargetType.X86, PrecisionType.FP32)])
    predictor = create_paddle_predictor(config)
    predictor.get_input(0).from_numpy(np.load(source))
    predictor.run()
    np.save(target, predictor.get_output(0).numpy())
    if repeats:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            predictor.run()
            times.append(1e3 * (time.perf_counter() - start))
        print(sorted(times)[len(times) // 2])


if __name__ == "__main__":
    main()
