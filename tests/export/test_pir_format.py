"""``format="pir"``: the file that Paddle 3 loads equals the simulation."""

import os

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import SmallNet, warmed
from paddle import inference, nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.errors import ConfigError

pytestmark = pytest.mark.needs_pir


def pir_inference(path, inputs, ir_optim):
    config = inference.Config(f"{path}.json", f"{path}.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.switch_ir_optim(ir_optim)
    config.set_cpu_math_library_num_threads(1)
    predictor = inference.create_predictor(config)
    for name, value in zip(predictor.get_input_names(), inputs):
        predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(value))
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu()
            for name in predictor.get_output_names()]


def quantized(config, net, x):
    qat = paddleq.QAT(config)
    qat.quantize(net)
    net.train()
    optimizer = paddle.optimizer.SGD(1e-2, parameters=net.parameters())
    for _ in range(3):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()
    return qat, net


class Looped(nn.Layer):
    """A quantized layer in a loop, and a weight that is also read as float."""

    def __init__(self):
        super().__init__()
        self.fc, self.inner = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        i = paddle.zeros([1], "int32")
        while i < 3:
            x = F.relu(self.inner(x)) + x
            i = i + 1
        return self.fc(x) + self.fc.weight.sum()


@pytest.mark.parametrize("config", [
    {}, {"weight_bits": 4, "activation_bits": 6}, {"activation_bits": 16},
    {"weight_bits": 1, "activation_bits": 1}, {"activation_preprocess_type": "PACT"},
    {"weight_quantize_type": "abs_max"}])
def test_file_equals_simulation(config, tmp_path):
    x, path = paddle.rand([4, 1, 8, 8]), str(tmp_path / "m")
    qat, net = quantized(config, warmed(SmallNet(), x), x)
    expected = net(x).numpy()
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    qat.save_quantized_model(net, path, format="pir")
    assert sorted(os.listdir(tmp_path)) == ["m.json", "m.paddleq.yaml", "m.pdiparams"]
    for ir_optim in (False, True):
        found = pir_inference(path, [x.numpy()], ir_optim)[0]
        assert relative_error(found, expected) <= (1e-2 if ir_optim else 1e-6)
    loaded = paddle.jit.load(path)
    loaded.eval()
    assert relative_error(loaded(x).numpy(), expected) <= 1e-6
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    # Both formats are of one model.
    qat.save_quantized_model(net, path + "2")
    assert relative_error(paddle_inference(path + "2", [x.numpy()])[0], expected) <= 1e-6


def test_inner_blocks_and_shared_weights(tmp_path):
    x, path = paddle.rand([4, 8]), str(tmp_path / "m")
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(Looped())
    ptq.calibrate(net, [x])
    spec = [paddle.static.InputSpec([None, 8], "float32", "x")]
    ptq.save_quantized_model(net, path, spec, format="pir")
    expected = net(x).numpy()
    assert relative_error(pir_inference(path, [x.numpy()], False)[0], expected) <= 1e-6
    ptq.save_quantized_model(net, path + "2", spec)
    assert relative_error(paddle_inference(path + "2", [x.numpy()])[0], expected) <= 1e-6
    # The PIR file can be converted like any other.
    paddleq.export.to_program_desc(path + ".json", path + "3")
    assert relative_error(paddle_inference(path + "3", [x.numpy()])[0], expected) <= 1e-6


def test_unknown_format(tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    qat, net = quantized({}, SmallNet(), x)
    with pytest.raises(ConfigError, match="format must be one of .*, but is 'onxx' .*'onnx'"):
        qat.save_quantized_model(net, str(tmp_path / "m"), format="onxx")
