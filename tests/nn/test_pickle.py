"""Quantized models in pickles, copies and other processes."""

import copy
import multiprocessing
import pickle

import numpy as np
import paddle
import pytest
from nets import OcrPACT
from paddle import nn
from process_worker import run_pickled

import paddleq
from paddleq import LSQ, QuantSpec
from paddleq.nn import Int8KVCache, IntegerLinear
from paddleq.nn.kv_cache import insert_cache

paddle.seed(5)
X = paddle.randn([2, 3, 8, 8])


class Attention(nn.Layer):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiHeadAttention(8, 2)
        insert_cache(self.attention)
        self.attention.kv_cache = Int8KVCache("per_token", token_axis=2)

    def forward(self, x):
        return self.attention(x.flatten(1, 2))


def net():
    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 5), nn.Linear(5, 2))


def trained(model):
    optimizer = paddle.optimizer.SGD(0.01, parameters=model.parameters())
    for _ in range(2):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    model.eval()
    return model


def qat(**config):
    return trained(paddleq.QAT(config).quantize(net()))


def ptq(fuse=False):
    quanter = paddleq.PTQ("AbsmaxQuantizer")
    model = net()
    model.eval()
    model = quanter.quantize(model, fuse=fuse)
    paddleq.calibrate(model, [X])
    return model


def simulated_qat(convert=False):
    quanter = paddleq.golden_stick.SimulatedQuantizationAwareTraining(
        {"enable_fusion": True, "bn_fold": True, "one_conv_fold": False, "quant_delay": 1})
    model = quanter.apply(net(), X)
    trained(model)
    return quanter.convert(model) if convert else model


def integer_linear():
    model = nn.Sequential(nn.Flatten(), IntegerLinear(192, 4, QuantSpec(4)))
    model[1].weight_scale.set_value(paddle.full([1, 1], 0.5))
    return model


MODELS = {
    "qat": qat,
    "pact": lambda: qat(activation_preprocess_type="PACT"),
    "hooks": lambda: trained(paddleq.QAT(act_preprocess=OcrPACT).quantize(net())),
    "lsq": lambda: trained(paddleq.QAT(weight_quantize=LSQ, act_quantize=LSQ).quantize(net())),
    "ptq": ptq,
    "fused": lambda: ptq(True),
    "simulated qat": simulated_qat,
    "converted": lambda: simulated_qat(True),
    "integer linear": integer_linear,
    "dynamic": lambda: paddleq.quant_post_dynamic(net()),
    "kv cache": Attention,
}


@pytest.fixture(params=list(MODELS))
def model(request):
    model = MODELS[request.param]()
    model.eval()
    return model


def output(model):
    x = X
    with paddle.no_grad():
        return model(x).numpy()


def assert_same_model(copied, model):
    assert np.array_equal(output(copied), output(model))
    assert paddleq.summary(copied) == paddleq.summary(model)
    mine, theirs = copied.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    assert all(np.array_equal(mine[key].numpy(), theirs[key].numpy()) for key in theirs)
    for (_, layer), (_, other) in zip(copied.named_sublayers(), model.named_sublayers()):
        assert type(layer) is type(other)


def test_pickle_round_trip(model):
    copied = pickle.loads(pickle.dumps(model))
    assert_same_model(copied, model)
    assert [p.name for p in copied.parameters()] == [p.name for p in model.parameters()]


def test_deepcopy_is_independent(model):
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    copied = copy.deepcopy(model)
    assert_same_model(copied, model)
    for value in copied.state_dict().values():
        value.set_value(np.zeros_like(value.numpy()))
    for key, value in model.state_dict().items():
        assert np.array_equal(before[key], value.numpy())


def test_unpickled_qat_model_trains_like_the_original():
    model = qat(activation_preprocess_type="PACT")
    copied = pickle.loads(pickle.dumps(model))
    model.train()
    copied.train()
    trained(model)
    trained(copied)
    for mine, theirs in zip(copied.parameters(), model.parameters()):
        assert np.array_equal(mine.numpy(), theirs.numpy())


def test_spawned_process_computes_the_same_outputs():
    contents = [pickle.dumps(MODELS[name]()) for name in ("lsq", "fused", "dynamic")]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = [pool.apply(run_pickled, (content, X.numpy())) for content in contents]
    for content, value in zip(contents, found):
        assert np.array_equal(value, output(pickle.loads(content)))


def test_calibration_continues_after_a_round_trip():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64))
    config = {"batch_num": 1, "algorithm": "minmax", "quant_cfg": {
        "weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
        "inputs": {"type": "int8", "symmetric": True, "strategy": "tensor"}}}
    paddleq.amct.quantize(model, config)
    copied = pickle.loads(pickle.dumps(model))
    for each in (model, copied):
        each(X)
        paddleq.amct.convert(each)
    assert np.array_equal(output(model), output(copied))
