"""Linear layers whose weight another layer reads: integers there would be wrong or refused."""

import logging

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

import paddleq
from paddleq.errors import ModelError
from paddleq.golden_stick import PTQ, PTQConfig

SIZE = 32


def plain(x, layer):
    return F.linear(x, layer.weight, layer.bias)


def cast(x, layer):
    return F.linear(x, layer.weight.astype(x.dtype), layer.bias)


def transposed(x, layer):
    return paddle.matmul(x, getattr(layer, "weight"), transpose_y=True)  # noqa: B009


def part(x, layer):
    weight = layer.weight[:, :SIZE // 2]
    return paddle.concat([paddle.matmul(x, weight), paddle.matmul(x, weight)], -1)


def called_too(x, layer):
    return layer(x) + paddle.matmul(x, layer.weight.astype("float32") * layer.weight)


READS = [plain, cast, transposed, part, called_too]


class Reader(nn.Layer):
    def __init__(self, read):
        super().__init__()
        self.a, self.proj, self.read = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), read

    def forward(self, x, scale=1.0):
        return self.read(paddle.tanh(self.a(x)), self.proj) * scale


class Net(nn.Layer):
    def __init__(self, read, block=Reader):
        super().__init__()
        self.layers = nn.LayerList([block(read), block(read)])

    def forward(self, x, scale=1.0):
        for layer in self.layers:
            x = layer(x, scale=scale)
        return x


def amct(algorithm):
    def door(net, data, skip):
        weights = {"type": "int8", "symmetric": True, "strategy": "channel"}
        paddleq.amct.quantize(net, {"batch_num": len(data), "quant_cfg": {"weights": weights},
                                    "algorithm": algorithm, "skip_layers": skip})
        for batch in data:
            net(**batch)
        paddleq.amct.convert(net)
        return net

    return door


def golden_stick(**config):
    return lambda net, data, skip: PTQ(PTQConfig(opname_blacklist=skip, **config)).apply(
        net, datasets=data)


DOORS = {"amct minmax": amct("minmax"), "amct gptq": amct("gptq"), "rounding": golden_stick(),
         "gptq": golden_stick(precision_recovery="gptq"),
         "awq": golden_stick(weight_quant_dtype="int4", outliers_suppression="awq"),
         "per token": golden_stick(act_quant_dtype="int8", act_quant_granularity="per_token")}


def batches(count=2):
    rng = np.random.RandomState(0)
    return [{"x": paddle.to_tensor(rng.randn(3, SIZE).astype("float32")), "scale": 1.5}
            for _ in range(count)]


def quantized(door, read, skip, block=Reader):
    paddle.seed(1)
    net = Net(read, block)
    net.eval()
    return DOORS[door](net, batches(), skip)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("read", READS)
def test_layer_stays_float(read, door, caplog):
    with caplog.at_level(logging.WARNING, "paddleq"):
        net = quantized(door, read, [])
    warned = [each.getMessage() for each in caplog.records if "stays float" in each.getMessage()]
    assert [text.split(" ")[0] for text in warned] == ["layers.0.proj", "layers.1.proj"]
    x = batches()[0]["x"]
    expected = quantized(door, read, ["proj"])(x)
    assert np.array_equal(net(x).numpy(), expected.numpy())
    assert all(type(layer.a) is paddleq.nn.IntegerLinear and type(layer.proj) is nn.Linear
               for layer in net.layers)
    row = next(line for line in paddleq.summary(net).splitlines() if "0.proj" in line)
    assert "left" in row and "read outside of its forward" in row
    net.layers[0].proj.weight.set_value(net.layers[0].proj.weight * 2.0)
    assert not np.array_equal(net(x).numpy(), expected.numpy())


class Router(nn.Layer):
    """Weights of experts that are read only if data reaches them."""

    def __init__(self, read):
        super().__init__()
        self.a, self.experts, self.read = nn.Linear(SIZE, SIZE), nn.LayerList(
            [nn.Linear(SIZE, SIZE) for _ in range(2)]), read

    def forward(self, x, scale=1.0):
        chosen = int(x.sum() > 0)
        return self.a(x) + self.read(x, self.experts[chosen]) * scale


def test_reads_of_a_later_batch_count():
    paddle.seed(1)
    net, data = Net(cast, Router), batches()
    data[0]["x"], data[1]["x"] = data[0]["x"].abs(), -data[1]["x"].abs()
    float_outputs = [net(**batch).numpy() for batch in data]
    net = DOORS["rounding"](net, data, [])
    for batch, expected in zip(data, float_outputs):
        error = np.abs(net(**batch).numpy() - expected).max()
        assert 0 < error < 0.05 * np.abs(expected).max()


def test_no_layer_left():
    net = nn.Sequential(Reader(cast))
    net[0].a = nn.Identity()
    with pytest.raises(ModelError, match="0.proj: its weight is read outside"):
        amct("minmax")(net, [{"input": paddle.rand([2, SIZE])}], [])
    net = Net(cast)
    for layer in net.layers:
        layer.a = nn.Identity()
    with pytest.raises(ModelError, match="weight is read outside of its forward"):
        DOORS["rounding"](net, batches(), [])
    assert type(net.layers[0].proj) is nn.Linear


def test_reads_between_batches_do_not_count():
    """A training loop or a logger may read any weight."""
    net = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 4))
    weights = {"type": "int8", "symmetric": True, "strategy": "channel"}
    paddleq.amct.quantize(net, {"batch_num": 2, "quant_cfg": {"weights": weights},
                                "algorithm": "minmax"})
    for _ in range(2):
        net(paddle.rand([3, SIZE]))
        assert float(net[0].weight.abs().sum()) > 0
    paddleq.amct.convert(net)
    assert all(type(layer) is paddleq.nn.IntegerLinear for layer in net)
