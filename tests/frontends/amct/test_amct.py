"""quantize(model, config) and convert(model) of a trained decoder, for each valid combination
against float64 formulas. test_amct_config tests the configuration."""

import copy
import gc
import logging
import weakref

import numpy as np
import paddle
import pytest
from paddle import nn
from scheme_reference import Scheme
from small_transformer import arrays, batches, decoder, in_numpy, plain

import paddleq
from paddleq import PerGroup
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ModelError,
    NonFiniteError,
)
from paddleq.frontends.amct_config import AmctConfig
from paddleq.nn import IntegerLinear

LINEARS = 2 * 6 + 2


def weights(kind="int8", symmetric=True, strategy="channel", **more):
    return {"type": kind, "symmetric": symmetric, "strategy": strategy, **more}


def config(algorithm="minmax", batch_num=2, weight=None, inputs=None, **more):
    quant = {"weights": weight or weights()}
    if inputs is not None:
        quant["inputs"] = inputs
    return {"batch_num": batch_num, "quant_cfg": quant, "algorithm": algorithm, **more}


GROUP = weights("int4", True, "group", group_size=64)
TENSOR, TOKEN = weights(strategy="tensor"), weights(strategy="token")


def observed(given, model=None, count=2):
    """Return a quantized model after ``count`` calibration batches."""
    model = decoder() if model is None else model
    assert paddleq.amct.quantize(model, given) is None
    for batch in batches(count):
        model(batch)
    return model


def converted(given, model=None):
    model = observed(given, model, given["batch_num"])
    assert paddleq.amct.convert(model) is None
    return model


def linears(model, kind=IntegerLinear):
    return {name: layer for name, layer in model.named_sublayers() if isinstance(layer, kind)}


# Outputs against the formulas


class Reference:
    """The quantized decoder in float64: each Linear is calibrated in the float model."""

    def __init__(self, model, given):
        config = AmctConfig.parse(given)
        self.state, seen = arrays(model), {}

        def observe(name, x, weight, bias):
            seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            return plain(name, x, weight, bias)

        for batch in batches(config.batch_num):
            in_numpy(self.state, batch.numpy().astype("float64"), observe)
        policy = config.layer_config()
        self.schemes = {
            name: Scheme([self.state[f"{name}.weight"]], np.concatenate(x), policy)
            for name, x in seen.items()
            if not any(part in name for part in config.skip_layers)}

    def __call__(self, x):
        return in_numpy(self.state, x.numpy().astype("float64"), self.linear)

    def linear(self, name, x, weight, bias):
        if name not in self.schemes:
            return plain(name, x, weight, bias)
        return self.schemes[name].linear(0, x, bias)


def formulas():
    for symmetric in (True, False):
        for strategy in ("tensor", "channel", "group"):
            size = {"group_size": 64} if strategy == "group" else {}
            for kind in ("int8", "int4"):
                for algorithm in ("minmax", "awq", "gptq"):
                    yield config(algorithm, 2, weights(kind, symmetric, strategy, **size))
            if strategy == "group":
                continue
            for algorithm in ("minmax", "smoothquant"):
                for inputs in (TENSOR, weights(symmetric=False, strategy="tensor"), TOKEN):
                    yield config(algorithm, weight=weights("int8", symmetric, strategy),
                                 inputs=inputs)
    yield config({"smoothquant": {"smooth_strength": 0.8}}, inputs=TOKEN)
    yield config({"awq": {"grids_num": 5}}, 2, weights("int4"))


def name_of(given):
    parsed = AmctConfig.parse(given)
    def spec_name(spec):
        return f"{spec.bits}{'' if spec.symmetric else 'z'}{str(spec.granularity)[4:7]}"
    inputs = "" if parsed.activation is None else f"-A{spec_name(parsed.activation)}"
    return f"{parsed.algorithm}-W{spec_name(parsed.weight)}{inputs}"


def without_stem(given):
    """The stem has 8 inputs only: too few for groups."""
    return {**given, "skip_layers": "stem"} if "group_size" in given["quant_cfg"][
        "weights"] else given


@pytest.mark.parametrize("given", list(formulas()), ids=name_of)
def test_quantized_model_matches_float64_reference(given):
    given = without_stem(given)
    model = decoder(layers=1)
    reference = Reference(model, given)
    model = converted(given, model)
    x = batches(2, held_out=True)[1]
    ran = {}
    for name, layer in linears(model).items():
        layer.register_forward_post_hook(
            lambda layer, inputs, y, name=name: ran.update({name: (inputs[0].numpy(), y.numpy())}))
    found = model(x).numpy()
    assert len(ran) == 8 - ("skip_layers" in given)
    for name, (x_of, y) in ran.items():
        weight, bias = (reference.state[f"{name}.{part}"] for part in ("weight", "bias"))
        scheme, layer = reference.schemes[name], linears(model)[name]
        held = layer.dequantized_weight().numpy().astype("float64")
        if not scheme.exact:
            # A value in the middle of two, and all that follows from it goes another way.
            continue
        # Values on rounding borders may be rounded differently in float32 and float64:
        # few weights, by one step; few inputs, whose token's row moves. Nothing else differs.
        assert (~np.isclose(held, scheme.held[0], 1e-4, 1e-7)).sum() <= 3, name
        expected = scheme.activation(x_of.astype("float64")) @ held + bias
        apart = ~np.isclose(y, expected, 1e-3, 1e-4 * np.abs(y).max()).all(-1)
        assert apart.sum() <= 3, name
        assert np.abs(y - plain(name, x_of, weight, bias)).max() > 1e-3 * np.abs(y).max()
    exact, expected = in_numpy(reference.state, x.numpy().astype("float64"), plain), reference(x)
    error, right = (np.linalg.norm(each - exact) for each in (found, expected))
    assert abs(error - right) <= 0.25 * right


# Which layers


class Doubling(nn.Linear):
    """A subclass that overrides forward."""

    def forward(self, input):
        return 2.0 * super().forward(input)


class Named(nn.Linear):
    """A subclass that keeps Linear's forward."""


def test_skip_layers_matches_parts_of_names():
    model = converted(config(skip_layers=["attention", "head"]))
    assert sorted(linears(model)) == sorted(
        ["stem", *(f"layers.{i}.{name}" for i in range(2) for name in ("up", "down"))])
    # Iterated by letter, the str would skip every layer.
    assert len(linears(converted(config(skip_layers="layers.0.attention")))) == LINEARS - 4


def test_skip_layers_warns_of_an_entry_without_match(caplog):
    with caplog.at_level(logging.WARNING, "paddleq"):
        paddleq.amct.quantize(decoder(), config(skip_layers=["lm_head", "head"]))
    assert [record.getMessage() for record in caplog.records] == [
        "skip_layers has 'lm_head', which no layer's name contains"]


def test_summary_shows_the_reasons_for_float_layers():
    patched = nn.Linear(4, 4)
    patched.forward = lambda x: x
    model = nn.Sequential(nn.Linear(4, 4), Named(4, 4), Doubling(4, 4), patched, nn.ReLU(),
                          nn.Linear(4, 4), nn.Conv1D(4, 4, 1))
    paddleq.amct.quantize(model, config(skip_layers="5"))
    why = {line.split("|")[0].strip(): line.split("|")[-1].strip()
           for line in paddleq.summary(model).splitlines()[2:]}
    for name, part in (("2", "overrides forward"), ("3", "overrides forward"),
                       ("4", "only Linear is quantized"), ("5", "excluded by skip_layers '5'"),
                       ("6", "only Linear is quantized"), ("0", "calibrating: 0 of 2 batches")):
        assert part in why[name], why
    assert "calibrating: 0 of 2 batches" in repr(model[1])


@pytest.mark.parametrize("model, part", [
    (nn.Sequential(nn.ReLU()), r"ReLU \(only Linear is quantized\)"),
    (nn.Sequential(Doubling(2, 2)), r"Doubling \(its class overrides forward"),
])
def test_model_error_nothing_to_quantize(model, part):
    with pytest.raises(ModelError, match=f"model has no layer to quantize.*{part}"):
        paddleq.amct.quantize(model, config())


@pytest.mark.parametrize("model", [None, 3, "model", nn.Linear, [nn.Linear(2, 2)]])
def test_type_error_model(model):
    for call in (lambda: paddleq.amct.quantize(model, config()),
                 lambda: paddleq.amct.convert(model)):
        with pytest.raises(ConfigTypeError, match="model must be a paddle.nn.Layer"):
            call()


def test_model_error_quantized_already():
    for model in (observed(config(), count=0), converted(config()),
                  paddleq.QAT().quantize(decoder())):
        with pytest.raises(ModelError, match="already quantized"):
            paddleq.amct.quantize(model, config())
        with pytest.raises(ModelError, match="already quantized"):
            paddleq.QAT().quantize(model)


def test_invalid_config_does_not_change_the_model():
    model = decoder()
    before = model(batches(1)[0]).numpy()
    with pytest.raises(ConfigError, match="less than K = 8 of layer 'stem'.*skip_layers"):
        paddleq.amct.quantize(model, config(weight=GROUP))
    with pytest.raises(ConfigTypeError):
        paddleq.amct.quantize(model, None)
    assert linears(model, nn.Linear) and not linears(model)
    assert not model._forward_pre_hooks and not model._forward_post_hooks
    np.testing.assert_array_equal(model(batches(1)[0]).numpy(), before)
    assert {type(layer) for layer in linears(model, nn.Linear).values()} == {nn.Linear}


def test_last_group_may_be_smaller():
    layer = linears(converted(config(weight=GROUP, skip_layers="stem")))["head"]
    assert isinstance(layer.weight_spec.granularity, PerGroup)
    assert list(layer.weight_scale.shape) == [2, 10]  # 96 inputs: 64 and 32


# Batches


@pytest.mark.parametrize("count", [1, 3])
def test_model_is_float_during_calibration_and_quantized_afterwards(count):
    plain_model, x = decoder(), batches(count + 1)
    model = decoder()
    paddleq.amct.quantize(model, config("smoothquant", count, inputs=TENSOR))
    for batch in x[:count]:
        np.testing.assert_array_equal(model(batch).numpy(), plain_model(batch).numpy())
    names = list(plain_model.state_dict())
    assert list(model.state_dict()) == names
    simulated = model(x[-1]).numpy()
    assert not np.allclose(simulated, plain_model(x[-1]).numpy(), atol=1e-4)
    assert "A8-per_tensor" in repr(model.head)
    model(10.0 * x[0])  # observes no longer
    assert paddleq.amct.convert(model) is None
    np.testing.assert_array_equal(model(x[-1]).numpy(), simulated)
    assert not linears(model, nn.Linear) and len(linears(model)) == LINEARS
    assert not model._forward_pre_hooks and not model._forward_post_hooks


def test_calibration_error_reports_the_number_of_batches():
    model = observed(config(batch_num=3), count=2)
    with pytest.raises(CalibrationError, match=(
            r"needs 3 batches, but 14 of 14 layers saw fewer: stem \(2\), .*head \(2\)")):
        paddleq.amct.convert(model)
    assert not linears(model)
    model(batches(1)[0])
    paddleq.amct.convert(model)
    assert len(linears(model)) == LINEARS


# An expert without tokens; Paddle 2.6's Linear raises.
TAKES_EMPTY = not paddle.__version__.startswith("2.")


class Branches(nn.Layer):
    """One layer that every batch calls twice, one that some call, one that none calls."""

    def __init__(self):
        super().__init__()
        self.twice, self.some, self.none = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, tokens=0, fail=False):
        x = self.twice(self.twice(input=x))
        if fail:
            raise KeyError("the model's own")
        if tokens or TAKES_EMPTY:
            x = paddle.concat([x, self.some(x[:tokens])])
        return x


def saw(model):
    """Map layers to numbers of batches, read from the error of convert()."""
    with pytest.raises(CalibrationError) as found:
        paddleq.amct.convert(model)
    listed = str(found.value).split("fewer: ")[1].split(";")[0]
    return {part.split(" (")[0]: int(part.split("(")[1][:-1]) for part in listed.split(", ")}


def test_convert_leaves_a_layer_float_that_no_batch_reached(caplog):
    model = Branches()
    paddleq.amct.quantize(model, config(batch_num=2))
    for _ in range(2):
        model(paddle.rand([3, 4]), tokens=2)
    paddleq.amct.convert(model)
    assert set(linears(model)) == {"twice", "some"} and type(model.none) is nn.Linear
    assert "no data reached them" in caplog.text and "none" in caplog.text


def test_forward_counts_as_one_batch_for_each_reached_layer():
    model = Branches()
    paddleq.amct.quantize(model, config(batch_num=9))
    model(paddle.rand([3, 4]))  # without a token, `some` sees nothing
    model(paddle.rand([3, 4]), tokens=1)
    assert saw(model) == {"twice": 2, "some": 1, "none": 0}
    with pytest.raises(KeyError):
        model(paddle.rand([3, 4]), fail=True)  # does not count
    model(paddle.rand([3, 4]))
    assert saw(model) == {"twice": 3, "some": 1, "none": 0}
    model.none(paddle.rand([3, 4]))  # by itself, a call is a batch
    model.none(paddle.rand([3, 4]))
    assert saw(model) == {"twice": 3, "some": 1, "none": 2}


def test_a_layer_that_is_called_twice_observes_both_calls():
    model = Branches()
    x = paddle.rand([3, 4])
    inputs = np.concatenate([x.numpy(), model.twice(x).numpy()])
    paddleq.amct.quantize(model, config(batch_num=1, skip_layers=["some", "none"], inputs=TENSOR))
    model(x)
    paddleq.amct.convert(model)
    np.testing.assert_allclose(model.twice.activation_scale.item(),
                               np.abs(inputs).max() / 127, rtol=1e-6)


def test_non_finite_error_names_layer_and_batch():
    model = observed(config(), count=1)
    with paddle.no_grad():
        model.layers[1].norm1.weight[3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layer: layers.1.attention.q, batch: 1"):
        model(batches(1)[0])


def test_model_error_of_a_weight_names_the_layer():
    model = decoder()
    with paddle.no_grad():
        model.head.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"NaN or infinity; layer: head"):
        observed(config(), model)


def test_model_error_convert_without_quantize():
    for model in (decoder(), converted(config())):
        with pytest.raises(ModelError, match=r"not being calibrated; call quantize\(\)"):
            paddleq.amct.convert(model)


def test_copies_calibrate_independently():
    model = observed(config(batch_num=2), count=1)
    other = copy.deepcopy(model)
    other(batches(1)[0])
    paddleq.amct.convert(other)
    assert saw(model) == dict.fromkeys(linears(model, nn.Linear), 1)
    model(batches(1)[0])
    paddleq.amct.convert(model)
    x = batches(3)[2]
    np.testing.assert_array_equal(model(x).numpy(), other(x).numpy())


def test_layer_with_two_names_is_replaced_at_both():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    paddleq.amct.quantize(model, config(batch_num=1))
    model(paddle.rand([2, 4]))
    paddleq.amct.convert(model)
    assert isinstance(model[0], IntegerLinear) and model[0] is model[2]


def test_model_can_be_a_linear():
    model = nn.Linear(4, 2)
    paddleq.amct.quantize(model, config(batch_num=1))
    model(paddle.rand([3, 4]))
    paddleq.amct.convert(model)
    assert isinstance(model, IntegerLinear)


def test_convert_releases_float_weights():
    model = observed(config())
    left = [weakref.ref(layer.weight) for layer in linears(model, nn.Linear).values()]
    gc.collect()
    gc.disable()
    try:
        paddleq.amct.convert(model)
        assert [ref() for ref in left] == [None] * LINEARS
    finally:
        gc.enable()


def test_calibration_is_not_traced(tmp_path):
    model = observed(config(), count=1)
    with pytest.raises(Exception, match="being calibrated and cannot be traced"):
        paddle.jit.save(model, str(tmp_path / "net"),
                        input_spec=[paddle.static.InputSpec([None, 8, 8], "float32")])


def test_summary_lists_deployed_types():
    rows = {line.split("|")[0].strip(): [cell.strip() for cell in line.split("|")[1:]]
            for line in paddleq.summary(converted(config(
                inputs=TOKEN, skip_layers="head"))).splitlines()[2:]}
    assert rows["layers.0.up"] == [
        "IntegerLinear", "deployed", "int8 per_channel(1)", "int8 per_token",
        "W8-per_channel-A8-per_token"]
    assert rows["head"] == ["Linear", "left", "", "", "excluded by skip_layers 'head'"]
