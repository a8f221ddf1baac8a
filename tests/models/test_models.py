"""Exported output = simulated output for the models of ``paddle.vision.models``.

OMP_NUM_THREADS=1 in all that is compared: another order of summation moves values across rounding
borders.
"""

import paddle
import pytest
import vision
from runtimes import openvino, paddle_inference, relative_error
from trained import first

pytestmark = pytest.mark.slow

# The cases of a model run in one process (--dist loadgroup), because they share its training.
CASES = [pytest.param(name, method, marks=pytest.mark.xdist_group(name))
         for name in vision.MODELS for method in ("qat", "ptq")]


@pytest.mark.parametrize("name, method", CASES)
def test_exported_equals_simulated(name, method, tmp_path):
    path = str(tmp_path / "model")
    expected, x = vision.export_both(name, method, path)
    assert vision.share_right(expected) >= 0.4  # it works: by chance it would be 0.1
    assert relative_error(paddle_inference(path, [x])[0], expected) <= 1e-4
    assert relative_error(openvino(path, [x])[0], expected) <= 1e-2
    if paddle.__version__.startswith("2.6"):
        # Paddle 3's jit.load does not see a .pdmodel.
        loaded = paddle.jit.load(path)
        assert relative_error(first(loaded(paddle.to_tensor(x))).numpy(), expected) <= 1e-4
