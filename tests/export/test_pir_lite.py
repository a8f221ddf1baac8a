"""Paddle-Lite reads models converted from PIR: `opt` for arm, and execution on x86."""

import numpy as np
import paddle
import pytest
import vision
import zoo
from nets import warmed
from paddle import nn
from paddle_lite import calibrated
from runtimes import paddle_inference, relative_error
from zoo_export import cases, difference, export

pytestmark = [pytest.mark.slow, pytest.mark.lite, pytest.mark.needs_pir]

# Paddle-Lite 2.12 has no such operator. It refuses the files of Paddle 2.6.2 in the same words.
LACKS = {"SSD, NMS": "nms"}
# Without batch norm or activation behind a convolution its x86 kernels want the older form.
OLDER_FORM = ("DenseNet121", "GoogLeNet", "U-Net")
# These are trained for this test alone.
NIGHTLY = set(vision.MODELS) - {"MobileNetV1"}
# Nothing to quantize there (Linear is broken on x86).
NOT_ON_X86 = ("Transformer", *LACKS)


def quantized_for_x86(name, path):
    """Export convolutions with 7-bit weights (see docs/paddle_lite.md) to ``path``."""
    model, net, rng = zoo.ZOO[name], zoo.network(name), np.random.RandomState(1)
    batches = [model.tensors(rng.choice(zoo.TRAINING, model.batch)) for _ in range(2)]
    for layer in net.sublayers():
        if any(isinstance(child, nn.Hardswish) for child in layer.children()):
            layer[0].skip_quant = True  # the convolution before it; see the last test
    ptq, quantized = calibrated(net, batches, weight_bits=7, layers=["Conv2D"])
    ptq.save_quantized_model(quantized, path, model.spec(), onnx_format=name not in OLDER_FORM)
    return quantized, net


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else []) for name in zoo.ZOO])
def test_opt_for_arm_and_x86(lite, prefix, name):
    net, _ = export(name, "float", prefix)
    if name in LACKS:
        with pytest.raises(AssertionError, match=f"unsupported ops are: '{LACKS[name]}'"):
            lite.convert(prefix)
        return
    float_bytes = lite.convert(prefix)
    for inputs, expected in cases(name, net):
        assert difference(lite.outputs(prefix, inputs), expected) <= 1e-4

    export(name, "ptq", prefix)
    assert lite.convert(prefix) < float_bytes

    if name in NOT_ON_X86:
        return
    for inputs, expected, plain in cases(name, *quantized_for_x86(name, prefix)):
        error = difference(lite.outputs(prefix, inputs), expected)
        print(f"{name}: {error:.1e} from the simulation, which is "
              f"{difference(expected, plain):.1e} from float")
        assert error <= 0.05


def test_quantized_hard_swish_is_broken_on_x86(lite, prefix):
    """Reason for float layers of MobileNetV3. The file is correct, and one of Paddle 2.6.2 behaves
    alike.
    """
    x = paddle.randn([4, 16, 16, 16])
    net = warmed(nn.Sequential(nn.Conv2D(16, 16, 1, bias_attr=False), nn.BatchNorm2D(16),
                               nn.Hardswish()), x)
    ptq, quantized = calibrated(net, [x], weight_bits=7)
    ptq.save_quantized_model(quantized, prefix, [paddle.static.InputSpec([None, *x.shape[1:]])])
    expected = quantized(x).numpy()
    assert relative_error(paddle_inference(prefix, [x.numpy()])[0], expected) < 1e-6
    assert relative_error(lite.outputs(prefix, [x.numpy()])[0], expected) > 0.5
