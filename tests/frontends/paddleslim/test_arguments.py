"""Arguments of the PaddleSlim front end: classes, instances, names and defaults."""

import inspect

import pytest
from paddle import nn

import paddleq
from paddleq import PTQ, QAT
from paddleq.config import QuantizerConfig
from paddleq.errors import ConfigError
from paddleq.frontends.paddleslim import (
    AbsmaxQuantizer,
    HistQuantizer,
    KLQuantizer,
    PerChannelAbsmaxQuantizer,
)
from paddleq.observers import AbsMaxObserver, HistogramObserver


class OwnObserver(AbsMaxObserver):
    """Observer class of the user."""


class MyQuantizer(AbsmaxQuantizer):
    def activation(self):
        return QuantizerConfig(OwnObserver)


class AnyArguments(HistQuantizer):
    def __init__(self, **arguments):
        super().__init__(**arguments)


class MyLinear(nn.Linear):
    pass


@pytest.mark.parametrize("given", [MyQuantizer, MyQuantizer(), MyQuantizer(quant_bits=8)],
                         ids=["class", "instance", "instance with arguments"])
def test_quantizer_subclass_is_accepted_as_class_and_as_instance(given):
    net = PTQ(given).quantize(nn.Sequential(nn.Linear(2, 2)))
    assert isinstance(net[0].activation_quantizer.observer, OwnObserver)


def test_quantizer_subclass_gets_the_keyword_arguments():
    assert PTQ(MyQuantizer, quant_bits=4).activation_quantizer.quant_bits == 4
    assert PTQ(AnyArguments, hist_percent=0.9).activation_quantizer.hist_percent == 0.9
    with pytest.raises(ConfigError, match="MyQuantizer does not know 'quantbits'"):
        PTQ(MyQuantizer, quantbits=4)


@pytest.mark.parametrize("base", [AbsmaxQuantizer, PerChannelAbsmaxQuantizer])
def test_weight_quantizer_subclass_is_accepted_as_class(base):
    own = type("Own", (base,), {})
    assert type(PTQ(weight_quantizer=own).weight_quantizer) is own
    assert type(PTQ(weight_quantizer=own(8)).weight_quantizer) is own


def test_subclass_of_a_registered_layer_is_accepted_by_class():
    """Its instances are quantized as layers of the registered class, so its class is valid too."""
    net = nn.Sequential(MyLinear(2, 2), nn.Linear(2, 2))
    QAT({"quantizable_layer_type": [MyLinear]}).quantize(net)
    assert [row.done for row in paddleq.engine.summary_rows(net)] == ["quantized", "left"]


def test_hist_percent_has_one_default():
    defaults = {call: inspect.signature(call).parameters["hist_percent"].default for call in (
        HistQuantizer, HistogramObserver, paddleq.quant_post_static)}
    assert set(defaults.values()) == {0.99999}, defaults


@pytest.mark.parametrize("quantizer", [KLQuantizer, HistQuantizer])
def test_bins_have_one_default(quantizer):
    observer = quantizer().activation().build().observer
    for name in ("bins", "upsample_bins"):
        defaults = {inspect.signature(call).parameters[name].default
                    for call in (quantizer, type(observer))}
        assert len(defaults) == 1, name
