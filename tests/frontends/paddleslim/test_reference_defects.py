"""The ten defects of the reference that must not come back (semantics.md): one test each."""

import os

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import SmallNet, train_steps, warmed
from paddle import nn
from paddle.vision.models import LeNet
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.export.program.program import Program

Spec = paddle.static.InputSpec
IMAGE = [Spec([None, 1, 8, 8], "float32")]


def load(path):
    return Program.load(path + ".pdmodel", path + ".pdiparams")


def test_defect_01_export_equals_simulation(tmp_path):
    net, x = LeNet(), paddle.rand([8, 1, 28, 28])
    quanter = paddleq.QAT()
    quanter.quantize(net)
    train_steps(net, x)
    path = str(tmp_path / "m")
    quanter.save_quantized_model(net, path, [Spec([None, 1, 28, 28])])
    found = paddle_inference(path, [x.numpy()])[0]
    assert np.abs(found - net(x).numpy()).max() < 1e-5
    # Five layers, five input quantizers: no output is quantized, the logits least of all.
    ops = [op.type for op in load(path).desc.blocks[0].ops]
    assert ops.count("quantize_linear") == 5
    scales = [layer.activation_quantizer.abs_max.item() for _, layer in net.named_sublayers()
              if hasattr(layer, "activation_quantizer")]
    stored = load(path).arrays
    for scale in scales:
        assert any(value.shape == (1,) and value[0] == np.float32(scale)
                   for value in stored.values())


@pytest.mark.parametrize("training", [True, False])
def test_defect_02_model_is_usable_after_saving(training, tmp_path):
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT()
    quanter.quantize(net)
    train_steps(net, x)
    net.conv2.eval()
    net.train() if training else net.eval()
    net.bn1.eval()  # a frozen batch norm in a training model
    modes = [layer.training for layer in net.sublayers(include_self=True)]
    state = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    quanter.save_quantized_model(net, str(tmp_path / "m"), IMAGE)
    assert paddle.in_dynamic_mode()
    assert [layer.training for layer in net.sublayers(include_self=True)] == modes
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key])
    output = net(x)
    output.mean().backward()
    assert net.conv1.weight.grad is not None


@pytest.mark.parametrize("preprocess", [None, "PACT"])
def test_defect_03_each_save_exports_the_latest_weights(preprocess, tmp_path):
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT({"activation_preprocess_type": preprocess})
    quanter.quantize(net)
    optimizer, stored = None, []
    for i in range(3):  # train, save, train, save, keep training
        optimizer = train_steps(net, x, lr=0.05, optimizer=optimizer)
        path = str(tmp_path / f"m{i}")
        quanter.save_quantized_model(net, path, IMAGE)
        assert relative_error(paddle_inference(path, [x.numpy()])[0], net(x).numpy()) < 1e-6
        stored.append(load(path).arrays[net.conv3.weight.name])
    assert (stored[0] != stored[1]).any() and (stored[1] != stored[2]).any()


def test_defect_04_weight_preprocess_is_not_dropped_at_export(tmp_path):
    class Halved(nn.Layer):
        def forward(self, w):
            return paddle.clip(w, -0.1, 0.1) * 0.5

    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT(weight_preprocess=Halved)
    quanter.quantize(net)
    train_steps(net, x)
    path = str(tmp_path / "m")
    quanter.save_quantized_model(net, path, IMAGE)
    assert relative_error(paddle_inference(path, [x.numpy()])[0], net(x).numpy()) < 1e-6
    scale = load(path).arrays[net.fc.weight.name + ".scale"]
    assert scale.max() <= 0.05 + 1e-6


def test_defect_05_sixteen_bits_do_not_overflow_and_one_bit_is_finite(tmp_path):
    for bits, dtype in ((16, "int16"), (1, "int8")):
        net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
        quanter = paddleq.QAT({"weight_bits": bits})
        quanter.quantize(net)
        train_steps(net, x)
        path = str(tmp_path / f"m{bits}")
        quanter.save_quantized_model(net, path, IMAGE)
        weight = load(path).arrays[net.conv3.weight.name]
        assert weight.dtype == dtype
        if bits == 16:
            assert np.abs(weight.astype(int)).max(axis=(1, 2, 3)).min() == 32767
        else:
            assert set(np.unique(weight)) == {-1, 1}
        found = paddle_inference(path, [x.numpy()])[0]
        assert np.isfinite(found).all()
        assert relative_error(found, net(x).numpy()) < 1e-6


def test_defect_06_fusion_happens_and_pairs_by_data():
    class Crossed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv_a, self.conv_b = nn.Conv2D(1, 4, 1), nn.Conv2D(4, 4, 1)
            self.bn_b, self.bn_a = nn.BatchNorm2D(4), nn.BatchNorm2D(4)

        def forward(self, x):
            return self.bn_b(self.conv_b(F.relu(self.bn_a(self.conv_a(x)))))

    x = paddle.randn([8, 1, 6, 6])
    net = warmed(Crossed(), x)
    expected = net(x).numpy()
    quanter = paddleq.QAT({"fuse_conv_bn": True, "weight_bits": 16, "activation_bits": 16,
                           "activation_quantize_type": "abs_max"})
    quanter.quantize(net, inputs=x)
    assert not [n for n, _ in net.named_parameters() if n.startswith("bn")]
    train_steps(net, x, lr=0.0)
    # With sixteen bits and a learning rate of 0 only the fusion remains, which is exact.
    assert relative_error(net(x).numpy(), expected) < 1e-3
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    fused = ptq.quantize(warmed(Crossed(), x), fuse=True, inputs=x)
    assert "folded into conv_a" in paddleq.summary(fused)


def test_defect_07_float_weights_load_and_checkpoints_interchange(tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    trained = SmallNet()
    nets = {}
    for onnx_format in (True, False):
        net = nets[onnx_format] = SmallNet()
        paddleq.QAT({"onnx_format": onnx_format}).quantize(net)
        missing, unexpected = net.set_state_dict(trained.state_dict())
        assert not unexpected and sorted(missing) == sorted(paddleq.extra_state_keys(net))
        for key, value in trained.state_dict().items():
            np.testing.assert_array_equal(net.state_dict()[key].numpy(), value.numpy())
    train_steps(nets[True], x)
    path = str(tmp_path / "ckpt.pdparams")
    paddle.save(nets[True].state_dict(), path)
    missing, unexpected = nets[False].set_state_dict(paddle.load(path))
    assert not missing and not unexpected
    nets[False].eval()
    np.testing.assert_array_equal(nets[False](x).numpy(), nets[True](x).numpy())


def test_defect_08_flops_and_summary_count_a_quantized_model():
    float_net, net = LeNet(), LeNet()
    paddleq.QAT().quantize(net)
    expected = paddle.flops(float_net, [1, 1, 28, 28])
    assert expected > 0 and paddle.flops(net, [1, 1, 28, 28]) == expected
    assert (paddle.summary(net, (1, 1, 28, 28))["total_params"]
            == paddle.summary(float_net, (1, 1, 28, 28))["total_params"])


def test_defect_09_ptq_exports_integers_and_the_file_shrinks(tmp_path):
    net = LeNet()
    x = paddle.rand([4, 1, 28, 28])
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [x])
    path = str(tmp_path / "m")
    ptq.save_quantized_model(quantized, path)
    floats = sum(p.size * 4 for p in net.parameters())
    assert os.path.getsize(path + ".pdiparams") < 0.3 * floats
    for layer in (net.features[0], net.fc[0]):
        assert load(path).arrays[layer.weight.name].dtype == np.int8


def test_defect_10_unknown_keys_are_rejected_and_errors_are_raised():
    with pytest.raises(paddleq.errors.ConfigError, match=r"weight_bit.*did you mean 'weight_bits'"):
        paddleq.QAT({"weight_bit": 8})
    with pytest.raises(paddleq.errors.ConfigError, match=r"hist_percnt.*'hist_percent'"):
        paddleq.PTQ("HistQuantizer", hist_percnt=0.9)

    class Broken(nn.Layer):
        def __init__(self):
            raise RuntimeError("my own mistake")

    net = SmallNet()
    with pytest.raises(RuntimeError, match="my own mistake"):
        paddleq.QAT(act_preprocess=Broken).quantize(net)
    assert type(net.conv1) is nn.Conv2D  # refused as a whole
