"""Losses, optimizers and the training loop of distillation."""

import itertools
import random

import numpy as np
import paddle
import pytest
from nets import SmallNet, warmed
from paddle import nn

import paddleq
from paddleq import DistillLoss
from paddleq.algorithms.distillation import DISTILL_LOSSES, register_distill_loss
from paddleq.algorithms.distillation.held_out import hold_out
from paddleq.algorithms.distillation.optimization import automatic_rate, relative_rates
from paddleq.engine import quantized_layers
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ModelError,
    NonFiniteError,
)


def softmax(x):
    exponents = np.exp(x - x.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def divergence(student, teacher):
    return (teacher * (np.log(teacher) - np.log(student))).sum(-1).mean()


# Name -> the loss of float64 arrays student s and teacher t [batch, ...], temperature 3.
EXPECTED = {
    "l2": lambda s, t: ((s - t) ** 2).mean(),
    "relative_l2": lambda s, t: ((s - t) ** 2).sum() / (t ** 2).sum(),
    "l1": lambda s, t: np.abs(s - t).mean(),
    "cosine": lambda s, t: np.mean([1 - a.ravel() @ b.ravel() / np.sqrt(
        (a.ravel() @ a.ravel()) * (b.ravel() @ b.ravel())) for a, b in zip(s, t)]),
    "soft_label": lambda s, t: 9 * divergence(softmax(s / 3), softmax(t / 3)),
}
EXPECTED.update(mse=EXPECTED["l2"], kl=EXPECTED["soft_label"])


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("shape", [[5, 7], [2, 3, 4, 6], [1, 9]])
def test_losses(name, shape):
    assert set(EXPECTED) == set(DISTILL_LOSSES)
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=shape) for _ in range(2))
    loss = DistillLoss(name, alpha=0.5, temperature=3.0)
    tensors = [[paddle.to_tensor(each, "float32")] for each in (student, teacher)]
    np.testing.assert_allclose(loss.of(*tensors).item(), 0.5 * EXPECTED[name](student, teacher),
                               rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_probabilities_are_not_normalized_again(temperature):
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=[4, 6]) for _ in range(2)]
    student, teacher = ([paddle.to_tensor(softmax(each), "float32")] for each in logits)
    expected = temperature ** 2 * divergence(*(softmax(each / temperature) for each in logits))
    found = DistillLoss("soft_label", temperature=temperature).of(student, teacher)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-4)


def test_a_registered_loss():
    @register_distill_loss("largest")
    def largest(student, teacher, _):
        return (student - teacher).abs().max()

    try:
        loss = DistillLoss("largest")
        assert loss.of([paddle.to_tensor([1.0, 2.0])], [paddle.to_tensor([0.0, 5.0])]).item() == 3
    finally:
        DISTILL_LOSSES.unregister("largest")


@pytest.fixture
def net(digits):
    return warmed(SmallNet(), digits.batches(64, 1)[0])


@pytest.fixture
def data(digits):
    return digits.batches(32, 6)


QUANTIZATIONS = {
    "lsq": {"weight_bits": 4},
    "lsq of weights": {"weight_bits": 3, "weight_quantize_type": "channel_wise_lsq"},
    "pact": {"weight_bits": 4, "use_pact": True},
    "moving average": {"weight_bits": 4, "activation_quantize_type": "moving_average_abs_max"},
    "fixed scales": {"weight_bits": 4, "activation_quantize_type": "range_abs_max"},
}


@pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS)
def test_a_trained_student_is_nearer_to_its_teacher(net, data, digits, quantization):
    held_out = digits.test[0][:256]
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    wanted = net(paddle.to_tensor(held_out)).numpy()
    distances = []

    def distance(model):
        found = model(paddle.to_tensor(held_out)).numpy()
        distances.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        return -distances[-1]

    result = paddleq.distill(net, data, quantization, eval_callback=distance, epochs=4)
    assert [step for step, _ in result.metrics] == [0, 5, 10, 15, 20, 24]
    assert distances[-1] < 0.8 * distances[0]
    assert result.best_step == result.metrics[int(np.argmin(distances))][0]
    assert -distance(result.model) == min(distances)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


@pytest.mark.parametrize("more", [0, 12], ids=["few batches", "held-out batches"])
def test_the_result_is_never_worse_than_the_calibrated_start(net, digits, more):
    data = digits.batches(16, 6 + more)
    arguments = {"quantization": {"weight_bits": 4}, "train_iter": 5}
    result = paddleq.distill(net, data, learning_rate=1.0, **arguments)
    values = [metric for _, metric in result.metrics]
    assert result.best_step == 0 and values[0] == max(values) and min(values) < 2 * values[0]
    start = paddleq.distill(net, data, learning_rate=1e-12, **arguments)
    x = paddle.to_tensor(digits.test[0][:64])
    np.testing.assert_allclose(result.model(x).numpy(), start.model(x).numpy(), atol=1e-5)
    last = paddleq.distill(net, data, learning_rate=1.0, keep_best=False, **arguments)
    assert last.best_step == 5 and not last.metrics
    assert np.abs(last.model(x).numpy() - start.model(x).numpy()).max() > 1e-2


@pytest.mark.parametrize("length, positions", [
    (10, [9]), (29, [13, 27]), (100, [24, 49, 74, 99])])
def test_held_out_batches_are_not_trained_on(length, positions):
    training, evaluation = hold_out([*range(length)])
    assert list(evaluation) == positions and len(training) == length - len(positions)
    assert list(training) == [each for each in range(length) if each not in positions]


def test_batches_of_evaluations_without_a_length_or_of_the_calibration():
    few = [*range(9)]
    training, evaluation = hold_out(few)
    assert training is few and list(evaluation) == [0, 1, 2, 3]
    training, evaluation = hold_out(few, [*range(20, 28)])
    assert training is few and list(evaluation) == [21, 23, 25, 27]
    training, evaluation = hold_out(few, [5])
    assert training is few and list(evaluation) == [5]


@pytest.mark.parametrize("kind", ["lsq", "lsq of weights", "pact"])
def test_learned_scales_start_from_the_calibration_and_are_trained(net, data, kind):
    def scales(model):
        return np.concatenate([np.minimum(quantizer.abs_max.numpy(), np.inf if pact is None
                                          else abs(pact.alpha.item())).ravel()
                               for _, layer in quantized_layers(model)
                               for pact, quantizer in [layer.input_parts(0)]])

    found = []
    for rate in (1e-12, 1e-2):
        values = []
        paddleq.distill(net, data, QUANTIZATIONS[kind], learning_rate=rate, train_iter=4,
                        eval_iter=4, eval_callback=lambda model, values=values: values.append(
                            scales(model)) or len(values))
        found.append(values)
    (start, kept), (same, moved) = found
    assert (start > 0).all()
    np.testing.assert_array_equal(same, start)
    np.testing.assert_allclose(kept, start, rtol=1e-6)
    assert (np.abs(moved / start - 1) > 1e-2).any()


def test_the_training_does_not_depend_on_the_magnitude_of_weights(digits):
    """A factor between two layers of a ReLU net, a power of two, changes nothing but rates."""
    data, losses = digits.batches(32, 4), {}
    for factor in (1.0, 64.0):
        paddle.seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        with paddle.no_grad():
            for layer, scale in ((net[1], factor), (net[3], 1.0 / factor)):
                layer.bias.set_value(paddle.rand(layer.bias.shape) * factor ** (layer is net[1]))
                layer.weight.set_value(layer.weight * scale)
        for optimizer in (None, "Adam"):
            losses[factor, optimizer] = paddleq.distill(
                net, data, {"weight_bits": 4}, train_iter=8, optimizer_builder=optimizer,
                learning_rate=None if optimizer is None else 1e-3).losses
    np.testing.assert_allclose(losses[64.0, None], losses[1.0, None], rtol=1e-3)
    assert losses[1.0, None][-1] < losses[1.0, None][0]
    assert np.abs(np.divide(losses[64.0, "Adam"], losses[1.0, "Adam"]) - 1).max() > 0.1


def test_the_automatic_rate_lowers_a_loss_by_a_tenth_to_first_order():
    rng = np.random.default_rng(0)
    net, slopes = nn.Linear(50, 30), {}
    loss = paddle.to_tensor(100.0)
    for parameter in net.parameters():
        parameter.set_value(rng.normal(size=parameter.shape).astype("float32"))
        slopes[parameter.name] = paddle.to_tensor(rng.normal(size=parameter.shape), "float32")
        loss = loss + (parameter * slopes[parameter.name]).sum()
    loss.backward()
    with relative_rates(net, net.parameters()):
        rate = automatic_rate(loss.item(), net.parameters())
        rates = [each.optimize_attr["learning_rate"] for each in net.parameters()]
        np.testing.assert_allclose(
            rates, [np.sqrt((each.numpy() ** 2).mean()) for each in net.parameters()], rtol=1e-5)
        optimizer = paddle.optimizer.Adam(rate, epsilon=1e-12, parameters=net.parameters())
        optimizer.step()
    after = 100.0 + sum((each * slopes[each.name]).sum().item() for each in net.parameters())
    np.testing.assert_allclose(after, 0.9 * loss.item(), rtol=1e-4)
    assert all(each.optimize_attr["learning_rate"] == 1.0 for each in net.parameters())


def test_frozen_batch_norms_keep_their_statistics(net, data):
    result = paddleq.distill(net, data, fuse=False, epochs=1)
    compared = 0
    for name, value in result.model.state_dict().items():
        if name.endswith(("_mean", "_variance")):
            np.testing.assert_array_equal(value.numpy(), net.state_dict()[name].numpy())
            compared += 1
    assert compared
    assert not any(layer.training for layer in result.model.sublayers(include_self=True))


def test_dropout_is_inactive(data):
    paddle.seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    first, second = (paddleq.distill(net, data, epochs=1, seed=seed).losses for seed in (1, 2))
    assert first == second


def test_recurrent_layers_are_trained():
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.LSTM(6, 8, dropout=0.3, num_layers=2), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.cells(x)[0])

    net = Net()
    net.eval()
    rng = np.random.default_rng(0)
    data = [rng.normal(size=[4, 5, 6]).astype("float32") for _ in range(4)]
    result = paddleq.distill(net, data, {"weight_bits": 4}, epochs=8)
    assert np.mean(result.losses[-4:]) < np.mean(result.losses[:4])


def test_random_states_are_restored(net, data):
    random.seed(3)
    np.random.seed(3)
    paddle.seed(3)
    paddleq.distill(net, data, epochs=1)
    found = random.random(), np.random.rand(), paddle.rand([1]).item()
    random.seed(3)
    np.random.seed(3)
    paddle.seed(3)
    assert found == (random.random(), np.random.rand(), paddle.rand([1]).item())


class Interrupt(Exception):
    pass


class Shuffled:
    """Batches in an order that depends on the epoch; raises at step ``end``."""

    def __init__(self, arrays, end=None):
        self.arrays, self.end, self.count = arrays, end, 0

    def __len__(self):
        return len(self.arrays)

    def __iter__(self):
        for number in np.random.permutation(len(self.arrays)):
            if self.count == self.end:
                raise Interrupt
            self.count += 1
            yield self.arrays[number] + np.float32(random.random() * 0.01)


TRAININGS = {
    "Adam": {},
    "Momentum": {"optimizer_builder": {"optimizer": {"type": "Momentum", "momentum": 0.8},
                                       "weight_decay": 1e-3}, "learning_rate": 1e-3},
    "SGD with a schedule": {
        "optimizer_builder": "SGD",
        "learning_rate": {"type": "PiecewiseDecay", "boundaries": [7], "values": [1e-2, 1e-3]}},
    "AdamW with clipping": {
        "optimizer_builder": {"optimizer": "AdamW", "grad_clip": {
            "type": "ClipGradByGlobalNorm", "clip_norm": 0.5}},
        "learning_rate": {"type": "LinearWarmup", "learning_rate": 1e-3, "warmup_steps": 4,
                          "start_lr": 0.0, "end_lr": 1e-3}},
}
_SAMPLE = [("lsq", "Adam", 11), ("pact", "Momentum", 5), ("lsq", "AdamW with clipping", 4),
           ("moving average", "SGD with a schedule", 8)]


@pytest.mark.parametrize("quantization, training, interrupted_at", [
    *_SAMPLE, *(pytest.param(*case, marks=pytest.mark.nightly)
                for case in itertools.product(["lsq", "pact", "moving average"], TRAININGS, [5, 11])
                if case not in _SAMPLE)])
def test_a_resumed_training_equals_an_uninterrupted_one(net, data, digits, tmp_path, quantization,
                                                        training, interrupted_at):
    training = TRAININGS[training]
    arguments = {"quantization": QUANTIZATIONS[quantization], "epochs": 3, "checkpoint_iter": 3,
                 "eval_iter": 4, "calibration_data": data,
                 "eval_data": digits.batches(32, 8)[6:], **training}
    arrays = [each.numpy() for each in data]
    expected = paddleq.distill(net, Shuffled(arrays), **arguments)
    folder = str(tmp_path / "state")
    with pytest.raises(Interrupt):
        paddleq.distill(net, Shuffled(arrays, interrupted_at), checkpoint_dir=folder, **arguments)
    source = Shuffled(arrays)
    found = paddleq.distill(net, source, checkpoint_dir=folder, **arguments)
    assert found.losses == expected.losses and found.metrics == expected.metrics
    assert found.best_step == expected.best_step
    for (name, value), (_, other) in zip(found.model.state_dict().items(),
                                         expected.model.state_dict().items()):
        np.testing.assert_array_equal(value.numpy(), other.numpy(), err_msg=name)
    again = paddleq.distill(net, Shuffled(arrays), checkpoint_dir=folder, **arguments)
    assert again.losses == expected.losses and again.best_step == expected.best_step


def test_a_training_that_calibrates_on_shuffled_data_continues(net, data, tmp_path):
    source = Shuffled([each.numpy() for each in data])
    arguments = {"calibration_batches": 2, "train_iter": 4, "checkpoint_iter": 2,
                 "checkpoint_dir": str(tmp_path)}
    expected = paddleq.distill(net, source, **arguments)
    for seed in (1, 2):  # of another process
        random.seed(seed)
        np.random.seed(seed)
        paddle.seed(seed)
        assert paddleq.distill(net, source, **arguments).losses == expected.losses


def test_a_checkpoint_of_another_training_is_refused(net, data, tmp_path):
    folder = str(tmp_path)
    paddleq.distill(net, data, epochs=1, checkpoint_dir=folder)
    for change, message in (({"learning_rate": 2e-4}, "learning_rate was 'None'"),
                            ({"quantization": {"weight_bits": 4}}, "student|quantization"),
                            ({"losses": "l1"}, "losses"), ({"seed": 1}, "seed was '0'")):
        with pytest.raises(ConfigError, match=f"belongs to a training with another.*{message}"):
            paddleq.distill(net, data, **{"epochs": 1, "checkpoint_dir": folder, **change})
    path = tmp_path / "training.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(paddleq.errors.FormatError, match="is damaged"):
        paddleq.distill(net, data, epochs=1, checkpoint_dir=folder)


def test_target_and_origin_metric(net, data):
    values = iter([0.9, 0.1, 0.5, 0.7, 0.2])
    result = paddleq.distill(net, data, epochs=1, eval_iter=1, origin_metric=0.92,
                             target_metric=0.6, eval_callback=lambda model: next(values))
    assert result.steps == 2 and result.metrics == [(0, 0.1), (1, 0.5), (2, 0.7)]
    with pytest.raises(ConfigError, match="origin_metric is 0.5, but the metric .* is 0.9"):
        paddleq.distill(net, data, origin_metric=0.5, eval_callback=lambda model: 0.9)


def test_functions_and_steps(net, data):
    made = []

    def batches():
        made.append(1)
        yield from data

    assert paddleq.distill(net, batches, train_iter=8).steps == 8
    # Calibration, held-out batches, learning rate and two epochs.
    assert len(made) == 5
    with pytest.raises(ConfigError, match="train_iter must be given, because data has no length"):
        paddleq.distill(net, batches)


@pytest.mark.parametrize("arguments, error, message", [
    ({"epochs": 1, "train_iter": 2}, ConfigError, "one of epochs and train_iter"),
    ({"epochs": 0}, ConfigError, "epochs must be an int of at least 1, but is 0"),
    ({"train_iter": 2.0}, ConfigTypeError, "train_iter must be an int"),
    ({"epoch": 3}, ConfigError, "does not know 'epoch'.*did you mean 'epochs'"),
    ({"learning_rate": -1.0}, ConfigError, "learning_rate must be in"),
    ({"learning_rate": {"type": "CosineDecay"}}, ConfigError, "did you mean 'CosineAnnealing"),
    ({"learning_rate": {"type": "CosineAnnealingDecay", "learning_rate": 0.1, "T": 3}},
     ConfigError, "does not know 'T'"),
    ({"learning_rate": {"type": "ReduceOnPlateau"}}, ConfigError, "must be one of"),
    ({"optimizer_builder": {"optimiser": {}}}, ConfigError, "did you mean 'optimizer'"),
    ({"optimizer_builder": "Adm"}, ConfigError, "did you mean 'Adam'"),
    ({"optimizer_builder": {"optimizer": {"type": "Adam", "beta": 1}}}, ConfigError, "beta"),
    ({"optimizer_builder": {"grad_clip": {"type": "Clip"}}}, ConfigError, "grad_clip"),
    ({"losses": "l3"}, ConfigError, "loss must be one of.*'l2'"),
    ({"losses": "fsp"}, ConfigError, "loss must be one of"),
    ({"losses": []}, ConfigError, "losses must be None or a list with a loss"),
    ({"losses": [{"los": "l2"}]}, ConfigError, "did you mean 'loss'"),
    ({"losses": [DistillLoss(node=["block"])]}, ConfigError, "no sublayer of that name"),
    ({"quantization": {"weight_bit": 4}}, ConfigError, "did you mean 'weight_bits'"),
    ({"quantization": {"use_pact": True, "activation_quantize_type": "lsq"}}, ConfigError,
     "use_pact trains a range"),
    ({"quantization": {"quantize_op_types": ["conv2d"]}}, ConfigError, "are for a saved model"),
    ({"quantization": {"for_tensorrt": True}}, ConfigError, "for_tensorrt"),
    ({"quantization": 8}, ConfigTypeError, "quantization must be a dict"),
    ({"eval_callback": 3}, ConfigTypeError, "eval_callback must be a function"),
    ({"eval_callback": lambda model: "good"}, ConfigTypeError, "result of eval_callback"),
    ({"eval_callback": lambda model: float("nan")}, NonFiniteError, "metric is nan after step 0"),
    ({"eval_callback": abs, "eval_data": []}, ConfigError, "one of eval_callback and eval_data"),
    ({"skip": "nothing"}, ConfigError, "nothing"),
    ({"teacher": 3}, ConfigTypeError, "teacher must be a saved model"),
])
def test_errors_name_the_argument(net, data, arguments, error, message):
    with pytest.raises(error, match=message):
        paddleq.distill(net, data, **arguments)


def test_errors_of_data_and_models(net, data):
    with pytest.raises(ConfigTypeError, match="an iterator ends after one pass"):
        paddleq.distill(net, iter(data))
    with pytest.raises(CalibrationError, match="at least one batch"):
        paddleq.distill(net, [])
    with pytest.raises(ConfigError, match="student's is .* and the teacher's"):
        paddleq.distill(net, data, teacher=nn.Sequential(net, nn.Linear(10, 3)))
    frozen = warmed(SmallNet(), data[0])
    for parameter in frozen.parameters():
        parameter.stop_gradient = True
    with pytest.raises(ModelError, match="no trainable parameter"):
        paddleq.distill(frozen, data, {"activation_quantize_type": "moving_average_abs_max"},
                        fuse=False)


def test_a_loss_that_is_not_finite(net, data):
    with pytest.raises(NonFiniteError, match=r"the loss l2 of the outputs is .* in step \d"):
        paddleq.distill(net, data, None, "l2", epochs=4, learning_rate=1e30,
                        optimizer_builder="SGD")
