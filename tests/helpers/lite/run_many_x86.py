"""Run one model on x86: python run_many_x86.py MODEL.pdmodel MODEL.pdiparams IN.npz OUT.npz.

Like run_x86.py, for models of several inputs and outputs, which are arr_0, arr_1 ... in the files.
"""

import sys

import numpy as np
from paddlelite.lite import CxxConfig, Place, PrecisionType, TargetType, create_paddle_predictor


def main():
    model, params, source, target = sys.argv[1:]
    config = CxxConfig()
    config.set_model_file(model)
    config.set_param_file(params)
    config.set_valid_places([Place(TargetType.X86, PrecisionType.INT8),
                             Place(TargetType.X86, PrecisionType.FP32),
                             Place(TargetType.Host, PrecisionType.FP32)])
    predictor = create_paddle_predictor(config)
    inputs = np.load(source)
    for i in range(len(inputs.files)):
        predictor.get_input(i).from_numpy(inputs["arr_%d" % i])
    predictor.run()
    np.savez(target, *[predictor.get_output(i).numpy()
                       for i in range(len(predictor.get_output_names()))])


if __name__ == "__main__":
    main()
