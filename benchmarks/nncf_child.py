"""Script for an interpreter with NNCF, which has no paddleq.

    nncf_child.py FLOAT.xml SAMPLES.npz OUT.xml

Quantizes a model of OpenVINO by NNCF's defaults for convolutional networks: fast bias correction,
and the preset "performance", whose activations are symmetric.
"""

import sys

import nncf
import numpy as np
import openvino


def main(source, samples, target):
    core = openvino.Core()
    data = list(np.load(samples).values())
    made = nncf.quantize(core.read_model(source), nncf.Dataset(data), subset_size=len(data))
    openvino.save_model(made, target, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
