"""Unusual transformers in both front ends: a correct result, or an error that names the cause.

A correct result is within 8-bit tolerance of the float model, or identical to an equivalent plain
model. Sizes are odd; layers are shared, wrapped, patched and hooked.
"""

import collections
import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from paddle.nn import functional as F
from runtimes import relative_error

import paddleq
from paddleq.algorithms import StackHelper
from paddleq.errors import CalibrationError, ConfigTypeError, FormatError, ModelError
from paddleq.frontends.golden_stick import PTQ, PTQConfig
from paddleq.nn import IntegerLinear
from paddleq.observers import ChannelStats

WIDTH, WORDS = 32, 20
W8 = {}
W8A8 = {"act_quant_dtype": "int8", "act_quant_granularity": "per_token",
        "outliers_suppression": "smooth"}


class Block(nn.Layer):
    def __init__(self, width=WIDTH, inner=2 * WIDTH, bias=None):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner, bias_attr=bias)
        self.down = nn.Linear(inner, width, bias_attr=bias)

    def forward(self, x):
        return x + self.inside(x)

    def inside(self, x):
        return self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Layer):
    def __init__(self, block=Block, width=WIDTH, depth=2):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.layers = nn.LayerList([block() for _ in range(depth)])

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


def changed(change, net=Net):
    """A network after ``change`` of its first block."""
    net = net()
    change(net.layers[0])
    return net


def data(count=2):
    """Batches of token numbers, each of another length."""
    return [paddle.randint(0, WORDS, [2, 5 + each]) for each in range(count)]


def call(net, batch):
    y = net(**batch) if isinstance(batch, dict) else net(
        *(batch if isinstance(batch, tuple) else [batch]))
    return y["hidden"] if isinstance(y, dict) else y


def by_amct(net, batches, activations=False, algorithm=None, **more):
    channel = {"type": "int8", "symmetric": True, "strategy": "channel"}
    quant = {"weights": channel}
    if activations:
        quant["inputs"] = {**channel, "strategy": "token"}
    paddleq.amct.quantize(net, {"batch_num": len(batches), "quant_cfg": quant,
                           "algorithm": "smoothquant" if activations else "minmax", **more})
    for batch in batches:
        call(net, batch)
    paddleq.amct.convert(net)
    return net


def by_ptq(net, batches, activations=False, **more):
    ptq = PTQ(PTQConfig(**(W8A8 if activations else W8), **more))
    return ptq.convert(ptq.apply(net, datasets=batches))


def integers(net):
    return {name for name, layer in net.named_sublayers() if isinstance(layer, IntegerLinear)}


def why(net):
    return {line.split("|")[0].strip(): line.split("|")[-1].strip()
            for line in paddleq.summary(net).splitlines()[2:]}


# Networks


class Twice(Block):
    """A layer called twice, once through a plain list."""

    def __init__(self):
        super().__init__()
        self.square = nn.Linear(WIDTH, WIDTH, bias_attr=False)
        self.plain = [self.square]

    def forward(self, x):
        return super().forward(self.plain[0](F.relu(self.square(x))))


class OnlyNames(Block):
    def forward(self, *, hidden):
        return hidden + self.down(input=F.gelu(self.up(input=self.norm(hidden))))


class OnlyNamesNet(Net):
    def forward(self, *, input_ids, scale, twice=False):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(hidden=x)
        return {"hidden": x * scale * (2 if twice is True else 1), "extra": None}


class Recomputing(Net):
    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = recompute(layer, x)
        return x


class Nested(nn.Layer):
    """Layers in a list of lists of unequal length."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.stages = nn.LayerList([nn.LayerList([Block(), Block()]), nn.LayerList([Block()])])

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for stage in self.stages:
            for layer in stage:
                x = layer(x)
        return x


class Tied(Net):
    """A tied embedding, and two Linears that share a weight."""

    def __init__(self):
        super().__init__()
        self.layers[1].up.weight = self.layers[0].up.weight

    def forward(self, input_ids):
        return paddle.matmul(super().forward(input_ids), self.embed.weight, transpose_y=True)


class Adapter(nn.Layer):
    """A Linear with a low-rank adapter."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.weight.shape[0], 4, bias_attr=False)
        self.b = nn.Linear(4, base.weight.shape[1], bias_attr=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.b(self.a(x))


class AdaptedLinear(nn.Linear):
    """A low-rank adapter as a subclass that overrides forward."""

    def __init__(self):
        super().__init__(WIDTH, 2 * WIDTH)
        self.a, self.b = self.create_parameter([WIDTH, 4]), self.create_parameter([4, 2 * WIDTH])

    def forward(self, input):
        return F.linear(input, self.weight, self.bias) + input @ self.a @ self.b


class Weighing(nn.Layer):
    """Attention with keys and values of other sizes that also returns its weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiHeadAttention(WIDTH, 4, kdim=24, vdim=20, need_weights=True)

    def forward(self, x):
        y, weights = self.attention(x, x[..., :24], x[..., :20])
        return x + y + weights.mean()


def wrapped():
    block = Block()
    block.up, block.down = Adapter(block.up), Adapter(block.down)
    return block


def hook(block):
    block.up.register_forward_pre_hook(lambda layer, inputs: inputs[0] * 2.0)
    block.up.register_forward_post_hook(lambda layer, inputs, y: y + 1.0)
    block.register_forward_post_hook(lambda layer, inputs, y: y * 3.0)


def patch(block):
    original = block.up.forward
    block.up.forward = lambda x: 2.0 * original(x)


def adapt(block):
    block.up = AdaptedLinear()


def empty(block):
    """Zero columns and rows, dead features, constant weights."""
    weight = block.up.weight.numpy()
    weight[3] = weight[:, 5] = 0.0
    weight[:, 6] = 1e-30
    block.up.weight.set_value(weight)
    block.down.weight.set_value(paddle.full_like(block.down.weight, 0.25))
    block.norm.weight.set_value(paddle.concat([paddle.zeros([4]), paddle.ones([WIDTH - 4])]))


def transformer():
    ahead = paddle.triu(paddle.full([4, 4], -float("inf")), 1)
    return nn.Transformer(WIDTH, 4, 2, 2, 64, dropout=0.0), [
        {"src": paddle.randn([2, 5 + each, WIDTH]), "tgt": paddle.randn([2, 4, WIDTH]),
         "tgt_mask": ahead} for each in range(2)]


# name -> (network, batches), how many Linears are to be quantized
CASES = {
    "odd sizes": (lambda: (Net(lambda: Block(33, 7), 33), data()), 4),
    "one feature": (lambda: (Net(lambda: Block(inner=1)), data()), 4),
    "no bias": (lambda: (Net(lambda: Block(bias=False)), data()), 4),
    "one token": (lambda: (Net(), [batch[:1, :1] for batch in data()]), 4),
    "a layer twice": (lambda: (Net(Twice), data()), 6),
    "only keywords": (lambda: (OnlyNamesNet(OnlyNames), [
        {"input_ids": x, "scale": 2.0, "twice": True} for x in data()]), 4),
    "recompute": (lambda: (Recomputing(), data()), 4),
    "lists in a list": (lambda: (Nested(), data()), 6),
    "tied weights": (lambda: (Tied(), data()), 4),
    "adapters": (lambda: (Net(wrapped), data()), 12),
    "hooks": (lambda: (changed(hook), data()), 4),
    "zeros": (lambda: (changed(empty), data()), 4),
    "float64": (lambda: (Net().to(dtype="float64"), data()), 4),
    "DataParallel": (lambda: (paddle.DataParallel(Net()), data()), 4),
    "attention weights": (lambda: (nn.Sequential(Weighing(), Weighing()),
                                   [paddle.randn([2, 5, WIDTH]) for _ in range(2)]), 8),
    "paddle.nn.Transformer": (transformer, 32),
    # and the layers that must stay float
    "a patched forward": (lambda: (changed(patch), data()), 3),
    "a subclass": (lambda: (changed(adapt), data()), 3),
    "weight_norm": (lambda: (changed(lambda b: nn.utils.weight_norm(b.up)), data()), 3),
    "spectral_norm": (lambda: (changed(lambda b: nn.utils.spectral_norm(b.up)), data()), 3),
}


@pytest.mark.parametrize("activations", [False, True], ids=["W8", "W8A8"])
@pytest.mark.parametrize("door", [by_amct, by_ptq])
@pytest.mark.parametrize("name", CASES)
def test_quantized_network_is_close_to_the_float_network(name, door, activations):
    paddle.seed(0)
    make, count = CASES[name]
    net, batches = make()
    net.eval()
    with paddle.no_grad():
        expected = [call(net, batch) for batch in batches]
        quantized = door(net, batches, activations)
        assert len(integers(quantized)) == count
        for batch, y in zip(batches, expected):
            found = call(quantized, batch)
            assert found.dtype == y.dtype
            assert 0.0 < relative_error(found.numpy(), y.numpy()) < 0.03


@pytest.mark.parametrize("door", [by_amct, by_ptq])
@pytest.mark.parametrize("change, part", [
    (patch, "overrides forward"), (adapt, "overrides forward"),
    (lambda block: nn.utils.weight_norm(block.up), "weight_norm"),
])
def test_float_layers_are_listed_with_a_reason(door, change, part, capsys):
    net = door(changed(change), data())
    assert part in why(net)["layers.0.up"]
    assert why(net)["embed"] == why(net)["layers.1.norm"] == "only Linear is quantized"
    lines = PTQ().summary(net).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")] == ["layers.0.up", "NA"]
    assert capsys.readouterr().out.splitlines() == lines


def test_checkpoint_does_not_replace_a_hooked_weight(tmp_path):
    paddleq.save_checkpoint(by_ptq(Net(), data()), tmp_path / "net")
    net = changed(lambda block: nn.utils.weight_norm(block.up))
    with pytest.raises(ModelError, match="weight_norm.*remove that first"):
        paddleq.load_checkpoint(net, tmp_path / "net")
    assert not integers(net)


# Values passed between decoder layers


@dataclass
class Output:
    hidden: Any


class GivesObject(Block):
    def forward(self, x, more=0.0):
        return Output(x + self.inside(x) + more)


class GivesNothing(Block):
    def forward(self, x, more=0.0):
        x.set_value(x + self.inside(x) + more)


class KeepsIt(Block):
    def forward(self, x, more=0.0):
        self.kept = x + self.inside(x) + more


class Plain(Block):
    def forward(self, x, more=0.0):
        return x + self.inside(x) + more


TAKE = {Plain: lambda layer, y, x: y, GivesObject: lambda layer, y, x: y.hidden,
        GivesNothing: lambda layer, y, x: x, KeepsIt: lambda layer, y, x: layer.kept}


class Skipping(Net):
    """The third and the fourth layer use the output of the first."""

    def __init__(self, block):
        super().__init__(block, depth=4)
        self.take = TAKE[block]

    def forward(self, input_ids):
        x, given = self.embed(input_ids), []
        for number, layer in enumerate(self.layers):
            x = x.clone()
            x = self.take(layer, layer(x, *given[:1]) if number > 1 else layer(x), x)
            given.append(x.clone())
        return x


@pytest.mark.parametrize("block", [GivesObject, GivesNothing, KeepsIt])
def test_layers_with_non_tensor_outputs_are_calibrated(block, caplog):
    paddle.seed(0)
    networks, batches = [Skipping(block), Skipping(Plain)], data()
    networks[1].set_state_dict(networks[0].state_dict())
    with caplog.at_level(logging.INFO, "paddleq"):
        found, expected = (by_ptq(net, batches, True) for net in networks)
    np.testing.assert_array_equal(found(batches[0]).numpy(), expected(batches[0]).numpy())
    assert any("layers.0 returns" in record.getMessage() for record in caplog.records)


# Batches


class Masked(Net):
    def forward(self, input_ids, mask=None, cache=None):
        x = self.embed(input_ids)
        x = x if mask is None else x * mask.unsqueeze(-1)
        x = x if cache is None else x + cache.k
        for layer in self.layers:
            x = layer(x)
        return x


Cache = collections.namedtuple("Cache", "k v")


def with_mask(x):
    return {"input_ids": x, "mask": (paddle.arange(x.shape[1]) < 3).astype("float32").expand(
        x.shape)}


def scales(make):
    """Return the first norm's weight, smoothed by calibration on batches of ``make``."""
    paddle.seed(0)
    net = Masked()
    return by_ptq(net, [make(x) for x in data()], True).layers[0].norm.weight.numpy()


@pytest.mark.parametrize("make", [
    lambda x: collections.UserDict(with_mask(x)),
    lambda x: {**with_mask(x), "mask": with_mask(x)["mask"].numpy()},
    lambda x: {**with_mask(x), "cache": Cache(np.zeros(1, "float32"), None)},
], ids=["a mapping", "an array", "a named tuple"])
def test_batch_types(make):
    masked = scales(with_mask)
    np.testing.assert_array_equal(scales(make), masked)
    assert np.abs(scales(lambda x: x) - masked).max() > 1e-3


@pytest.mark.parametrize("make, warned", [
    (lambda x: (x, with_mask(x)["mask"]), "argument 'mask' as well, make each batch a dict"),
    (lambda x: [x], None), (with_mask, None),
])
def test_missing_batch_argument_is_named_in_a_warning(make, warned, caplog):
    with caplog.at_level(logging.WARNING, "paddleq"):
        scales(make)
    assert [warned in record.getMessage() for record in caplog.records] == [True] * bool(warned)


# Invalid order of calls


@pytest.mark.parametrize("batches", [0, 2], ids=["before", "after its batches"])
def test_calibrating_network_is_not_saved(batches, tmp_path):
    net = Net()
    weights = {"type": "int8", "symmetric": True, "strategy": "tensor"}
    paddleq.amct.quantize(net, {"batch_num": 2, "quant_cfg": {"weights": weights},
                           "algorithm": "minmax", "skip_layers": "up"})
    for batch in data(batches):
        net(batch)
    for write in (lambda: paddleq.save_checkpoint(net, tmp_path / "net"),
                  lambda: paddleq.save_quantized_model(net, tmp_path / "net")):
        with pytest.raises(CalibrationError, match=r"2 layers .*layers.0.down, layers.1.down.*"
                                                   r"call convert\(\) first"):
            write()
    assert not list(tmp_path.iterdir())


def test_state_of_an_unknown_run_is_not_resumed(tmp_path):
    PTQ(W8A8).apply(Net(), datasets=data(), resume_dir=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(FormatError, match="holds layer-0000.json, .*no run.json"):
        PTQ(W8A8).apply(Net(), datasets=data(), resume_dir=tmp_path)


class Casting(Block):
    def inside(self, x):
        return self.down(F.gelu(self.up(self.norm(x))).astype(self.down.weight.dtype))


@pytest.mark.parametrize("door", [by_amct, by_ptq])
def test_layer_whose_weight_gives_the_dtype_of_a_cast_stays_float(door):
    net = door(Net(Casting), data())
    assert [type(layer).__name__ for layer in (net.layers[0].up, net.layers[0].down)] == [
        "IntegerLinear", "Linear"]
    assert bool(paddle.isfinite(net(data()[0])).all())


def test_cast_to_the_dtype_of_an_integer_weight_is_an_error():
    net = PTQ(PTQConfig(mode="deploy")).apply(Net(Casting), StackHelper())
    with pytest.raises(ConfigTypeError, match="input must be a tensor of floats, but is one of "
                                              "int8.*weight.dtype"):
        net(data()[0])


def test_partially_quantized_network_is_rejected():
    net = changed(lambda block: None)
    net.layers[1].norm.bias.set_value(paddle.full([WIDTH], float("nan")))
    for error, part in ((CalibrationError, "layers.1.up .batch 0 of"),
                        (ModelError, "layers.0.up.*already quantized.*fresh copy")):
        with pytest.raises(error, match=part):
            PTQ(W8A8).apply(net, datasets=data())


def test_parts_of_a_model_can_be_quantized_separately():
    paddle.seed(0)
    net, (batch, *_) = Net(), data()
    expected = net(batch)
    for number, layer in enumerate(net.layers):
        weights = {"type": "int8", "symmetric": True, "strategy": ("tensor", "channel")[number]}
        paddleq.amct.quantize(layer, {"batch_num": 1, "quant_cfg": {"weights": weights},
                                 "algorithm": ("minmax", "gptq")[number]})
    net(batch)
    for layer in net.layers:
        paddleq.amct.convert(layer)
    kinds = [net.layers[number].up.quant_type for number in range(2)]
    assert kinds == ["W8-per_tensor", "GPTQ-W8-per_channel"]
    assert relative_error(net(batch).numpy(), expected.numpy()) < 0.02


# Afterwards


@pytest.mark.parametrize("config", [W8A8, {"weight_quant_dtype": "int4"}])
def test_state_dict_loads_into_a_network_of_equal_structure(config, tmp_path):
    first, second = (PTQ(config).apply(Net(), datasets=data()) for _ in range(2))
    path = str(tmp_path / "state.pdparams")
    paddle.save(first.state_dict(), path)
    missing, unexpected = second.set_state_dict(paddle.load(path))
    assert not missing and not unexpected
    batch = data()[0]
    np.testing.assert_array_equal(second(batch).numpy(), first(batch).numpy())
    np.testing.assert_array_equal(copy.deepcopy(first)(batch).numpy(), first(batch).numpy())


def test_training_does_not_update_integers():
    net = by_ptq(Net(), data())
    net.train()
    held = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    optimizer = paddle.optimizer.SGD(1.0, parameters=net.parameters())
    net(data()[0]).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items()
             if not np.array_equal(value.numpy(), held[name])}
    # Everything float: embeddings, norms, the biases of integer layers. No integer, no scale.
    assert moved == {name for name, _ in net.named_parameters()}
    assert not any(name.endswith(("weight_scale", "up.weight", "down.weight")) for name in moved)


@pytest.mark.parametrize("bits", [8, 4])
def test_flops_equal_those_of_a_linear(bits):
    linear = nn.Linear(6, 4)
    layer = IntegerLinear(6, 4, paddleq.QuantSpec(bits))
    expected, found = (paddle.flops(nn.Sequential(each), [3, 6]) for each in (linear, layer))
    assert found == expected > 0


def test_statistics_of_a_single_vector_equal_one_token():
    statistics = ChannelStats({"abs_max"})
    statistics.update(paddle.to_tensor([1.0, -2.0]))
    assert statistics.tokens == 1 and statistics.abs_max.tolist() == [1.0, 2.0]
