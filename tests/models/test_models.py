"""Exported output = simulated output for the models of ``paddle.vision.models``.

OMP_NUM_THREADS=1 in all that is compared: another order of summation moves values across rounding
borders.
"""

import paddle
import pytest
import vision
from rounding_borders import compare_in_openvino
from runtimes import paddle_inference, relative_error
from trained import first

pytestmark = pytest.mark.slow

# Small models run by both methods, the others by QAT on one version; the rest is nightly.
ONE_VERSION = paddle.__version__.startswith("3.1")
CASES = [pytest.param(name, method, marks=(
    [] if method == "qat" and (name in vision.SMALL or ONE_VERSION)
    else [pytest.mark.one_version] if name in vision.SMALL else [pytest.mark.nightly]))
    for name in vision.MODELS for method in ("qat", "ptq")]


@pytest.mark.parametrize("name, method", CASES)
def test_exported_equals_simulated(name, method, tmp_path):
    path = str(tmp_path / "model")
    net, x = vision.export_both(name, method, path)
    with paddle.no_grad():
        expected = first(net(x)).numpy()
    assert expected.std(axis=0).max() > 0
    assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) <= 1e-5
    assert compare_in_openvino(net, path, [x.numpy()], lambda output: [first(output)]) <= 1e-3
    if paddle.__version__.startswith("2.6"):
        # jit.load of Paddle 3 does not see a .pdmodel.
        loaded = paddle.jit.load(path)
        assert relative_error(first(loaded(x)).numpy(), expected) <= 1e-5
