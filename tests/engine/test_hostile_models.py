"""Models with structures and values that quantization must handle or reject."""

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import SmallNet, train_steps, warmed
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq

Spec = paddle.static.InputSpec


def ptq_export(net, batch, path, spec, **options):
    """PTQ a model on one batch (a tuple of arguments) and compare its export."""
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net, **options)
    ptq.calibrate(quantized, [batch])
    outputs = quantized(**batch) if isinstance(batch, dict) else quantized(*batch)
    ptq.save_quantized_model(quantized, path, spec)
    arrays = [t.numpy() for t in (batch.values() if isinstance(batch, dict) else batch)]
    found = paddle_inference(path, arrays)
    flat = _flat(outputs)
    assert len(found) == len(flat)
    for a, b in zip(found, flat):
        assert relative_error(a, b) < 1e-6
    return quantized


def _flat(output):
    if isinstance(output, dict):
        return [v for key in output for v in _flat(output[key])]
    if isinstance(output, (list, tuple)):
        return [v for item in output for v in _flat(item)]
    return [output.numpy()]


class TwoInputs(nn.Layer):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Conv2D(3, 6, 3), nn.Linear(5, 6)

    def forward(self, image, text):
        return F.relu(self.image(image)).mean([2, 3]) + self.text(text)


def test_two_inputs(tmp_path):
    batch = (paddle.randn([4, 3, 8, 8]), paddle.randn([4, 5]))
    spec = [Spec([None, 3, 8, 8], "float32", "image"), Spec([None, 5], "float32", "text")]
    ptq_export(TwoInputs(), batch, str(tmp_path / "m"), spec)


def test_batch_as_a_dict_of_arguments(tmp_path):
    batch = {"image": paddle.randn([4, 3, 8, 8]), "text": paddle.randn([4, 5])}
    spec = [Spec([None, 3, 8, 8], "float32"), Spec([None, 5], "float32")]
    ptq_export(TwoInputs(), batch, str(tmp_path / "m"), spec)


class Heads(nn.Layer):
    def __init__(self, kind):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.kind = kind

    def forward(self, x):
        x = F.relu(self.body(x))
        a, b = self.a(x), self.b(x)
        return {"a": a, "b": [b, x]} if self.kind == "dict" else [a, (b, x)]


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_nested_outputs(kind, tmp_path):
    ptq_export(Heads(kind), (paddle.randn([4, 6]),), str(tmp_path / "m"), [Spec([None, 6])])


class Branching(nn.Layer):
    """Control flow that depends on Python values."""

    def __init__(self):
        super().__init__()
        self.layers = nn.LayerList([nn.Linear(6, 6) for _ in range(3)])
        self.unused = nn.Linear(6, 6)

    def forward(self, x, deep=True):
        for i, layer in enumerate(self.layers):
            if i == 2 and not deep:
                break
            x = F.relu(layer(x)) if i % 2 else layer(x)
        if x.shape[-1] == 7:
            x = self.unused(x)
        return x


def test_python_control_flow_and_an_unused_layer(tmp_path):
    x = paddle.randn([4, 6])
    net = Branching()
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [x])
    assert "not called during calibration" in paddleq.summary(quantized)
    ptq_export(net, (x,), str(tmp_path / "m"), [Spec([None, 6])])
    ptq_export(net, (x,), str(tmp_path / "skipped"), [Spec([None, 6])], skip="unused")


class DataDependent(nn.Layer):
    """Control flow that depends on a tensor, exported as a conditional block."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        y = x * 2
        if x.sum() > 0:  # noqa: SIM108  (a statement, for the tracer to turn into a block)
            y = self.a(y)
        else:
            y = self.b(y) + 1
        return y


def test_control_flow_on_a_tensor(tmp_path):
    positive, negative = paddle.rand([4, 6]) + 0.1, -paddle.rand([4, 6]) - 0.1
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(DataDependent())
    ptq.calibrate(net, [positive, negative])
    path = str(tmp_path / "m")
    ptq.save_quantized_model(net, path, [Spec([4, 6])])
    for x in (positive, negative):
        assert relative_error(paddle_inference(path, [x.numpy()])[0], net(x).numpy()) < 1e-6


def test_frozen_parameters_stay_frozen():
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    net.conv1.weight.stop_gradient = True
    net.conv2.weight.trainable = False
    frozen = net.conv1.weight.numpy().copy(), net.conv2.weight.numpy().copy()
    paddleq.QAT().quantize(net)
    other = net.conv3.weight.numpy().copy()
    train_steps(net, x, lr=0.1)
    assert net.conv1.weight.stop_gradient and not net.conv2.weight.trainable
    np.testing.assert_array_equal(net.conv1.weight.numpy(), frozen[0])
    np.testing.assert_array_equal(net.conv2.weight.numpy(), frozen[1])
    assert np.abs(net.conv3.weight.numpy() - other).max() > 0


def test_nhwc_model(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 6, 3, data_format="NHWC"),
                        nn.BatchNorm2D(6, data_format="NHWC"), nn.ReLU(),
                        nn.Conv2D(6, 5, 1, data_format="NHWC"))
    x = paddle.randn([4, 8, 8, 3])
    warmed(net, x)
    quantized = ptq_export(net, (x,), str(tmp_path / "m"), [Spec([None, 8, 8, 3])], fuse=True)
    assert list(quantized[0].weight_quantizer.abs_max.shape) == [6]


@pytest.mark.parametrize("shape", [[1, 3, 7, 5], [1, 3, 3, 3]])
def test_batch_of_one_and_odd_channels(shape, tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 7, 3), nn.ReLU(), nn.Conv2D(7, 11, 1), nn.Flatten())
    ptq_export(net, (paddle.randn(shape),), str(tmp_path / "m"), [Spec(shape)])


def test_zero_channel_and_dead_activation(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 6, 3), nn.ReLU(), nn.Conv2D(6, 4, 1))
    with paddle.no_grad():
        weight = net[0].weight.numpy().copy()
        weight[2] = 0.0
        net[0].weight.set_value(weight)
        net[0].bias.set_value(np.full(6, -100, "float32"))  # ReLU outputs zeros only
    x = paddle.randn([4, 3, 8, 8])
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [x])
    scale = quantized[0].weight_quantizer.qparams_of(quantized[0].weight)[0]
    assert scale[2].item() == pytest.approx(1e-8) and (scale > 0).all().item()
    assert np.isfinite(quantized(x).numpy()).all()
    path = str(tmp_path / "m")
    ptq.save_quantized_model(quantized, path)
    np.testing.assert_allclose(paddle_inference(path, [x.numpy()])[0], quantized(x).numpy())
    from paddleq.export.program.program import Program
    stored = Program.load(path + ".pdmodel", path + ".pdiparams").arrays
    assert (stored[net[0].weight.name][2] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("quantizer", ["KLQuantizer", "HistQuantizer", "AbsmaxQuantizer"])
def test_non_finite_batch_names_layer_and_batch(bad, quantizer):
    ptq = paddleq.PTQ(quantizer)
    net = ptq.quantize(SmallNet())
    good = paddle.rand([2, 1, 8, 8])
    wrong = good.numpy().copy()
    wrong[1, 0, 3, 3] = bad
    with pytest.raises(paddleq.errors.NonFiniteError,
                       match=r"conv1\.activation_quantizer: calibration batch 2 has 1 NaN"):
        ptq.calibrate(net, [good, good, paddle.to_tensor(wrong), good])
    # Calibration continues from the batches before.
    assert net.conv1.activation_quantizer.observer.num_batches == 2
    ptq.calibrate(net, [good])
    assert net.conv1.activation_quantizer.observer.num_batches == 3
    assert np.isfinite(net(good).numpy()).all()


def test_large_finite_values_are_accepted():
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(nn.Sequential(nn.Linear(8, 2)))
    ptq.calibrate(net, [paddle.full([4, 8], 3e38)])  # the sum overflows
    assert net[0].activation_quantizer.abs_max.item() == pytest.approx(3e38)


def test_empty_loader():
    ptq = paddleq.PTQ()
    net = ptq.quantize(SmallNet())
    with pytest.raises(paddleq.errors.CalibrationError, match="data.*empty"):
        ptq.calibrate(net, [])


def test_float16_model_is_rejected_and_unchanged():
    net = SmallNet()
    net.to(dtype="float16")
    for quantize in (paddleq.QAT().quantize, paddleq.PTQ().quantize):
        with pytest.raises(paddleq.errors.ModelError, match=r"conv1\.weight is float16.*float32"):
            quantize(net)
    assert type(net.conv1) is nn.Conv2D and net.conv1.weight.dtype == paddle.float16


def test_subclass_with_overridden_forward_stays_float_and_is_reported():
    class Scaled(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * 2, self.bias)

    class Named(nn.Linear):
        """Subclass that inherits forward."""

    net = nn.Sequential(Scaled(4, 4), Named(4, 4))
    paddleq.QAT().quantize(net)
    assert type(net[0]) is Scaled
    assert "overrides forward" in paddleq.summary(net)
    assert type(net[1]).__name__ == "QuantizedNamed" and isinstance(net[1], Named)


def test_user_hooks_are_still_called():
    net, seen = nn.Sequential(nn.Linear(4, 4)), []
    net[0].register_forward_post_hook(lambda layer, inputs, output: seen.append(output.shape))
    paddleq.QAT().quantize(net)
    net(paddle.ones([2, 4]))
    assert len(seen) == 1


def test_excluding_layers():
    class Block(nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc2(self.fc1(x))

    def quantized(skip=None, mark=None):
        net = nn.Sequential(Block(), Block(), nn.Conv2D(1, 1, 1))
        if mark:
            mark(net)
        paddleq.QAT().quantize(net, skip=skip)
        return [name for name, layer in net.named_sublayers()
                if isinstance(layer, paddleq.nn.QuantizedLayer)]

    everything = ["0.fc1", "0.fc2", "1.fc1", "1.fc2", "2"]
    assert quantized() == everything
    assert quantized(mark=lambda net: setattr(net[0], "skip_quant", True)) == everything[2:]
    assert quantized(mark=lambda net: setattr(net[1].fc2, "skip_quant", True)) == [
        "0.fc1", "0.fc2", "1.fc1", "2"]
    assert quantized(skip=r"fc1$") == ["0.fc2", "1.fc2", "2"]
    assert quantized(skip=["0.fc2", nn.Conv2D]) == ["0.fc1", "1.fc1", "1.fc2"]


def test_root_layer_is_quantized(tmp_path):
    net, x = nn.Linear(6, 4), paddle.randn([3, 6])
    quanter = paddleq.QAT()
    quanter.quantize(net)
    train_steps(net, x)
    path = str(tmp_path / "m")
    quanter.save_quantized_model(net, path, [Spec([None, 6])])
    assert relative_error(paddle_inference(path, [x.numpy()])[0], net(x).numpy()) < 1e-6


def test_ptq_copies_by_default_and_copies_are_independent():
    x = paddle.rand([2, 1, 8, 8])
    net = warmed(SmallNet(), x)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net)
    assert type(net.conv1) is nn.Conv2D and quantized is not net
    other = copy.deepcopy(quantized)
    ptq.calibrate(quantized, [x])
    assert other.conv1.activation_quantizer.observer.num_batches == 0
    assert ptq.quantize(net, inplace=True) is net


def test_interrupted_export_keeps_the_old_model(tmp_path, monkeypatch):
    x = paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT()
    net = quanter.quantize(SmallNet())
    train_steps(net, x)
    path = str(tmp_path / "m")
    quanter.save_quantized_model(net, path)
    before = paddle_inference(path, [x.numpy()])[0]
    train_steps(net, x, lr=0.1)
    from paddleq.export.program import pdiparams as params

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(
            paddleq.errors.ExportError, match="No space left"):
        patch.setattr(params, "write", disk_full)
        quanter.save_quantized_model(net, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.paddleq.yaml", "m.pdiparams", "m.pdmodel"]
    np.testing.assert_array_equal(paddle_inference(path, [x.numpy()])[0], before)
    with pytest.raises(paddleq.errors.ExportError, match="cannot write"):
        quanter.save_quantized_model(net, path + ".pdmodel/below/a/file")


def test_export_is_reproducible(tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT()
    net = quanter.quantize(SmallNet())
    train_steps(net, x)
    for name in ("a", "b"):
        quanter.save_quantized_model(net, str(tmp_path / name), [Spec([None, 1, 8, 8])])
    assert (tmp_path / "a.pdiparams").read_bytes() == (tmp_path / "b.pdiparams").read_bytes()
