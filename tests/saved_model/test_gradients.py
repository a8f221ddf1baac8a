"""Gradients of saved models are those of the layers that they were saved from."""

import numpy as np
import paddle
import pytest
import zoo
from paddle import nn
from paddle.static import InputSpec
from saved_models import PPOCR, ppocr, save

import paddleq

# CRNN: Paddle has no gradient of rnn in evaluation mode. SSD: box decoding has no gradient.
DIFFERENTIABLE = [name for name in zoo.ZOO if not name.startswith(("CRNN", "SSD"))]
FAST = ("LeNet", "U-Net", "ViT")


def _marks(name):
    """Most models run on one version of Paddle, and nightly on all; VGG11 has AlexNet's layers."""
    return [pytest.mark.slow, pytest.mark.one_version] * (name not in FAST) + [
        pytest.mark.nightly] * (name == "VGG11")


def weighted_sum(result):
    """A loss to which all entries of an output contribute differently."""
    outputs = [each for each in zoo.outputs(result) if paddle.is_floating_point(each)]
    return sum((each * paddle.cos(paddle.arange(each.size, dtype="float32")).reshape(each.shape))
               .sum() for each in outputs)


def gradients(net, inputs):
    """Gradients of the loss for inputs and parameters."""
    inputs = [each.detach() for each in inputs]
    for each in inputs:
        each.stop_gradient = not paddle.is_floating_point(each)
    net.clear_gradients()
    weighted_sum(net(*inputs)).backward()
    return [each.grad for each in inputs]


def assert_equal_gradients(net, saved, inputs):
    """Compare gradients of a layer with those of its saved model, parameter by parameter."""
    for found, expected in zip(gradients(saved, inputs), gradients(net, inputs)):
        assert (found is None) == (expected is None)
        if expected is not None:
            assert relative(found, expected) < 1e-5
    compared = 0
    for source in net.parameters():
        if source.grad is None:
            continue
        found = saved.gradient_of(source.name)
        # A gradient that is 0 in exact arithmetic (the bias of keys in attention) is rounding.
        if np.linalg.norm(source.grad.numpy()) > 1e-4:
            assert relative(found, source.grad) < 1e-5, source.name
            compared += 1
    assert compared


def relative(found, expected):
    """Relative L2 distance."""
    found, expected = (each.numpy().astype("float64").reshape(-1) for each in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


class Named(paddleq.SavedModel):
    """Finds gradients by the names of the program."""

    def gradient_of(self, name):
        owner, attribute = self.parameter_places[name]
        gradient = getattr(getattr(self, owner) if owner else self, attribute).grad
        if owner and self.bindings[owner].transposed and attribute == "weight":
            gradient = gradient.t()
        return gradient


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=_marks(name)) for name in DIFFERENTIABLE])
def test_models_of_the_zoo(name, mode, prefix):
    model = zoo.ZOO[name]
    net = model.make()
    for layer in net.sublayers():
        # The two models would drop other values.
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, nn.MultiHeadAttention):
            layer.dropout = 0.0  # a number, applied by F.dropout
    save(net, prefix, model.spec())
    saved = Named(prefix)
    for each in (net, saved):
        getattr(each, mode)()
    assert_equal_gradients(net, saved, model.tensors(zoo.unseen(4)))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_recurrent_layers(cls, prefix):
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.cells = cls(5, 7, num_layers=2, direction="bidirect")

        def forward(self, x):
            return self.cells(x)[0]

    net = Net()
    save(net, prefix, [InputSpec([None, None, 5], "float32", "x")])
    saved = Named(prefix)
    net.train()
    saved.train()
    assert_equal_gradients(net, saved, [paddle.randn([2, 6, 5])])


def test_gradients_through_loops(prefix):
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        @paddle.jit.to_static(full_graph=True)
        def forward(self, x, count):
            i = paddle.zeros([1], "int64")
            while i < count:
                x = paddle.tanh(self.fc(x))
                i = i + 1
            return x

    net, spec = Net(), [InputSpec([None, 4], "float32", "x"), InputSpec([1], "int64", "count")]
    save(net, prefix, spec)
    x, saved = paddle.randn([3, 4]), Named(f"{prefix}.old")
    weighted_sum(saved(x, np.array([3]))).backward()
    y = x
    for _ in range(3):
        y = paddle.tanh(nn.functional.linear(y, net.fc.weight, net.fc.bias))
    weighted_sum(y).backward()
    for parameter in net.parameters():
        assert relative(saved.gradient_of(parameter.name), parameter.grad) < 1e-5


@pytest.mark.parametrize("name", PPOCR)
def test_ppocr_models_can_be_trained(name):
    """The gradient predicts the loss after a small step of the parameters."""
    model = paddleq.SavedModel(ppocr(name))
    x = paddle.rand(PPOCR[name][0])
    loss = weighted_sum(model(x))
    loss.backward()
    trained = [each for each in model.parameters() if each.grad is not None]
    assert len(trained) == len([each for each in model.parameters() if not each.stop_gradient])
    square = sum(float((each.grad * each.grad).sum()) for each in trained)
    assert np.isfinite(square) and square > 0
    step = 1e-3 * abs(float(loss)) / square
    with paddle.no_grad():
        for each in trained:
            each.set_value(each - step * each.grad)
        after = weighted_sum(model(x))
    assert 0.5 < float(loss - after) / (step * square) < 1.5


def test_an_operator_without_gradient_is_named(prefix):
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return paddle.kthvalue(self.fc(x), 2)[0]

    net = Net()
    save(net, prefix, [InputSpec([3, 4], "float32", "x")])
    value = paddleq.SavedModel(prefix)(paddle.randn([3, 4]))
    # Paddle turns an exception of a backward pass into OSError.
    with pytest.raises(OSError, match="ModelError: the operator kthvalue"):
        value.sum().backward()
