"""Scopes: layers by name, regular expression and class, and the rules that use them."""

import pytest
from paddle import nn
from paddle.vision.models import resnet18

import paddleq
from paddleq.config import LayerConfig, QuantConfig, Scope
from paddleq.engine.select import SkipKind, select
from paddleq.errors import ConfigError, ConfigTypeError
from paddleq.nn.layer_types import known_classes


class Block(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv1, self.fc = nn.Conv2D(1, 1, 1), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.conv1(x))


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv1, self.block, self.block1 = nn.Conv2D(1, 1, 1), Block(), Block()

    def forward(self, x):
        return self.block1(self.block(self.conv1(x)))


def left_float(net):
    return [row.name for row in paddleq.engine.summary_rows(net)
            if row.done == "left" and row.type in ("Conv2D", "Linear")]


@pytest.mark.parametrize("method", [paddleq.QAT, paddleq.PTQ])
def test_skip_with_a_layer_name_skips_only_that_layer(method):
    """Every residual block of a ResNet has a ``conv1`` too."""
    assert left_float(method().quantize(resnet18(), skip=["conv1"])) == ["conv1"]


@pytest.mark.parametrize("skip, expected", [
    ("conv1", ["conv1"]),
    ("block", ["block.conv1", "block.fc"]),
    (["block1.fc", "conv1"], ["conv1", "block1.fc"]),
    (r"conv1$", ["conv1", "block.conv1", "block1.conv1"]),
    (r"^block", ["block.conv1", "block.fc", "block1.conv1", "block1.fc"]),
    (r"^(?!block)", ["conv1"]),
    (nn.Linear, ["block.fc", "block1.fc"]),
    (Block, ["block.conv1", "block.fc", "block1.conv1", "block1.fc"]),
    (["block.fc", r"1\.conv", nn.Linear], ["block.fc", "block1.conv1", "block1.fc"]),
])
def test_skip_entries(skip, expected):
    assert left_float(paddleq.QAT().quantize(Net(), skip=skip)) == expected


class Shared(nn.Layer):
    """Layers with two names, of which ``named_sublayers`` has the first."""

    def __init__(self):
        super().__init__()
        self.head, self.headless, self.head_2 = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.tied = self.head
        self.tied_block = nn.LayerList([self.head_2])
        self.tied_2 = nn.Linear(2, 2)


@pytest.mark.parametrize("skip, expected", [
    ("tied", ["head"]), ("tied_block", ["head_2"]), ("tied_block.0", ["head_2"]),
    ("^tied", ["head", "head_2", "tied_2"]),
])
def test_skip_finds_a_shared_layer_by_each_of_its_names_and_nothing_else(skip, expected):
    assert left_float(paddleq.QAT().quantize(Shared(), skip=skip)) == expected


@pytest.mark.parametrize("scope, nearest", [
    (Scope(names=["conv2"]), "conv1"), (Scope(patterns=["blok"]), "block"),
    (Scope(types=[nn.Conv3D]), "Conv3D"),
])
def test_entry_that_matches_nothing_names_the_nearest(scope, nearest):
    with pytest.raises(ConfigError,
                       match=f"matches no layer.*{nearest}|{nearest} matches no layer"):
        scope.find(Net())


@pytest.mark.parametrize("arguments, error", [
    ({"names": "conv1"}, ConfigTypeError), ({"names": [3]}, ConfigTypeError),
    ({"patterns": ["("]}, ConfigError), ({"types": ["Linear"]}, ConfigTypeError),
])
def test_scope_refuses_other_entries(arguments, error):
    with pytest.raises(error):
        Scope(**arguments)


def test_select_returns_a_configuration_or_a_structured_reason_for_every_layer():
    net = Net()
    net.block1.skip_quant = True
    config, general, special = QuantConfig(), LayerConfig(), LayerConfig()
    for cls in known_classes().values():
        config.add_type(cls, general)
    config.add_name("block", special)
    config.add(Scope.parse("block.fc", net), None)
    found = select(net, config)
    assert {name: each.config for name, each in found.selected.items()} == {
        "conv1": general, "block.conv1": special}
    assert found.selected["block.conv1"].config is special
    assert {name: (reason.kind, reason.detail) for name, reason in found.skipped.items()} == {
        "": (SkipKind.NO_RULE, ""),
        "block": (SkipKind.NOT_REGISTERED, ""),
        "block.fc": (SkipKind.EXCLUDED, "name 'block.fc'"),
        "block1": (SkipKind.SKIP_ATTRIBUTE, ""),
        "block1.conv1": (SkipKind.SKIP_ATTRIBUTE, ""),
        "block1.fc": (SkipKind.SKIP_ATTRIBUTE, "")}
