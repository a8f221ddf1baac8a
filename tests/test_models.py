"""Simulated = exported, for the models that users have: issue line 2.

``python tests/test_models.py [model ...]`` prints the table.
"""

import functools
import sys
import warnings
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.vision import models
from runtimes import DISTANCES, distances, openvino, paddle_inference, relative_error
from sklearn.datasets import load_digits

import paddleq

pytestmark = pytest.mark.slow

# Name -> (how to make it, input channels, input size, training steps). They are trained a little
# on digits. In a net of random weights one value that a runtime rounds the other way, because it
# adds in another order, may change the output by per cents, whichever runtime it is.
MODELS = {
    "LeNet": (models.LeNet, 1, 28, 100),
    "AlexNet": (models.alexnet, 3, 224, 25),
    "VGG11": (models.vgg11, 3, 32, 15),
    "MobileNetV1": (models.mobilenet_v1, 3, 64, 60),
    "MobileNetV2": (models.mobilenet_v2, 3, 64, 60),
    "MobileNetV3-small": (models.mobilenet_v3_small, 3, 64, 100),
    "ResNet18": (models.resnet18, 3, 32, 60),
    "ResNet50": (models.resnet50, 3, 32, 40),
    "SqueezeNet": (models.squeezenet1_1, 3, 64, 60),
    "ShuffleNetV2": (models.shufflenet_v2_x1_0, 3, 64, 60),
    "DenseNet121": (models.densenet121, 3, 32, 40),
    "GoogLeNet": (models.googlenet, 3, 224, 8),
}
SCALE_STEPS = 25


def _first(output):
    return output[0] if isinstance(output, (list, tuple)) else output


@functools.lru_cache(maxsize=None)
def _digits():
    digits = load_digits()
    return (digits.images / 8 - 1).astype("float32")[:, None], digits.target.astype("int64")


def _pictures(name, indices):
    _, channels, size, _ = MODELS[name]
    pictures = F.interpolate(paddle.to_tensor(_digits()[0][indices]), size=[size, size],
                             mode="bilinear")
    return pictures.expand([-1, channels, -1, -1]).contiguous()


def _batch(name, rng):
    indices = rng.choice(1500, 16 if MODELS[name][2] < 224 else 8)
    return _pictures(name, indices), paddle.to_tensor(_digits()[1][indices])


def _make(name):
    return MODELS[name][0](**({} if name == "LeNet" else {"num_classes": 10}))


@functools.lru_cache(maxsize=1)
def trained_state(name):
    """Weights of the float model after a little training."""
    paddle.seed(0)
    rng, net = np.random.RandomState(0), _make(name)
    if sum(p.size for p in net.parameters()) > 5e7:  # AlexNet and VGG, where Adam takes minutes
        optimizer = paddle.optimizer.Momentum(0.01, parameters=net.parameters(),
                                              grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0))
    else:
        norms = any(isinstance(layer, paddle.nn.BatchNorm2D) for layer in net.sublayers())
        optimizer = paddle.optimizer.Adam(1e-3 if norms else 2e-4, parameters=net.parameters())
    net.train()
    for _ in range(MODELS[name][3]):
        x, y = _batch(name, rng)
        F.cross_entropy(_first(net(x)), y).backward()
        optimizer.step()
        optimizer.clear_grad()
    return {key: value.numpy() for key, value in net.state_dict().items()}


def export_both(name, method, path):
    """Quantize a model, export it, return (simulated output, inputs)."""
    state, net, rng = trained_state(name), _make(name), np.random.RandomState(1)
    net.set_state_dict(state)
    if method == "qat":
        quanter = paddleq.QAT()
        quanter.quantize(net)
        optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
        net.train()
        x, y = _batch(name, rng)
        F.cross_entropy(_first(net(x)), y).backward()
        optimizer.step()
        with paddle.no_grad():  # the moving averages start at 1: let them find the range
            for _ in range(SCALE_STEPS):
                net(_batch(name, rng)[0])
        net.eval()
    else:
        quanter = paddleq.PTQ()
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [_batch(name, rng)[0] for _ in range(2)])
    x = _pictures(name, np.arange(1600, 1616))
    with paddle.no_grad():
        expected = _first(net(x)).numpy()
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32")]
    quanter.save_quantized_model(net, path, spec)
    return expected, x.numpy()


@pytest.mark.parametrize("name, method", [(n, m) for n in MODELS for m in ("qat", "ptq")])
def test_exported_equals_simulated(name, method, tmp_path):
    path = str(tmp_path / "model")
    expected, x = export_both(name, method, path)
    assert np.isfinite(expected).all() and expected.std(axis=0).max() > 0
    assert relative_error(paddle_inference(path, [x])[0], expected) <= 1e-4
    # OpenVINO adds in another order, and a value on a rounding border may move one step. What that
    # does to this net is what Paddle Inference does to it when it fuses float operators, which
    # changes the order too.
    reordered = relative_error(paddle_inference(path, [x], ir_optim=True)[0], expected)
    assert relative_error(openvino(path, [x])[0], expected) <= max(1e-2, 5 * reordered)
    if paddle.__version__.startswith("2.6"):
        # Paddle 3's jit.load does not see a .pdmodel.
        loaded = paddle.jit.load(path)
        loaded.eval()
        assert relative_error(_first(loaded(paddle.to_tensor(x))).numpy(), expected) <= 1e-4


def main():
    import tempfile

    warnings.simplefilter("ignore")
    print(f"Paddle {paddle.__version__}; relative L2 distance to the simulated model")
    print(f"{'model':20}{'method':8}{DISTANCES}")
    for name in sys.argv[1:] or MODELS:
        for method in ("qat", "ptq"):
            with tempfile.TemporaryDirectory() as folder:
                expected, x = export_both(name, method, f"{folder}/m")
                found = distances(f"{folder}/m", x, expected)
            print(f"{name:20}{method:8}{found}", flush=True)


if __name__ == "__main__":
    main()
