"""Simulated = exported, for the models that users have: issue line 2.

``python tests/test_models.py [--seed N] [model ...]`` prints the table.
"""

import argparse
import functools
import warnings
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.vision import models
from runtimes import openvino, paddle_inference, relative_error
from sklearn.datasets import load_digits

import paddleq

pytestmark = pytest.mark.slow

# Name -> (how to make it, input channels, input size, training steps). They are trained a little
# on digits. In a net of random weights one value that a runtime rounds the other way, because it
# adds in another order, may change the output by per cents, whichever runtime it is.
MODELS = {
    "LeNet": (models.LeNet, 1, 28, 400),
    "AlexNet": (models.alexnet, 3, 224, 25),
    "VGG11": (models.vgg11, 3, 32, 15),
    "MobileNetV1": (models.mobilenet_v1, 3, 64, 60),
    "MobileNetV2": (models.mobilenet_v2, 3, 64, 60),
    "MobileNetV3-small": (models.mobilenet_v3_small, 3, 64, 100),
    "ResNet18": (models.resnet18, 3, 32, 94),
    "ResNet50": (models.resnet50, 3, 32, 40),
    "SqueezeNet": (models.squeezenet1_1, 3, 32, 400),
    "ShuffleNetV2": (models.shufflenet_v2_x1_0, 3, 64, 60),
    "DenseNet121": (models.densenet121, 3, 32, 40),
    "GoogLeNet": (models.googlenet, 3, 224, 8),
}
SCALE_STEPS = 25
# Nets that the steps above train until they know digits they have not seen: batches of 32, a
# learning rate that ends at zero, weight decay. OpenVINO is held to 1e-2 there, as it stayed
# within with three seeds. The others are trained for seconds only, which leaves them far from
# there: MobileNetV1 wants 350 steps.
CONVERGED = {"LeNet", "ResNet18", "SqueezeNet"}


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


def _batch_size(name):
    return 32 if name in CONVERGED else 16 if MODELS[name][2] < 224 else 8


def _batch(name, rng):
    indices = rng.choice(1500, _batch_size(name))
    return _pictures(name, indices), paddle.to_tensor(_digits()[1][indices])


def _held_out(name):
    """Indices of images that no batch has."""
    return np.arange(1600, 1664 if name in CONVERGED else 1616)


def _make(name):
    return MODELS[name][0](**({} if name == "LeNet" else {"num_classes": 10}))


def _optimizer(name, net):
    """(optimizer, learning rate schedule or None)"""
    parameters = net.parameters()
    norms = any(isinstance(layer, paddle.nn.BatchNorm2D) for layer in net.sublayers())
    if name in CONVERGED:
        rate = paddle.optimizer.lr.OneCycleLR(
            3e-3 if norms else 5e-4, MODELS[name][3] + 1, phase_pct=0.1)
        return paddle.optimizer.AdamW(rate, parameters=parameters, weight_decay=0.05), rate
    if sum(p.size for p in parameters) > 5e7:  # AlexNet and VGG, where Adam takes minutes
        return paddle.optimizer.Momentum(0.01, parameters=parameters,
                                         grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)), None
    return paddle.optimizer.Adam(1e-3 if norms else 2e-4, parameters=parameters), None


@functools.lru_cache(maxsize=1)
def trained_state(name, seed=0):
    """Weights of the float model after a little training."""
    paddle.seed(seed)
    rng, net = np.random.RandomState(seed), _make(name)
    optimizer, schedule = _optimizer(name, net)
    net.train()
    for _ in range(MODELS[name][3]):
        x, y = _batch(name, rng)
        F.cross_entropy(_first(net(x)), y).backward()
        optimizer.step()
        optimizer.clear_grad()
        if schedule is not None:
            schedule.step()
    return {key: value.numpy() for key, value in net.state_dict().items()}


def _outputs(net, x):
    net.eval()
    with paddle.no_grad():
        return _first(net(x)).numpy()


def float_outputs(name, seed=0):
    """What the float model says about the held-out images."""
    net = _make(name)
    net.set_state_dict(trained_state(name, seed))
    return _outputs(net, _pictures(name, _held_out(name)))


def share_right(name, outputs):
    """Of the held-out images, the share that gets the right label."""
    return float((outputs.argmax(axis=1) == _digits()[1][_held_out(name)]).mean())


def export_both(name, method, path, seed=0):
    """Quantize a model, export it, return (simulated output, inputs)."""
    net, rng = _make(name), np.random.RandomState(seed + 1)
    net.set_state_dict(trained_state(name, seed))
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
    else:
        quanter = paddleq.PTQ()
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [_batch(name, rng)[0] for _ in range(2)])
    x = _pictures(name, _held_out(name))
    expected = _outputs(net, x)
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32")]
    quanter.save_quantized_model(net, path, spec)
    return expected, x.numpy()


@pytest.mark.parametrize("name, method", [(n, m) for n in MODELS for m in ("qat", "ptq")])
def test_exported_equals_simulated(name, method, tmp_path):
    path = str(tmp_path / "model")
    expected, x = export_both(name, method, path)
    assert np.isfinite(expected).all() and expected.std(axis=0).max() > 0
    assert relative_error(paddle_inference(path, [x])[0], expected) <= 1e-4
    # OpenVINO adds in another order, and a value on a rounding border may move one step. In a net
    # that has not converged this grows with depth (MobileNetV1: to a tenth or two of the
    # quantization error, itself 0.2 there). Such a net may move as far as five times what Paddle
    # Inference does to it when it fuses float operators, which changes the order too.
    bound = 1e-2
    if name in CONVERGED:
        assert share_right(name, expected) >= 0.5  # constant outputs would not be
    else:
        reordered = relative_error(paddle_inference(path, [x], ir_optim=True)[0], expected)
        bound = max(bound, 5 * reordered)
    assert relative_error(openvino(path, [x])[0], expected) <= bound
    if paddle.__version__.startswith("2.6"):
        # Paddle 3's jit.load does not see a .pdmodel.
        loaded = paddle.jit.load(path)
        loaded.eval()
        assert relative_error(_first(loaded(paddle.to_tensor(x))).numpy(), expected) <= 1e-4


def _int8_error(path, x, expected):
    try:
        return relative_error(paddle_inference(path, [x], ir_optim=True, int8=True)[0], expected)
    except RuntimeError:  # the runtime refuses: the table says nan
        return float("nan")


def main():
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="model")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"Paddle {paddle.__version__}, seed {args.seed}; relative L2 distance to the simulated "
          "model, but for the share of labels that it gets right")
    print(f"{'model':20}{'method':8}{'labels':>8}{'float':>9}{'Inference, as is':>18}{'int8':>10}"
          f"{'OpenVINO':>12}{'its int8':>12}{'Inference, fused float':>24}")
    for name in args.models:
        for method in ("qat", "ptq"):
            with tempfile.TemporaryDirectory() as folder:
                expected, x = export_both(name, method, f"{folder}/m", args.seed)
                quantization = relative_error(float_outputs(name, args.seed), expected)
                plain = relative_error(paddle_inference(f"{folder}/m", [x])[0], expected)
                int8 = _int8_error(f"{folder}/m", x, expected)
                vino = relative_error(openvino(f"{folder}/m", [x])[0], expected)
                fused = relative_error(
                    paddle_inference(f"{folder}/m", [x], ir_optim=True)[0], expected)
                fast = relative_error(openvino(f"{folder}/m", [x], as_is=False)[0], expected)
            print(f"{name:20}{method:8}{share_right(name, expected):8.2f}{quantization:9.4f}"
                  f"{plain:18.2e}{int8:10.4f}{vino:12.2e}{fast:12.2e}{fused:24.2e}",
                  flush=True)


if __name__ == "__main__":
    main()
