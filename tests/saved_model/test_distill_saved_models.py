"""Distillation of saved models, and configurations of PaddleSlim's auto compression."""

import os

import numpy as np
import paddle
import pytest
from nets import SmallNet, save_float, warmed
from paddle import nn
from runtimes import paddle_inference, relative_error
from saved_models import PPOCR, ppocr, run

import paddleq
from paddleq import DistillLoss
from paddleq.errors import ConfigError, ConfigTypeError
from paddleq.frontends.paddleslim.act_config import AutoCompressionConfig
from paddleq.saved_model.files import locate


@pytest.fixture
def small(digits, prefix):
    """(float layer, prefix of its saved model, batches)."""
    data = digits.batches(32, 6)
    net = warmed(SmallNet(), data[0])
    with paddle.no_grad():  # so that folding changes the outputs of the convolutions
        net.bn1.weight.set_value(paddle.linspace(0.5, 2.0, 8))
    save_float(net, prefix, [1, 8, 8])
    return net, prefix, data


@pytest.mark.parametrize("quantization", [
    {"weight_bits": 4}, {"weight_bits": 4, "weight_quantize_type": "channel_wise_lsq"},
    {"weight_bits": 4, "use_pact": True}], ids=["lsq", "lsq of weights", "pact"])
def test_the_file_computes_what_was_trained(small, quantization, tmp_path, digits):
    net, prefix, data = small
    images = digits.test[0][:200]
    result = paddleq.distill(prefix, data, quantization, epochs=4, learning_rate=1e-3)
    paddleq.save_quantized_model(result.model, tmp_path / "int8")
    (simulated,) = run(result.model, [paddle.to_tensor(images)])
    (found,) = paddle_inference(str(tmp_path / "int8"), [images])
    assert relative_error(found, simulated) < 1e-6
    wanted = net(paddle.to_tensor(images)).numpy()
    start = paddleq.distill(prefix, data, quantization, train_iter=1, learning_rate=1e-12)
    (before,) = run(start.model, [paddle.to_tensor(images)])
    assert relative_error(simulated, wanted) < 0.8 * relative_error(before, wanted)


def test_a_saved_model_is_trained_as_its_source_layer(small, digits):
    net, prefix, data = small
    found, expected = (paddleq.distill(model, data, {"weight_bits": 4}, "l2", epochs=2).losses
                       for model in (prefix, net))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_recorded_tensors_are_those_of_the_source_layer(small, digits):
    net, prefix, _ = small
    model, x = paddleq.SavedModel(prefix), paddle.to_tensor(digits.test[0][:8])
    norms = [name for name, layer in model.named_sublayers()
             if isinstance(layer, nn.BatchNorm2D)]
    names = [model.bindings[name].target for name in norms]
    expected = []
    for layer in (net.bn1, net.bn2):
        layer.register_forward_post_hook(lambda _, __, output: expected.append(output.numpy()))
    with model.recording(names) as found:
        model(x)
    net(x)
    assert list(found) == names and set(names) <= set(model.tensor_names)
    for name, value in zip(names, expected):
        assert relative_error(found[name].numpy(), value) < 1e-6


def test_losses_of_named_tensors(small):
    _, prefix, data = small
    model = paddleq.SavedModel(prefix)
    first, second = (model.bindings[name].target for name, layer in model.named_sublayers()
                     if isinstance(layer, nn.BatchNorm2D))
    losses = [DistillLoss("relative_l2", [first], alpha=2.0), DistillLoss("cosine", [second]),
              DistillLoss("soft_label", temperature=2.0)]
    result = paddleq.distill(model, data, {"weight_bits": 3}, losses, epochs=6, learning_rate=1e-3)
    assert np.mean(result.losses[-6:]) < 0.8 * np.mean(result.losses[:6])


def test_a_tensor_that_folding_changes_is_refused(small):
    _, prefix, data = small
    model = paddleq.SavedModel(prefix)
    norm = next(name for name, layer in model.named_sublayers()
                if isinstance(layer, nn.BatchNorm2D))
    inner = model.bindings[norm].operator.input("X")
    loss = DistillLoss("l2", [inner])
    with pytest.raises(ConfigError, match=f"{inner}.*another tensor since operators are folded"):
        paddleq.distill(model, data, losses=loss)
    assert paddleq.distill(model, data, losses=loss, fuse=False, train_iter=1).steps == 1
    with pytest.raises(ConfigError, match=f"did you mean '{inner}'"):
        paddleq.distill(model, data, losses=DistillLoss("l2", [inner + "0"]))


def test_a_tensor_that_folding_removes_is_refused(prefix):
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2D(1, 4, 3), nn.Conv2D(4, 2, 3)

        def forward(self, x):
            return self.second(paddle.nn.functional.relu(self.first(x) * 2.0 + 0.5))

    net, data = Net(), [np.random.default_rng(0).normal(size=[4, 1, 8, 8]).astype("float32")]
    save_float(net, prefix, [1, 8, 8])
    model = paddleq.SavedModel(prefix)
    gone = next(name for name in model.tensor_names
                if name not in folded_names(prefix))
    loss = DistillLoss("l2", [gone])
    with pytest.raises(ConfigError, match=f"{gone}.*is not computed when multiplications"):
        paddleq.distill(model, data, losses=loss)
    assert paddleq.distill(model, data, losses=loss, fuse=False).steps == 1


def folded_names(prefix):
    model = paddleq.SavedModel(prefix)
    assert model.fold_affines().folded
    return model.tensor_names


def test_another_teacher(small, digits):
    _, prefix, data = small
    teacher = warmed(SmallNet(), data[0])
    result = paddleq.distill(prefix, data, None, "l2", teacher=teacher, epochs=4,
                             learning_rate=1e-2)
    assert np.mean(result.losses[-6:]) < 0.5 * np.mean(result.losses[:6])


def test_skipped_tensors_stay_float(small):
    _, prefix, data = small
    model = paddleq.SavedModel(prefix)
    weight = next(model.weight_names[name] for name, layer in model.named_sublayers()
                  if isinstance(layer, nn.Linear))
    result = paddleq.distill(model, data, skip=[weight], train_iter=1)
    quantized = {result.model.weight_names[name] for name in result.model.bindings
                 if type(getattr(result.model, name)).__name__.startswith("Quantized")}
    assert quantized and weight not in quantized
    with pytest.raises(ConfigError, match="fc"):
        paddleq.distill(model, data, skip=["fc"])


class Softmax(nn.Layer):
    """A confident classifier: probabilities below 1e-8."""

    def __init__(self, axis=-1):
        super().__init__()
        self.first, self.second, self.axis = nn.Linear(8, 16), nn.Linear(16, 6), axis

    def forward(self, x):
        logits = self.second(nn.functional.relu(self.first(x))) * 200.0
        return nn.functional.softmax(logits, axis=self.axis)


def test_divergence_of_probabilities_is_that_of_their_logits(prefix):
    paddle.seed(0)
    net = Softmax()
    data = [np.random.default_rng(0).normal(size=[32, 8]).astype("float32")]
    save_float(net, prefix, [8])
    model = paddleq.SavedModel(prefix)
    assert list(model.logits_names) == model.output_names
    arguments = {"quantization": {"weight_bits": 2}, "train_iter": 1, "learning_rate": 1e-12}
    values = []

    def keep(student):
        for each in (model, student):
            (name,) = each.logits_names.values()
            with each.recording([name]) as found:
                each(paddle.to_tensor(data[0]))
            values.append(found[name].numpy().astype("float64"))
        return 0.0

    for losses in (None, "soft_label"):
        values.clear()
        result = paddleq.distill(model, data, losses=losses, eval_callback=keep, **arguments)
        logs = [each - each.max(-1, keepdims=True) for each in values[:2]]
        logs = [each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in logs]
        expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
        assert expected.max() > -np.log(1e-8)  # what the smallest probability would limit
        np.testing.assert_allclose(result.losses[0], expected.mean(), rtol=1e-3)


def test_softmax_along_another_axis_has_no_logits(prefix):
    save_float(Softmax(axis=0), prefix, [8])
    assert paddleq.SavedModel(prefix).logits_names == {}


def dark_strokes(shape, seed):
    """Return pictures with lines of strokes. Where there is no text, the detector gives zeros."""
    random = np.random.RandomState(seed)
    pictures = np.full(shape, 1.5, "float32")
    for top in range(8, shape[2] - 12, 24):
        strokes = random.rand(12, shape[3] - 16) < 0.5
        pictures[:, :, top:top + 12, 8:-8] = np.where(strokes, -1.5, 1.5)
    return pictures


@pytest.mark.slow
@pytest.mark.parametrize("name", PPOCR)
def test_ppocr_models_are_trained(name, tmp_path):
    data = [paddle.to_tensor(dark_strokes(PPOCR[name][0], seed)) for seed in range(2)]
    loss = "soft_label" if "rec" in name else "relative_l2"
    result = paddleq.distill(ppocr(name), data, {"weight_bits": 4}, loss, epochs=4)
    assert np.mean(result.losses[-2:]) < np.mean(result.losses[:2])
    paddleq.save_quantized_model(result.model, tmp_path / "int8")
    (found,) = paddle_inference(str(tmp_path / "int8"), [data[0].numpy()])
    assert relative_error(found, run(result.model, [data[0]])[0]) < 1e-5


def act(**sections):
    return {"QuantAware": {"use_pact": True, "quantize_op_types": ["conv2d", "mul"]}, **sections}


def test_a_configuration_of_act(small):
    _, prefix, data = small
    model = paddleq.SavedModel(prefix)
    target = next(model.bindings[name].target for name, layer in model.named_sublayers()
                  if isinstance(layer, nn.BatchNorm2D))
    files = {key: os.path.basename(path) for key, path in zip(
        ("model_filename", "params_filename"), locate(prefix))}
    config = act(
        Global={"model_dir": os.path.dirname(prefix), "reader_config": "reader.yml", **files},
        Distillation={"alpha": [1.0, 0.5], "loss": ["l2", "soft_label"], "node": [[target], []]},
        TrainConfig={"train_iter": 6, "eval_iter": 3, "learning_rate": {
            "type": "CosineAnnealingDecay", "learning_rate": 1e-3, "T_max": 6},
            "optimizer_builder": {"optimizer": {"type": "Momentum"}, "weight_decay": 4e-5}})
    found = AutoCompressionConfig.parse(config)
    assert found.quantization["activation_quantize_type"] == "moving_average_abs_max"
    assert found.losses == [{"loss": "l2", "node": [target], "alpha": 1.0},
                            {"loss": "soft_label", "node": [], "alpha": 0.5}]
    result = paddleq.distill(paddleq.SavedModel(*found.model), data, found.quantization,
                             found.losses, eval_data=data, **found.train)
    assert [step for step, _ in result.metrics] == [0, 3, 6]


@pytest.mark.parametrize("config, message", [
    (act(QuantPost={}), "QuantPost of ACT is not supported: use paddleq.quant_post_static"),
    (act(ChannelPrune={"pruned_ratio": 0.3}), "ChannelPrune of ACT is not supported"),
    (act(MultiTeacherDistillation={}), "MultiTeacherDistillation"),
    (act(Distill={}), "does not know 'Distill'.*did you mean 'Distillation'"),
    ({"TrainConfig": {"learning_rate": 0.1}}, "must have the section QuantAware"),
    (act(Quantization={}), "one of QuantAware and Quantization"),
    (act(Distillation={"distill_loss": "l2"}), "does not know 'distill_loss'"),
    (act(Distillation={"loss": ["l2", "l1"], "node": [["a"], ["b"], ["c"]]}),
     "loss has 2 entries where the longest has 3"),
    (act(Distillation={"teacher_model_filename": "x"}), "given without teacher_model_dir"),
    (act(TrainConfig={"epochs": 3}), "TrainConfig must have learning_rate"),
    (act(TrainConfig={"learning_rate": 0.1, "amp_config": {"use_pure_fp16": True}}),
     "amp_config is for PaddleSlim's static graphs"),
    (act(TrainConfig={"learning_rate": 0.1, "optimizer": "SGD"}),
     "does not know 'optimizer'.*did you mean 'optimizer_builder'"),
])
def test_errors_of_configurations_of_act(config, message):
    with pytest.raises(ConfigError, match=message):
        AutoCompressionConfig.parse(config)


def test_types_of_configurations_of_act():
    for config in (act(Distillation=[1]), act(Distillation={"node": "a"}), 3,
                   act(Distillation={"node": ["a", 3]}), act(Global={"model_dir": ["a", "b"]})):
        with pytest.raises(ConfigTypeError):
            AutoCompressionConfig.parse(config)


def test_pairs_of_nodes():
    nodes = ["teacher_a", "b", "teacher_c", "d"]
    found = AutoCompressionConfig.parse(act(Distillation={"node": nodes}))
    assert found.losses == [{"loss": "l2", "node": [["a", "b"], ["c", "d"]], "alpha": 1.0}]
