"""Special functions, order statistics, counts and inverses in ONNX."""

from functools import partial

import numpy as np
import paddle
import pytest
import scipy.special
from onnx_exports import SPEC, Net, normal, written_equals_model
from runtimes import onnxruntime, openvino

import paddleq
from paddleq.errors import ExportError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(3)
    paddle.seed(3)


def whole(*shape, high=5):
    return np.random.randint(0, high, shape)


NEAR_ROOTS = np.linspace(0.9, 3.1, 4001)
FUNCTIONS = {
    "erfinv": (scipy.special.erfinv, np.concatenate([
        np.linspace(-1, 1, 4001), 1 - np.logspace(-7, -1, 500), np.logspace(-30, -1, 50)])),
    "lgamma": (scipy.special.gammaln, np.concatenate([
        np.linspace(-20, 40, 9001) + 1e-3, NEAR_ROOTS, np.logspace(-30, 30, 200)])),
    "digamma": (scipy.special.psi, np.concatenate([
        np.linspace(-20, 40, 9001) + 1e-3, NEAR_ROOTS, np.logspace(-30, 30, 200)])),
}


@pytest.mark.one_version
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_functions_are_exact_to_float32(name, tmp_path):
    function, x = FUNCTIONS[name]
    x = x.astype(np.float32)
    net = Net(lambda x: getattr(paddle, name)(x * 1.0))
    paddleq.export.to_onnx(net, tmp_path / "m", [SPEC([None], "float32", "x")])
    expected = function(x.astype(np.float64))
    for found in (onnxruntime(tmp_path / "m", [x])[0],
                  openvino(tmp_path / "m", [x], ending="onnx")[0]):
        finite = np.isfinite(expected)
        bound = 1.5e-6 * np.maximum(1, np.abs(expected[finite]))
        assert (np.abs(found[finite] - expected[finite]) <= bound).all()
        assert (found[~finite] == expected[~finite]).all()


@pytest.mark.one_version
def test_logarithm_of_gamma_is_exact_at_its_roots(tmp_path):
    x = NEAR_ROOTS.astype(np.float32)
    paddleq.export.to_onnx(Net(lambda x: paddle.lgamma(x * 1.0)), tmp_path / "m", [SPEC([None])])
    expected = scipy.special.gammaln(x.astype(np.float64))
    found = onnxruntime(tmp_path / "m", [x])[0]
    assert (np.abs(found - expected) <= 1e-6 * np.abs(expected)).all()


STATISTICS = {
    "kthvalue": (lambda x: list(paddle.kthvalue(x * 1, 3, axis=1)), [normal(2, 7, 4)]),
    "kthvalue keepdim": (lambda x: [each.reshape([2, 3, 1]) for each in paddle.kthvalue(
        x * 1, 2, axis=-1, keepdim=True)],
                         [normal(2, 3, 6)]),
    "kthvalue int64": (lambda x: paddle.kthvalue(x, 4, axis=0)[0], [whole(6, 5)]),
    "mode": (lambda x: list(paddle.mode(paddle.floor(x * 2), 1)), [normal(2, 9, 4)]),
    "mode keepdim": (lambda x: list(paddle.mode(paddle.round(x), keepdim=True)), [normal(3, 8)]),
    "mode int64": (lambda x: list(paddle.mode(x * 1, axis=0)), [whole(9, 3, 5)]),
    "mode negative axis": (lambda x: list(paddle.mode(x * 1, axis=-2)), [whole(4, 6, 2)]),
    "bincount": (lambda x: paddle.bincount(x * 1), [whole(30)]),
    "bincount minlength": (lambda x: paddle.bincount(x + 2, minlength=9), [whole(30)]),
    "bincount weights": (lambda x, w: paddle.bincount(x * 1, w * 2, minlength=3),
                         [whole(30), normal(30)]),
    "shard_index": (lambda x: paddle.shard_index(x * 1, 20, 3, 1), [whole(9, 1, high=20)]),
    "shard_index last": (lambda x: paddle.shard_index(x * 1, 10, 4, 3, -7),
                         [whole(4, 2, 1, high=10)]),
    "shard_index one": (lambda x: paddle.shard_index(x * 1, 5, 1, 0), [whole(8, 1)]),
    "unique": (lambda x: paddle.unique(x * 1), [whole(4, 6)]),
    "unique float": (lambda x: paddle.unique(paddle.round(x)), [normal(5, 8)]),
    "unique int32": (lambda x: paddle.unique(x * 1), [whole(20).astype(np.int32)]),
    "unique counts": (lambda x: list(paddle.unique(x * 1, return_counts=True)), [whole(20)]),
    "unique all": (lambda x: list(paddle.unique(x * 1, True, True, True)), [whole(20)]),
    "unique rows": (lambda x: list(paddle.unique(x * 1, True, True, True, axis=0)),
                    [whole(12, 2, high=3)]),
    "unique int32 places": (lambda x: list(paddle.unique(x * 1, True, dtype="int32")),
                            [whole(20)]),
    "equal_all": (lambda x, y: paddle.equal_all(x * 1, y), [whole(3, 4), whole(3, 4)]),
    "equal_all of the same": (lambda x: paddle.equal_all(x * 2, x + x), [normal(3, 4)]),
    "equal_all as a number": (
        lambda x: x + paddle.equal_all(x * 2, x + x).astype("int32").astype("float32"),
        [normal(3, 4)]),
    "inverse": (lambda x: paddle.inverse(x + 4 * paddle.eye(6)), [normal(3, 6, 6)]),
    "inverse of one": (lambda x: paddle.inverse(x * 2), [normal(2, 1, 1)]),
    "inverse without batch": (lambda x: paddle.inverse(x * 1), [normal(5, 5)]),
    "inverse of a permutation": (
        lambda x: paddle.inverse(paddle.roll(paddle.diag_embed(x.abs() + 0.1), 1, axis=-1)),
        [normal(2, 4)]),
    "inverse of rows of other sizes": (
        lambda x: paddle.inverse(x * paddle.to_tensor([[1e4], [1.0], [1e-4]])), [normal(2, 3, 3)]),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_order_statistics_counts_and_inverses(case, tmp_path):
    function, arrays = STATISTICS[case]
    written_equals_model(function, arrays, tmp_path, dynamic=(), tolerance=2e-5)


@pytest.mark.parametrize("function", [
    lambda x: paddle.mode(x * 1)[0], lambda x: paddle.kthvalue(x * 1, 2)[0],
    lambda x: paddle.unique(x * 1), partial(paddle.bincount, minlength=9)])
def test_dynamic_sizes(function, tmp_path):
    written_equals_model(function, [whole(12)], tmp_path)


def test_bincount_needs_an_opset(tmp_path):
    with pytest.raises(ExportError, match="bincount needs opset 16.*opset 13"):
        paddleq.export.to_onnx(Net(lambda x: paddle.bincount(x * 1)), tmp_path / "m",
                               [SPEC([5], "int64")], opset=13)
