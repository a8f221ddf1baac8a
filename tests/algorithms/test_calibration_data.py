"""Calibration data that misses experts, holds padding, is scarce, or has huge values."""

import json
import logging
from collections import OrderedDict

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq import PerChannel, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, StackHelper, quantize_layer_by_layer
from paddleq.config import LayerConfig, QuantConfig
from paddleq.errors import CalibrationError, ConfigError, NonFiniteError, PaddleqError
from paddleq.golden_stick import PTQ, PTQConfig
from paddleq.nn import IntegerLinear, KVCache
from paddleq.observers import ChannelStats

WIDTH, EXPERTS = 16, 4


class Mixture(nn.Layer):
    """Each token is sent to one expert, to the last one only if all its features are positive."""

    def __init__(self, router="gate"):
        super().__init__()
        self.name = router
        setattr(self, router, nn.Linear(WIDTH, EXPERTS, bias_attr=False))
        self.experts = nn.LayerList([nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(),
                                                   nn.Linear(24, WIDTH)) for _ in range(EXPERTS)])

    def forward(self, x):
        tokens = x.reshape([-1, WIDTH])
        scores = getattr(self, self.name)(tokens)
        chosen = scores[:, :-1].argmax(-1)
        positive = (tokens.min(-1) > 0).astype("int64")
        chosen = positive * (EXPERTS - 1) + (1 - positive) * chosen
        y = tokens
        for number, expert in enumerate(self.experts):
            index = paddle.nonzero(chosen == number).flatten()
            if index.shape[0]:
                y = paddle.scatter(y, index, expert(paddle.gather(tokens, index)))
        return x + y.reshape(x.shape)


def mixtures(router="gate"):
    paddle.seed(5)
    net = nn.Sequential(Mixture(router), Mixture(router))
    net.eval()
    return net


def batches(count=2):
    rng = np.random.RandomState(0)
    return [paddle.to_tensor(rng.randn(2, 9, WIDTH).astype("float32")) for _ in range(count)]


CONFIGS = {
    "gptq": {"precision_recovery": "gptq"},
    "awq": {"weight_quant_dtype": "int4", "outliers_suppression": "awq"},
    "static": {"act_quant_dtype": "int8"},
    "smooth": {"act_quant_dtype": "int8", "outliers_suppression": "smooth"},
    "per token": {"act_quant_dtype": "int8", "act_quant_granularity": "per_token",
                  "outliers_suppression": "smooth"},
}
DEAD = [f"{block}.experts.3.{layer}" for block in (0, 1) for layer in (0, 2)]


@pytest.mark.parametrize("config", CONFIGS)
def test_experts_without_data_are_rounded_to_nearest(config, caplog):
    config = PTQConfig(**CONFIGS[config])
    with caplog.at_level(logging.WARNING, "paddleq"):
        net = PTQ(config).apply(mixtures(), datasets=batches())
    (warned,) = [text for text in caplog.messages if "no calibration data reached" in text]
    assert all(name in warned for name in DEAD) and "4 layers" in warned
    before = dict(mixtures().named_sublayers())
    for name in DEAD:
        expert, weight = dict(net.named_sublayers())[name], before[name].weight.numpy()
        step = np.abs(weight).max(axis=0) / expert.weight_spec.quant_max
        assert np.array_equal(expert.integers().numpy(), np.rint(weight / step))
        x = paddle.randn([5, weight.shape[0]])
        expected = x.numpy() @ (np.rint(weight / step) * step) + before[name].bias.numpy()
        # A scale per token needs no data; a fixed one has none.
        assert (expert.activation_spec is not None) == expert.per_token
        assert relative_error(expert(x).numpy(), expected) < (2e-2 if expert.per_token else 1e-5)
    alive = dict(net.named_sublayers())["0.experts.0.0"]
    assert isinstance(alive, IntegerLinear) and alive.quant_type != expert.quant_type


def test_all_experts_without_data_are_named_before_a_layer_is_changed():
    net = mixtures()
    with pytest.raises(CalibrationError) as error:
        PTQ(PTQConfig(precision_recovery="gptq")).apply(net, datasets=batches(),
                                                        uncalibrated="error")
    assert all(name in str(error.value) for name in DEAD)
    assert not any(isinstance(layer, IntegerLinear) for layer in net.sublayers())
    with pytest.raises(ConfigError, match="uncalibrated must be"):
        PTQ(PTQConfig()).apply(net, datasets=batches(), uncalibrated="skip")


def test_data_that_reaches_no_layer_is_an_error():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4)))
    net.forward = lambda x: x
    with pytest.raises(CalibrationError, match="no calibration data reached 0.0, 1.0"):
        PTQ(PTQConfig(precision_recovery="gptq")).apply(net, datasets=[paddle.rand([2, 4])])


def by_gptq(net, folder, **options):
    config = QuantConfig()
    config.add_type(nn.Linear, LayerConfig(QuantSpec(granularity=PerChannel(1)), rounder=GPTQ()))
    for name in options.pop("skip", ()):
        config.add_name(name, None)
    return quantize_layer_by_layer(net, StackHelper(), config, options.pop("data", batches()),
                                   resume_dir=folder, **options)


def test_remedies_are_accepted_by_resume_dir(tmp_path):
    """After an error in the second block, its layers may be skipped or rounded."""
    folder = tmp_path / "run"
    expected = by_gptq(mixtures(), folder)
    assert sorted(expected.uncalibrated) == DEAD
    for file in folder.glob("layer-0001*"):
        file.unlink()
    with pytest.raises(CalibrationError, match="1.experts.3.0"):
        by_gptq(mixtures(), folder, uncalibrated="error")
    net = mixtures()
    done = by_gptq(net, folder, skip=["1.experts.3.0", "1.experts.3.2"])
    assert done.uncalibrated == [] and "1.experts.3.0" not in done.linears
    assert isinstance(net[0].experts[3][0], IntegerLinear)
    assert type(net[1].experts[3][0]) is nn.Linear
    # The first block and, now that it is finished, the second one too are fixed.
    for skip in (["0.experts.3.0"], []):
        with pytest.raises(ConfigError, match="belongs to a run with another configuration"):
            by_gptq(mixtures(), folder, skip=skip)
    with pytest.raises(ConfigError, match="another data"):
        by_gptq(mixtures(), folder, data=batches(3),
                    skip=["1.experts.3.0", "1.experts.3.2"])
    stored = json.loads((folder / "run.json").read_text())["configuration"]
    assert "the policy of 1.experts.3.0" not in stored


def test_amct_experts_that_some_batches_miss(caplog):
    weights = {"type": "int8", "symmetric": True, "strategy": "channel"}

    def calibrated():
        net = mixtures()
        paddleq.amct.quantize(net, {"batch_num": 2, "quant_cfg": {"weights": weights},
                                    "algorithm": "gptq"})
        for batch in (batches()[0], batches()[1].abs()):  # all tokens to the last expert
            net(batch)
        return net

    with pytest.raises(CalibrationError, match=r"0.experts.3.0 \(1\).*uncalibrated='round'"):
        paddleq.amct.convert(calibrated())
    net = calibrated()
    paddleq.amct.convert(net, uncalibrated="round")
    assert all(type(expert[0]) is IntegerLinear for expert in net[0].experts)
    assert net[0].experts[3][0].quant_type == "GPTQ-W8-per_channel"
    with pytest.raises(ConfigError, match="uncalibrated must be"):
        paddleq.amct.convert(calibrated(), uncalibrated="yes")


@pytest.mark.parametrize("router", ["gate", "router", "switch"])
def test_routers_stay_float(router):
    net = PTQ(PTQConfig()).apply(mixtures(router), datasets=batches())
    assert [type(getattr(block, router)) for block in net] == [nn.Linear] * 2
    row = next(line for line in paddleq.summary(net).splitlines() if f"0.{router}" in line)
    assert "left" in row and "chooses experts" in row
    for pattern, quantized in ((r"\d", False), (rf"\d\.{router}", True)):
        net = PTQ(PTQConfig(), OrderedDict({pattern: PTQConfig()})).apply(
            mixtures(router), datasets=batches())
        assert isinstance(getattr(net[1], router), IntegerLinear) == quantized
    net = mixtures(router)
    weights = {"type": "int8", "symmetric": True, "strategy": "channel"}
    paddleq.amct.quantize(net, {"batch_num": 1, "quant_cfg": {"weights": weights},
                                "algorithm": "minmax"})
    net(batches()[0])
    paddleq.amct.convert(net)
    assert type(getattr(net[0], router)) is nn.Linear


def test_gates_that_choose_no_experts_are_quantized():
    class Gated(nn.Layer):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, EXPERTS)
            self.gates = nn.LayerList([nn.Linear(EXPERTS, WIDTH)])

        def forward(self, x):
            return self.gates[0](F.sigmoid(self.gate(x)) * self.up(x))

    net = PTQ(PTQConfig()).apply(nn.Sequential(Gated(), Gated()), datasets=batches())
    assert isinstance(net[0].gate, IntegerLinear)


class Padded(nn.Layer):
    """Attention of one head with a KV cache, and a layer on flattened tokens."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kv_cache, self.up = KVCache(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unsqueeze(2).split(3, -1)
        k, v, _ = self.kv_cache(k, v, None)
        scores = q.squeeze(2) @ k.squeeze(2).transpose([0, 2, 1]) + mask
        x = x + self.out(F.softmax(scores) @ v.squeeze(2))
        return x + self.up(x.reshape([-1, WIDTH])).reshape(x.shape)


class PaddedModel(nn.Layer):
    def __init__(self):
        super().__init__()
        self.blocks = nn.LayerList([Padded(), Padded()])

    def forward(self, x, attention_mask=None):
        mask = 0.0 if attention_mask is None else (
            (attention_mask.astype("float32") - 1.0) * 1e9).unsqueeze(1)
        for block in self.blocks:
            x = block(x, mask)
        return x


@pytest.mark.parametrize("config, dtype", [("static", "int64"), ("gptq", "bool"),
                                           ("awq", "float32")])
def test_padding_does_not_count(config, dtype):
    """Statistics equal those of the sentences alone, whatever the padding holds."""
    config = PTQConfig(kvcache_quant_dtype="int8", **CONFIGS[config])
    rng = np.random.RandomState(1)
    tokens = rng.randn(1, 24, WIDTH).astype("float32")
    sentence = {"x": paddle.to_tensor(tokens)}
    found = []
    for padding in (0, 3.0, 1000.0):
        paddle.seed(6)
        net = PaddedModel()
        net.eval()
        batch = sentence
        if padding:
            x = np.concatenate([tokens, padding * rng.randn(1, 8, WIDTH).astype("float32")], 1)
            mask = np.arange(32)[None] < 24
            batch = {"x": paddle.to_tensor(x), "attention_mask": paddle.to_tensor(
                mask.astype(dtype))}
        net = PTQ(config).apply(net, datasets=[batch])
        found.append(net.state_dict())
    for other in found[1:]:
        for name, value in found[0].items():
            a, b = value.numpy().astype("float64"), other[name].numpy().astype("float64")
            if name.endswith(("_scale", "abs_max", ".input_scale")):
                np.testing.assert_allclose(b, a, rtol=1e-4, err_msg=name)
            else:  # sums in another order may move a rare integer
                assert np.mean(np.abs(a - b) > 1e-5 * np.abs(a).max()) < 0.02, name


def test_padding_of_unknown_shape_counts():
    net, x = PaddedModel(), paddle.randn([1, 6, WIDTH])
    mask = paddle.ones([1, 1, 1, 6])
    net.forward = lambda x, attention_mask: PaddedModel.forward(net, x)
    PTQ(PTQConfig(precision_recovery="gptq")).apply(
        net, datasets=[{"x": x, "attention_mask": mask}])
    assert isinstance(net.blocks[0].up, IntegerLinear)


def test_gptq_on_few_tokens_warns(caplog):
    def warnings_of(tokens, **config):
        caplog.clear()
        net = nn.Sequential(nn.Sequential(nn.Linear(32, 8)), nn.Sequential(nn.Linear(8, 32)))
        with caplog.at_level(logging.WARNING, "paddleq"):
            PTQ(PTQConfig(**config)).apply(net, datasets=[paddle.randn([tokens, 32])])
        return [text for text in caplog.messages if "input vectors per feature" in text]

    (text,) = warnings_of(100, precision_recovery="gptq")
    assert text.startswith("1 layers") and "0.0: 100 for 32 features. GPTQ may" in text
    assert "2 layers" in warnings_of(20, precision_recovery="gptq")[0]
    assert not warnings_of(128, precision_recovery="gptq") and not warnings_of(3)
    net = nn.Sequential(nn.Linear(32, 8))
    paddleq.amct.quantize(net, {"batch_num": 1, "algorithm": "gptq", "quant_cfg": {
        "weights": {"type": "int4", "symmetric": True, "strategy": "channel"}}})
    net(paddle.randn([50, 32]))
    with caplog.at_level(logging.WARNING, "paddleq"):
        paddleq.amct.convert(net)
    assert "0: 50 for 32 features" in caplog.text


@pytest.mark.parametrize("duo", [False, True])
@pytest.mark.parametrize("size", [1e3, 1e15, 1e18, 1e19])
def test_awq_does_not_depend_on_the_magnitude_of_the_input(size, duo):
    """The squared error of inputs near 1e19 exceeds float32; the best factors are the same."""
    rng = np.random.RandomState(2)
    x = np.clip(rng.randn(64, WIDTH), -1.5, 1.5).astype("float32")
    x[:, 3] *= 0.01
    weight = paddle.to_tensor(rng.randn(WIDTH, 8).astype("float32"))
    spec, found = QuantSpec(4, granularity=PerChannel(1)), []
    for factor in (1.0, size):
        stats = ChannelStats(AWQ.needs)
        stats.update(paddle.to_tensor(x * np.float32(factor)))
        found.append(AWQ(duo_scaling=duo).scales([weight], stats, spec).numpy())
    assert found[0].max() > found[0].min()
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_awq_on_weights_of_infinite_error():
    stats = ChannelStats(AWQ.needs)
    stats.update(paddle.rand([64, WIDTH]) * 1e18)
    weight = paddle.randn([WIDTH, 8]) * 1e25
    with pytest.raises(NonFiniteError, match="error of no smoothing factor is finite"):
        AWQ().scales([weight], stats, QuantSpec(4))
    net = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 8)), nn.Sequential(nn.Linear(8, 4)))
    net[0][0].weight.set_value(weight)
    with pytest.raises(PaddleqError, match="0.0"):
        PTQ(PTQConfig(**CONFIGS["awq"])).apply(net, datasets=[paddle.rand([64, WIDTH])])


def test_masked_model_is_exported(tmp_path):
    net, x = PaddedModel(), paddle.randn([2, 6, WIDTH])
    mask = paddle.to_tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    net = PTQ(PTQConfig(**CONFIGS["static"])).apply(
        net, datasets=[{"x": x, "attention_mask": mask}])
    expected = net(x, mask).numpy()
    paddleq.save_quantized_model(net, str(tmp_path / "m"), [
        paddle.static.InputSpec([None, None, WIDTH], "float32", "x"),
        paddle.static.InputSpec([None, None], "int64", "attention_mask")])
    found = paddle_inference(str(tmp_path / "m"), [x.numpy(), mask.numpy()])[0]
    assert relative_error(found, expected) < 1e-6
