"""Models that Paddle 3 saves as PIR, float and quantized, converted to a ``.pdmodel``."""

import numpy as np
import pytest
import vision
import zoo
from rounding_borders import compare_in_openvino
from runtimes import openvino, paddle_inference
from zoo_export import METHODS, cases, difference, export

pytestmark = [pytest.mark.slow, pytest.mark.needs_pir]

# Operators that OpenVINO's frontend does not have, and models that need them.
OPENVINO_LACKS = {"CRNN, log_softmax": "log_softmax", "SSD, NMS": "argsort"}


def _marks(name, method):
    nightly = name in vision.MODELS and (name not in vision.SMALL or method == "qat")
    # The cases of a model run in one process (--dist loadgroup), because they share its training.
    return [pytest.mark.xdist_group(zoo.ZOO[name].family or name),
            *([pytest.mark.nightly] if nightly else [])]


CASES = [pytest.param(name, method, marks=_marks(name, method))
         for name in zoo.ZOO for method in METHODS]


@pytest.mark.parametrize("name, method", CASES)
def test_runtimes_compute_what_the_model_computes(name, method, tmp_path):
    path = str(tmp_path / "model")
    net, _ = export(name, method, path)
    for inputs, expected in cases(name, net):
        assert all(np.isfinite(value).all() for value in expected)
        assert max(value.std(axis=0).max() for value in expected) > 0
        assert difference(paddle_inference(path, inputs), expected) <= 1e-4
        if method == "float":
            assert difference(paddle_inference(path, inputs, ir_optim=True), expected) <= 1e-4
        if name in OPENVINO_LACKS:
            with pytest.raises(RuntimeError, match=f"No creator found for {OPENVINO_LACKS[name]}"):
                openvino(path, inputs)
        elif method == "float":
            assert difference(openvino(path, inputs), expected) <= 1e-4
        else:
            assert compare_in_openvino(net, path, inputs, zoo.outputs) <= 1e-3
