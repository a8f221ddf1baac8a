"""Simulated = exported, for the models that users have: issue line 2.

``python tests/test_models.py`` prints the table.
"""

import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)
import warnings

import numpy as np
import paddle
import pytest
from paddle.vision import models
from runtimes import openvino, paddle_inference, relative_error

import paddleq

pytestmark = pytest.mark.slow

QAT_STEPS = 10

MODELS = {
    "LeNet": (lambda: models.LeNet(), (1, 28, 28)),
    "AlexNet": (lambda: models.alexnet(num_classes=20), (3, 224, 224)),
    "VGG11": (lambda: models.vgg11(num_classes=20), (3, 64, 64)),
    "MobileNetV1": (lambda: models.mobilenet_v1(num_classes=20), (3, 64, 64)),
    "MobileNetV2": (lambda: models.mobilenet_v2(num_classes=20), (3, 64, 64)),
    "MobileNetV3-small": (lambda: models.mobilenet_v3_small(num_classes=20), (3, 64, 64)),
    "ResNet18": (lambda: models.resnet18(num_classes=20), (3, 64, 64)),
    "ResNet50": (lambda: models.resnet50(num_classes=20), (3, 64, 64)),
    "SqueezeNet": (lambda: models.squeezenet1_1(num_classes=20), (3, 64, 64)),
    "ShuffleNetV2": (lambda: models.shufflenet_v2_x1_0(num_classes=20), (3, 64, 64)),
    "DenseNet121": (lambda: models.densenet121(num_classes=20), (3, 64, 64)),
    "GoogLeNet": (lambda: models.googlenet(num_classes=20), (3, 96, 96)),
}


def _first(output):
    return output[0] if isinstance(output, (list, tuple)) else output


def _inputs(shape, count=4):
    # Smooth pictures rather than noise: neighbouring pixels depend on each other.
    rng = np.random.RandomState(0)
    small = rng.randn(count, shape[0], shape[1] // 4, shape[2] // 4).astype("float32")
    return paddle.to_tensor(small.repeat(4, 2).repeat(4, 3) + 0.1 * rng.randn(
        count, *shape).astype("float32"))


def export_both(name, method, path):
    """Quantize a model, export it, return (simulated output, inputs)."""
    paddle.seed(0)
    make, shape = MODELS[name]
    net, x = make(), _inputs(shape)
    spec = [paddle.static.InputSpec([None, *shape], "float32")]
    # Three forward passes give batch norms statistics of this data; a deep net of random
    # weights without them overflows.
    net.train()
    for _ in range(3):
        net(x)
    if method == "qat":
        quanter = paddleq.QAT()
        quanter.quantize(net)
        optimizer = paddle.optimizer.SGD(1e-4, parameters=net.parameters())
        # The moving averages start at 1: where activations are small, one step leaves scales
        # so wide that everything rounds to 0 and nothing would be compared.
        for _ in range(QAT_STEPS):
            output = net(x)
            outputs = output if isinstance(output, (list, tuple)) else [output]
            paddle.add_n([o.mean() for o in outputs]).backward()
            optimizer.step()
            optimizer.clear_grad()
        net.eval()
    else:
        quanter = paddleq.PTQ()
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [x])
    with paddle.no_grad():
        expected = _first(net(x)).numpy()
    quanter.save_quantized_model(net, path, spec)
    return expected, x.numpy()


@pytest.mark.parametrize("method", ["qat", "ptq"])
@pytest.mark.parametrize("name", list(MODELS))
def test_exported_equals_simulated(name, method, tmp_path):
    path = str(tmp_path / "model")
    expected, x = export_both(name, method, path)
    assert np.isfinite(expected).all() and expected.std(axis=0).max() > 0
    assert relative_error(paddle_inference(path, [x])[0], expected) <= 1e-4
    assert relative_error(openvino(path, [x])[0], expected) <= 1e-2
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

    warnings.simplefilter("ignore")
    print(f"Paddle {paddle.__version__}; relative L2 distance to the simulated model")
    print(f"{'model':20}{'method':8}{'Inference, as is':>18}{'int8':>10}{'OpenVINO':>12}{'its int8':>12}")
    for name in MODELS:
        for method in ("qat", "ptq"):
            with tempfile.TemporaryDirectory() as folder:
                expected, x = export_both(name, method, f"{folder}/m")
                plain = relative_error(paddle_inference(f"{folder}/m", [x])[0], expected)
                int8 = _int8_error(f"{folder}/m", x, expected)
                vino = relative_error(openvino(f"{folder}/m", [x])[0], expected)
                fast = relative_error(openvino(f"{folder}/m", [x], as_is=False)[0], expected)
            print(f"{name:20}{method:8}{plain:18.2e}{int8:10.4f}{vino:12.2e}{fast:12.2e}",
                  flush=True)


if __name__ == "__main__":
    main()
