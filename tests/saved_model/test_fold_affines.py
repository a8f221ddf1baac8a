"""Folding of multiplications and additions of constants in saved models."""

import copy

import numpy as np
import paddle
import pytest
from affine_cases import ADDITION_LEFT, FOLDED, KEPT, Affine
from paddle import nn
from paddle.static import InputSpec
from random_affines import random_net
from runtimes import paddle_inference, relative_error
from saved_models import PPOCR, ppocr, run, save

import paddleq
from paddleq.errors import ModelError
from paddleq.saved_model.fold_layer_affines import fold_layers
from paddleq.saved_model.operators import read_operators

_AFFINES = ("elementwise_mul", "elementwise_div", "elementwise_sub", "scale")


def types(model):
    """Types of operators, without the ``scale`` by 1 before outputs in files of Paddle 2.6."""
    return [op.type for op in read_operators(model.to_program().desc.blocks[0])
            if op.type != "scale" or (op.get("scale", 1.0), op.get("bias", 0.0)) != (1.0, 0.0)]


def biases(model):
    """Number of additions that are the bias of a layer."""
    return sum(binding.bias_add is not None for binding in model.bindings.values())


def in_float64(net, x):
    """Output of a net in double precision."""
    double = copy.deepcopy(net).to(dtype="float64")
    double.eval()
    with paddle.no_grad():
        found = double(paddle.to_tensor(x.astype(np.float64)))
    return [each.numpy() for each in (found if isinstance(found, (list, tuple)) else [found])]


def saved(make, shape, prefix):
    """(net, its saved model, an input)."""
    net = make()
    save(net, prefix, [InputSpec([None, *shape[1:]] if len(shape) > 3 else shape, "float32", "x")])
    return net, paddleq.SavedModel(prefix), np.random.randn(*shape).astype(np.float32)


def assert_same_outputs(net, model, x, prefix):
    expected = in_float64(net, x)
    model.save(f"{prefix}.folded")
    for found in (run(model, [x]), paddle_inference(f"{prefix}.folded", [x])):
        assert len(found) == len(expected)
        for got, want in zip(found, expected):
            assert relative_error(got, want) < 2e-6


@pytest.mark.parametrize("name", FOLDED)
def test_affines_are_folded(name, prefix):
    net, model, x = saved(*FOLDED[name], prefix)
    affines = sum(kind in _AFFINES for kind in types(model)) + types(model).count("elementwise_add")
    before = affines - biases(model)
    assert before > 0
    result = model.fold_affines()
    assert result.folded and not result.kept
    left = [kind for kind in types(model) if kind in _AFFINES]
    assert len(left) == (name == "squeeze and excite, factors")  # the product of two tensors
    sums = name == "back across a sum"
    assert types(model).count("elementwise_add") == biases(model) + sums
    assert_same_outputs(net, model, x, prefix)


@pytest.mark.parametrize("name", ADDITION_LEFT)
def test_an_addition_is_left(name, prefix):
    net, model, x = saved(*ADDITION_LEFT[name], prefix)
    result = model.fold_affines()
    assert len(result.folded) == len(result.kept) == 1
    assert sum(kind in _AFFINES for kind in types(model)) == (name == "squeeze and excite")
    assert types(model).count("elementwise_add") == biases(model) + 1
    assert_same_outputs(net, model, x, prefix)


@pytest.mark.parametrize("name", KEPT)
def test_affines_that_cannot_be_folded_are_kept_with_the_reason(name, prefix):
    make, shape, reason = KEPT[name]
    net, model, x = saved(make, shape, prefix)
    before = types(model)
    result = model.fold_affines()
    assert not result.folded and types(model) == before
    assert any(reason in each for each in result.kept.values()), result.kept
    assert_same_outputs(net, model, x, prefix)


def conv2d(x, weight, bias, padding=0, groups=1):
    """Convolution in float64 by its definition."""
    x = np.pad(np.float64(x), [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    n, _, h, w = windows.shape[:4]
    windows = windows.reshape(n, groups, -1, h, w, *weight.shape[2:])
    grouped = np.float64(weight).reshape(groups, -1, *weight.shape[1:])
    return np.einsum("ngchwij,gocij->ngohw", windows, grouped).reshape(
        n, -1, h, w) + np.float64(bias)[:, None, None]


def hard_swish(x):
    return x * np.clip(x + 3, 0, 6) / 6


def test_block_with_learnable_affines_equals_its_definition(prefix):
    """The block of PP-LCNetV3, with an unpadded and a padded convolution behind activations."""
    first, depthwise, last = (nn.Conv2D(3, 4, 3), nn.Conv2D(4, 4, 3, padding=1, groups=4),
                              nn.Conv2D(4, 6, 1))
    affines = [Affine() for _ in range(4)]
    net = nn.Sequential(first, affines[0], nn.Hardswish(), affines[1], depthwise, affines[2],
                        nn.Hardswish(), affines[3], last)
    _, model, x = saved(lambda: net, [2, 3, 9, 9], prefix)
    values = [(each.scale.item(), each.shift.item()) for each in affines]
    assert len(model.fold_affines().folded) == 4
    assert types(model).count("elementwise_mul") == 0
    assert types(model).count("elementwise_add") == 4  # three biases and one before the padding

    def parameters(layer):
        return layer.weight.numpy(), layer.bias.numpy()

    y = conv2d(x, *parameters(first)) * values[0][0] + values[0][1]
    y = hard_swish(y) * values[1][0] + values[1][1]
    y = conv2d(y, *parameters(depthwise), padding=1, groups=4) * values[2][0] + values[2][1]
    y = conv2d(hard_swish(y) * values[3][0] + values[3][1], *parameters(last))
    assert relative_error(run(model, [x])[0], y) < 2e-6


def test_folding_keeps_the_objects_of_layers_and_parameters(prefix):
    _, model, _ = saved(*ADDITION_LEFT["before a padded convolution"], prefix)
    layers, parameters = list(model.sublayers()), list(model.sublayers()[0].parameters())
    model.sublayers()[0].weight.stop_gradient = True
    model.train()
    model.fold_affines()
    assert model.training
    assert [id(each) for each in model.sublayers()] == [id(each) for each in layers]
    assert [id(each) for each in layers[0].parameters()] == [id(each) for each in parameters]
    assert layers[0].weight.stop_gradient


def test_a_quantized_model_is_refused(prefix):
    _, model, x = saved(*FOLDED["parameters"], prefix)
    quantized = paddleq.PTQ("AbsmaxQuantizer").quantize(model)
    with pytest.raises(ModelError, match="before the model is quantized"):
        quantized.fold_affines()


class Loop(nn.Layer):
    """Affines in and around a loop."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, n):
        x = self.first(x) * 0.5
        i = paddle.zeros([1], "int32")
        while i < n:
            x = paddle.tanh(self.inner(x) * 0.7 + 0.1)
            i += 1
        return x * 2.0


def test_affines_of_a_loop_keep_the_outputs(prefix):
    net = paddle.jit.to_static(Loop())
    save(net, prefix, [InputSpec([None, 4], "float32", "x"), InputSpec([1], "int32", "n")])
    prefix = f"{prefix}.old"
    model = paddleq.SavedModel(prefix)
    inputs = [np.random.randn(3, 4).astype(np.float32), np.array([3], np.int32)]
    (expected,) = paddle_inference(prefix, inputs)
    model.fold_affines()
    assert relative_error(run(model, inputs)[0], expected) < 2e-6
    model.save(f"{prefix}.folded")
    assert relative_error(paddle_inference(f"{prefix}.folded", inputs)[0], expected) < 2e-6


@pytest.mark.parametrize("optimize_model", [True, False])
def test_quant_post_static_folds_affines_before_calibration(tmp_path, optimize_model):
    folder = tmp_path / "float"
    make, shape = ADDITION_LEFT["before a padded convolution"]
    _, model, x = saved(make, shape, str(folder / "net"))
    source = "net.old" if (folder / "net.old.pdmodel").exists() else "net"
    paddleq.quant_post_static(
        str(folder), str(tmp_path / "int8"), [x], model_filename=f"{source}.pdmodel",
        params_filename=f"{source}.pdiparams", algo="abs_max", optimize_model=optimize_model)
    found = types(paddleq.SavedModel(str(tmp_path / "int8" / "model")))
    assert found.count("elementwise_mul") == (0 if optimize_model else 1)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(model, fuse=optimize_model)
    ptq.calibrate(quantized, [x])
    (as_it_stands,) = paddle_inference(str(tmp_path / "int8" / "model"), [x])
    assert relative_error(as_it_stands, run(quantized, [x])[0]) < 1e-6
    assert relative_error(as_it_stands, run(model, [x])[0]) < 0.05


def test_variables_that_folding_removes_can_be_skipped(tmp_path):
    folder = tmp_path / "float"
    make, shape = FOLDED["before a convolution"]
    _, model, x = saved(make, shape, str(folder / "net"))
    source = "net.old" if (folder / "net.old.pdmodel").exists() else "net"
    (removed,) = [op.output("Out") for op in model._operators[0]
                  if op.type == "elementwise_add" and all(
                      op is not binding.bias_add for binding in model.bindings.values())]
    names = paddleq.quant_post_static(
        str(folder), str(tmp_path / "int8"), [x], model_filename=f"{source}.pdmodel",
        params_filename=f"{source}.pdiparams", skip_tensor_list=[removed])
    assert len(names) == 1


@pytest.mark.parametrize("seed", [
    *range(6), *(pytest.param(seed, marks=[pytest.mark.nightly, pytest.mark.one_version])
                 for seed in range(6, 120))])
def test_random_nets_compute_the_same(seed, prefix):
    net, double = random_net(seed), random_net(seed)
    if net is None:
        return

    def assert_equal(found):
        assert np.linalg.norm(found - expected) < 1e-5 * max(np.linalg.norm(expected), 1e-3)

    x = np.random.RandomState(seed).randn(2, 4, 9, 9).astype(np.float32)
    save(net, prefix, [InputSpec([None, 4, 9, 9], "float32", "x")])
    with paddle.no_grad():
        expected = double.to(dtype="float64")(paddle.to_tensor(x.astype(np.float64))).numpy()
    model = paddleq.SavedModel(prefix)
    model.fold_affines()
    assert_equal(run(model, [x])[0])
    fold_layers(net, paddle.to_tensor(x))
    assert_equal(net(paddle.to_tensor(x)).numpy())


_LEFT = {"ch_PP-OCRv4_det_infer": 10, "ch_PP-OCRv4_rec_infer": 2}  # products of two tensors


@pytest.mark.slow
@pytest.mark.one_version
@pytest.mark.parametrize("name", _LEFT)
def test_ppocr_keeps_only_products_of_tensors(name, prefix):
    model = paddleq.SavedModel(ppocr(name))
    shape = PPOCR[name][0]
    x = np.random.rand(*shape).astype(np.float32)
    (expected,) = paddle_inference(ppocr(name), [x])
    assert types(model).count("elementwise_mul") > 50
    model.fold_affines()
    assert types(model).count("elementwise_mul") == _LEFT[name]
    model.save(prefix)
    for found in (run(model, [x])[0], paddle_inference(prefix, [x])[0]):
        assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
