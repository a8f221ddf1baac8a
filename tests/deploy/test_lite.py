"""Paddle-Lite loads files of save_quantized_model: `opt` for arm, inference on x86."""

import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from nets import warmed
from paddle import nn
from paddle.vision import models
from paddle_lite import calibrated
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.deploy import to_lite

pytestmark = [pytest.mark.slow, pytest.mark.lite]

# Name -> (input shape, maximum size of the .nb file relative to the float parameters). The graph,
# biases and batch norms keep the ratio above 0.25.
MODELS = {
    "LeNet": ([1, 28, 28], 0.36),
    "alexnet": ([3, 224, 224], 0.26),
    "vgg11": ([3, 64, 64], 0.26),
    "mobilenet_v1": ([3, 64, 64], 0.28),
    "mobilenet_v2": ([3, 64, 64], 0.30),
    "mobilenet_v3_small": ([3, 64, 64], 0.31),
    "resnet18": ([3, 64, 64], 0.27),
    "resnet50": ([3, 64, 64], 0.27),
    "squeezenet1_1": ([3, 64, 64], 0.31),
    "shufflenet_v2_x1_0": ([3, 64, 64], 0.32),
    "densenet121": ([3, 64, 64], 0.31),
    "googlenet": ([3, 224, 224], 0.27),
}
# One of each kind of layer; the others run nightly.
QUICK = ("LeNet", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x1_0")


def save(ptq, quantized, path, shape, onnx_format=True, batch=None):
    spec = [paddle.static.InputSpec([batch, *shape], "float32", "x")]
    ptq.save_quantized_model(quantized, path, input_spec=spec, onnx_format=onnx_format)


def float_bytes(net):
    return sum(4 * int(np.prod(value.shape)) for value in net.state_dict().values())


def build(name):
    shape, limit = MODELS[name]
    x = paddle.randn([2, *shape])
    net = warmed(getattr(models, name)(num_classes=10), x)
    return net, x, shape, limit


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.nightly]) for name in MODELS])
def test_opt_converts_every_model_for_arm(lite, prefix, name):
    net, x, shape, limit = build(name)
    ptq, quantized = calibrated(net, [x])
    save(ptq, quantized, prefix, shape)
    ratio = lite.convert(prefix) / float_bytes(net)
    print(f"{name}: .nb is {ratio:.3f} of the float parameters")
    assert 0.24 < ratio < limit


@pytest.mark.parametrize("name", ["LeNet", "mobilenet_v2", "shufflenet_v2_x1_0"])
def test_opt_converts_fake_operators_and_a_fixed_batch(lite, prefix, name):
    net, x, shape, limit = build(name)
    ptq, quantized = calibrated(net, [x])
    save(ptq, quantized, prefix, shape, onnx_format=False, batch=1)
    assert 0.24 < lite.convert(prefix) / float_bytes(net) < limit


class SharedConv(nn.Layer):
    """A convolution that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(4, 4, 3, padding=1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(4)
        self.bn2 = nn.BatchNorm2D(4)

    def forward(self, x):
        x = nn.functional.relu(self.bn1(self.conv(x)))
        return nn.functional.relu(self.bn2(self.conv(x)))


@pytest.mark.parametrize("weight", ["AbsmaxQuantizer", "PerChannelAbsmaxQuantizer"])
def test_opt_converts_a_weight_with_two_consumers(lite, prefix, weight):
    x = paddle.randn([2, 4, 16, 16])
    net = warmed(SharedConv(), x)
    ptq = paddleq.PTQ("AbsmaxQuantizer", weight)
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [x])
    save(ptq, quantized, prefix, [4, 16, 16])
    lite.convert(prefix)


def kernels(path):
    """Return the names of the kernels that Paddle-Lite chose for ``path.nb``."""
    return re.findall(rb"[a-z0-9_]+/[a-z0-9_]+(?=/\d+/\d+/\d+)", Path(f"{path}.nb").read_bytes())


@pytest.mark.parametrize("make, shape, kernel", [
    (lambda: nn.Conv1D(4, 6, 3), [4, 9], b"conv2d/fp32_out"),
    (lambda: nn.Conv1DTranspose(4, 6, 3), [4, 9], b"conv2d_transpose/fp32_out"),
    (lambda: nn.Conv2DTranspose(4, 6, 3), [4, 9, 9], b"conv2d_transpose/fp32_out"),
    (lambda: nn.Conv2DTranspose(4, 6, 3, 2, 1, output_padding=1), [4, 9, 9],
     b"conv2d_transpose/fp32_out"),
])
def test_to_lite_chooses_int8_kernels_for_arm(lite, prefix, make, shape, kernel, monkeypatch):
    x = paddle.randn([2, *shape])
    ptq, quantized = calibrated(nn.Sequential(make()), [x])
    save(ptq, quantized, prefix, shape)
    lite.convert(prefix)  # the file itself: transposed convolutions in float
    monkeypatch.setenv("PADDLEQ_LITE_PYTHON", str(lite.python))
    to_lite(prefix)
    assert kernel in kernels(prefix) and b"calib_once/int8_to_fp32" not in kernels(prefix)


def test_x86_loads_an_embedding(lite, prefix):
    net = nn.Sequential(nn.Embedding(11, 6), nn.ReLU())
    ids = paddle.randint(0, 11, [4, 3])
    ptq, quantized = calibrated(net, [ids], layers=["Embedding"])
    ptq.save_quantized_model(quantized, prefix, [paddle.static.InputSpec([None, 3], "int64")])
    assert relative_error(lite.run(prefix, ids.numpy()), quantized(ids).numpy()) < 1e-6


def test_opt_converts_a_qat_model(lite, prefix):
    net = models.mobilenet_v2(scale=0.25, num_classes=10)
    qat = paddleq.QAT({"activation_preprocess_type": "PACT"})
    qat.quantize(net)
    net(paddle.randn([4, 3, 64, 64])).square().mean().backward()
    qat.save_quantized_model(net, prefix, [paddle.static.InputSpec([None, 3, 64, 64], "float32")])
    lite.convert(prefix)


def resized_digits(images):
    """Return digits as 32 x 32 RGB images."""
    return np.kron(images, np.ones([1, 3, 4, 4], np.float32)).astype("float32")


@pytest.fixture(scope="module", params=["mobilenet_v1", "mobilenet_v2"])
def trained(request, digits):
    """Return (network trained on digits, training images, test images).

    A network with random weights is unsuitable: a single activation that is rounded differently
    changes its output in any runtime.
    """
    images, labels = digits.train
    images, draws = resized_digits(images), np.random.RandomState(0)
    paddle.seed(0)
    net = getattr(models, request.param)(scale=0.25, num_classes=10)
    optimizer = paddle.optimizer.Adam(5e-3, parameters=net.parameters())
    net.train()
    for _ in range(120):
        batch = draws.randint(0, len(images), 32)
        logits = net(paddle.to_tensor(images[batch]))
        nn.functional.cross_entropy(logits, paddle.to_tensor(labels[batch])).backward()
        optimizer.step()
        optimizer.clear_grad()
    for layer in net.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = 0.0  # the next forward sets the statistics of one batch
    with paddle.no_grad():
        net(paddle.to_tensor(images[:256]))
    net.eval()
    return net, images, resized_digits(digits.test[0])


@pytest.mark.parametrize("onnx_format", [True, False])
def test_x86_equals_the_simulation(lite, prefix, trained, onnx_format):
    net, images, unseen = trained
    batches = [paddle.to_tensor(images[i:i + 64]) for i in (0, 64)]
    # 7 bits: Paddle-Lite's x86 kernels overflow on 8, see the test below.
    ptq, quantized = calibrated(net, batches, weight_bits=7, layers=["Conv2D"])
    save(ptq, quantized, prefix, [3, 32, 32], onnx_format)
    x = unseen[:100]
    simulated = quantized(paddle.to_tensor(x)).numpy()
    found = lite.run(prefix, x)
    error = relative_error(found, simulated)
    agreed = (found.argmax(1) == simulated.argmax(1)).mean()
    print(f"relative L2 {error:.4f}, {agreed:.0%} of the labels agree, simulation against float "
          f"{relative_error(simulated, net(paddle.to_tensor(x)).numpy()):.4f}")
    assert error < 0.05
    assert agreed >= 0.97


def test_every_x86_kernel_equals_the_simulation(lite, prefix):
    def block(inputs, outputs, act, **kwargs):
        return [nn.Conv2D(inputs, outputs, bias_attr=False, **kwargs), nn.BatchNorm2D(outputs),
                act()]

    net = nn.Sequential(
        *block(3, 16, nn.ReLU, kernel_size=3, stride=2, padding=1),
        *block(16, 16, nn.ReLU6, kernel_size=3, padding=1, groups=16),
        *block(16, 16, nn.ReLU6, kernel_size=3, stride=2, padding=1, groups=16),
        *block(16, 24, nn.ReLU, kernel_size=1))
    x = paddle.randn([4, 3, 32, 32])
    warmed(net, x)
    ptq, quantized = calibrated(net, [x], weight_bits=7)
    save(ptq, quantized, prefix, [3, 32, 32])
    assert relative_error(lite.run(prefix, x.numpy()), quantized(x).numpy()) < 2e-3


def test_x86_overflows_on_eight_bit_weights(lite, prefix):
    """The reason for 7 bits: products of adjacent channels are added in int16 (vpmaddubsw)."""
    conv = nn.Conv2D(16, 8, 1)
    x = paddle.randn([1, 16, 16, 16])
    ptq, quantized = calibrated(nn.Sequential(conv), [x])
    save(ptq, quantized, prefix, [16, 16, 16])
    simulated = quantized(x).numpy()
    (stored,) = paddle_inference(prefix, [x.numpy()])
    assert relative_error(stored, simulated) < 1e-6  # the file is correct

    weight = conv.weight.numpy()[:, :, 0, 0]
    step = np.abs(weight).max(1, keepdims=True) / 127
    levels = np.rint(weight / step).astype(np.int64)
    x_step = np.abs(x.numpy()).max() / 127
    shifted = np.rint(x.numpy() / x_step).astype(np.int64).reshape(16, -1) + 128  # uint8
    products = levels[:, :, None] * shifted[None]
    pairs = (products[:, 0::2] + products[:, 1::2]).clip(-32768, 32767)
    sums = pairs.sum(1) - 128 * levels.sum(1, keepdims=True)
    overflowing = (sums * step * x_step + conv.bias.numpy()[:, None]).reshape(simulated.shape)
    found = lite.run(prefix, x.numpy())
    assert relative_error(found, overflowing) < 1e-5
    assert relative_error(found, simulated) > 0.01
