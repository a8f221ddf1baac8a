"""Bias correction against means computed in numpy."""

import numpy as np
import paddle
import pytest
from nets import save_float
from paddle import nn
from paddle.static import InputSpec
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.algorithms import correct_biases
from paddleq.errors import CalibrationError, ConfigError, ModelError
from paddleq.frontends.paddleslim.quantizers import PerChannelAbsmaxQuantizer


def quantized(net, batches, bits=3, **options):
    net.eval()
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(bits), **options)
    model = ptq.quantize(net)
    ptq.calibrate(model, batches)
    return model


def quantize(x, abs_max, bits):
    """Quantize and dequantize as the exported operators do, in float64."""
    levels = 2 ** (bits - 1) - 1
    steps = np.rint(np.float64(x) / abs_max * levels)
    return np.clip(steps, -levels - 1, levels) * abs_max / levels


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_gets_the_mean_error(bias):
    batches = [paddle.rand([64, 8]) for _ in range(3)]
    x = np.concatenate([each.numpy() for each in batches])
    net = nn.Sequential(nn.Linear(8, 4, bias_attr=None if bias else False))
    model = quantized(net, batches, bias_correction=True)
    weight = net[0].weight.numpy()
    found = quantize(x, np.abs(x).max(), 8) @ quantize(weight, np.abs(weight).max(0), 3)
    expected = (np.float64(x) @ weight - found).mean(0)
    if bias:
        expected = expected + net[0].bias.numpy()
    np.testing.assert_allclose(model[0].bias.numpy(), expected, atol=1e-6)
    assert net[0].bias is None or not np.array_equal(net[0].bias.numpy(), model[0].bias.numpy())


LAYERS = {
    "Conv1D": (lambda: nn.Conv1D(4, 6, 3), [8, 4, 12]),
    "Conv2D": (lambda: nn.Conv2D(4, 6, 3, groups=2, bias_attr=False), [8, 4, 6, 6]),
    "channels last": (lambda: nn.Conv2D(4, 6, 3, data_format="NHWC"), [8, 6, 6, 4]),
    "Conv3D": (lambda: nn.Conv3D(2, 3, 2), [4, 2, 4, 4, 4]),
    "Conv2DTranspose": (lambda: nn.Conv2DTranspose(4, 6, 3, groups=2), [8, 4, 5, 5]),
    "Linear of sequences": (lambda: nn.Linear(8, 4, bias_attr=False), [6, 5, 8])}


@pytest.mark.parametrize("method", ["fast", "full"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_means_of_channels_are_those_of_the_float_layer(name, method):
    make, shape = LAYERS[name]
    net, batches = nn.Sequential(make()), [paddle.rand(shape) for _ in range(2)]
    axis = -1 if name in ("channels last", "Linear of sequences") else 1

    def means(model):
        y = np.concatenate([model(x).numpy().astype(np.float64) for x in batches])
        return np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis]).mean(0)

    net.eval()
    plain = quantized(net, batches)
    assert np.abs(means(plain) - means(net)).max() > 1e-3
    assert correct_biases(plain, batches, method) == ["0"]
    np.testing.assert_allclose(means(plain), means(net), atol=1e-6)


class Deep(nn.Layer):
    """Layers whose errors add up, and a product of tensors that is not corrected itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.third = nn.Linear(16, 4)

    def forward(self, x):
        x = nn.functional.relu(self.first(x))
        return self.third(nn.functional.relu(self.second(x)) * x)


def test_full_correction_removes_the_shift_that_earlier_layers_cause():
    net, batches = Deep(), [paddle.rand([64, 8]) for _ in range(4)]
    x = paddle.concat(batches)
    shifts = {}
    for method in (False, "fast", "full"):
        model = quantized(net, batches, bias_correction=method)
        shifts[method] = np.abs((model(x) - net(x)).mean(0).numpy()).max()
    assert shifts["full"] < 1e-6 < shifts["fast"] < 0.5 * shifts[False]


def test_quant_post_static_equals_ptq_of_the_layer(tmp_path):
    net, x = nn.Sequential(nn.Conv2D(3, 6, 3, bias_attr=False), nn.ReLU(), nn.Flatten(),
                           nn.Linear(96, 5)), paddle.rand([32, 3, 6, 6])
    save_float(net, str(tmp_path / "float/model"), [3, 6, 6])
    for method in (True, "fast", "full"):
        paddleq.quant_post_static(str(tmp_path / "float"), str(tmp_path / "int8"), [x],
                                  algo="abs_max", weight_bits=4, bias_correction=method)
        model = quantized(net, [x], bits=4, bias_correction=method)
        (found,) = paddle_inference(str(tmp_path / "int8/model"), [x.numpy()])
        assert relative_error(found, model(x).numpy()) < 1e-6
        paddleq.save_quantized_model(model, str(tmp_path / "layer"),
                                     [InputSpec([None, 3, 6, 6], "float32")])
        (found,) = paddle_inference(str(tmp_path / "layer"), [x.numpy()])
        assert relative_error(found, model(x).numpy()) < 1e-6
        assert np.abs((model(x) - net(x)).mean(0).numpy()).max() < (1e-5 if method == "full"
                                                                    else 0.1)


class SharedBias(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.b.bias = self.a.bias

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


def test_a_shared_bias_stays():
    batches = [paddle.rand([8, 4])]
    model = quantized(SharedBias(), batches)
    before = model.a.bias.numpy()
    assert correct_biases(model, batches) == ["c"]
    assert (model.a.bias.numpy() == before).all()


def test_wrong_arguments_are_refused():
    net, batches = nn.Sequential(nn.Linear(4, 4)), [paddle.rand([8, 4])]
    with pytest.raises(ConfigError, match="bias_correction.*'slow'"):
        paddleq.PTQ(bias_correction="slow")
    ptq = paddleq.PTQ("AbsmaxQuantizer", bias_correction=True)
    assert ptq.calibrate(ptq.quantize(net), iter(batches)) == 1
    with pytest.raises(ConfigError, match="calibrate"):
        ptq.convert(ptq.quantize(net))
    with pytest.raises(CalibrationError, match="empty"):
        correct_biases(quantized(net, batches), [])
    with pytest.raises(ModelError, match="no quantized layer"):
        correct_biases(net, batches)
