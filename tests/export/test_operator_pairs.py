"""Random pairs of operators around a quantized layer: every runtime computes the simulation.

A program is a quantized convolution, an operator, a quantized layer and another operator, drawn
from the operators of the conformance test.
"""

import inspect

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import runtimes
from hypothesis import assume, given
from hypothesis import strategies as st
from operator_conformance import OPERATORS, STEPS
from paddle import nn
from zoo_architectures import unsigned

from paddleq.errors import PaddleqError

pytestmark = pytest.mark.one_version

SHAPE = [2, 8, 9, 7]
X = np.random.RandomState(7).uniform(-1, 1, SHAPE).astype("float32")
_BOUND = 1e-5  # relative
_INT8_BOUND = 2e-3  # with int8 kernels of Paddle Inference, which round to 8 bits again
_MOST_VALUES = 20000
TYPES = ["Conv1D", "Conv2D", "Conv2DTranspose", "Linear"]
NAMES = sorted(name for name in OPERATORS if name.partition(" ")[0] not in STEPS)
# Faults that drawn programs had, and one operator of most kinds.
IN_CI = [
    ("full", "conv", "index_fill"), ("crop", "linear", "cummax"), ("neg", "conv", "pad channels"),
    ("unbind", "linear", "rsqrt"), ("roi_align", "conv", "avg_pool2d inclusive ceil"),
    ("fold", "linear", "avg_pool2d inclusive ceil"), ("selu 1.2, 0.4", "depthwise", "transpose"),
    ("interpolate bilinear", "conv", "t"), ("std", "linear", "roll flat"),
    ("local_response_norm", "depthwise", "mish"), ("gelu approximate", "linear", "rad2deg"),
    ("cummin", "conv", "kron"), ("amax", "linear", "tanh"), ("relu", "conv", "tanh"),
    ("atan2", "linear", "matmul"), ("group_norm", "linear", "digamma"),
    ("put_along_axis add", "depthwise", "triu"), ("triu", "lstm", "fmax"),
    ("softsign", "embedding", "trace"), ("temporal_shift", "conv1d", "max"),
    ("gather axis 2", "transposed", "hardswish"), ("neg", "linear", "unbind"),
    ("erf", "transposed", "logsumexp")]


class Lines(nn.Layer):
    """1-D convolution over the lines of an image."""

    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv1D(channels, 12, 3, padding=1)

    def forward(self, x):
        return self.convolution(x.flatten(2)).reshape([-1, 12, *x.shape[2:]])


class Words(nn.Layer):
    """Linear layer of the vectors of an embedding."""

    def __init__(self, elements):
        super().__init__()
        self.words, self.linear = nn.Embedding(10, elements), nn.Linear(elements, 7)

    def forward(self, x):
        return self.linear(self.words((F.sigmoid(x[..., 0]) * 9.5).astype("int64")))


class Cells(nn.Layer):
    """LSTM over the lines of an image, and a linear layer."""

    def __init__(self, elements):
        super().__init__()
        self.cells, self.linear = nn.LSTM(elements, 6), nn.Linear(6, 7)

    def forward(self, x):
        return self.linear(self.cells(x.flatten(1, 2))[0]).reshape([*x.shape[:3], 7])


# Layers of four dimensions by the number of their channels, or of elements of the last axis.
OF_CHANNELS = {
    "conv": lambda channels: nn.Conv2D(channels, 12, 3, padding=1),
    "depthwise": lambda channels: nn.Conv2D(channels, channels, 3, padding=1, groups=channels),
    "transposed": lambda channels: nn.Conv2DTranspose(channels, 12, 3, padding=1),
    "conv1d": Lines}
KINDS = {**OF_CHANNELS, "linear": lambda elements: nn.Linear(elements, 7), "embedding": Words,
         "lstm": Cells}


class Pair(nn.Layer):
    """first operator -> ``kind`` of layer -> second operator, behind a convolution."""

    def __init__(self, first, kind, second):
        super().__init__()
        self.first, self.second = OPERATORS[first], OPERATORS[second]
        self.convolution = nn.Conv2D(8, 12, 3, padding=1)
        with paddle.no_grad():
            made = self.front(paddle.to_tensor(X))
        if made.dtype != paddle.float32 or len(made.shape) < 2 or not 0 < made.size < _MOST_VALUES:
            raise ValueError("no data for a layer")
        channels, elements = made.shape[1], made.shape[-1]
        make = KINDS[kind if len(made.shape) == 4 else "linear"]
        self.layer = make(channels if kind in OF_CHANNELS and len(made.shape) == 4 else elements)

    def front(self, x):
        return applied(self.first, self.convolution(x))[0]

    def forward(self, x):
        return [each if each.dtype == paddle.float32 else each.astype("float32")
                for each in applied(self.second, self.layer(self.front(x)))]


def applied(operator, x):
    """Outputs of an operator of ``x``; a second operand is another function of ``x``."""
    needed = [each for each in inspect.signature(operator).parameters.values()
              if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    made = operator(x, paddle.tanh(x)) if len(needed) == 2 else operator(x)
    return list(made) if isinstance(made, (list, tuple)) else [made]


def pair(*names):
    """The Layer and its outputs; None if the operators do not fit."""
    paddle.seed(7)
    try:
        net = Pair(*names)
        net.eval()
        with paddle.no_grad():
            found = [each.numpy() for each in net(paddle.to_tensor(X))]
    except Exception:  # of Paddle: shapes, data types, two inputs, versions
        return None
    right = all(np.isfinite(each).all() for each in found)
    return net if right and sum(each.size for each in found) < _MOST_VALUES else None


def check(net, path):
    """Compare all runtimes with the simulation; return the formats that were refused."""
    (ptq, model), x = runtimes.quantized(net, X, TYPES), paddle.to_tensor(X)
    with paddle.no_grad():
        wanted = [each.numpy() for each in model(x)]
        moved = [each.numpy() for each in model(x * (1 + 1e-6))]
    # A value at a rounding border may take the other integer.
    bound = _BOUND + 10 * error(moved, wanted)
    runs = {
        "pdmodel": {
            "as it stands": lambda: runtimes.paddle_inference(path, [X]),
            "Paddle float": lambda: runtimes.paddle_inference(path, [X], ir_optim=True,
                                                              onednn=True),
            "Paddle int8": lambda: runtimes.paddle_inference(path, [X], ir_optim=True, int8=True)},
        "openvino": {"OpenVINO": lambda: runtimes.openvino(path, [X], as_is=False, ending="xml")},
        "onnx": {"ONNX Runtime": lambda: runtimes.onnxruntime(path, [X], as_is=False),
                 "OpenVINO of ONNX": lambda: runtimes.openvino(path, [X], as_is=False,
                                                               ending="onnx")}}
    found, refused = {}, []
    for form, each in runs.items():
        try:
            ptq.save_quantized_model(model, path, [paddle.static.InputSpec(SHAPE, "float32", "x")],
                                     format=form)
        except PaddleqError as refusal:
            assert str(refusal)
            refused.append(form)
            continue
        found.update((runtime, run()) for runtime, run in each.items())
    if runtimes.INT8_WEIGHT_BITS == 8 and "Paddle int8" in found:
        outputs = found.pop("Paddle int8")
        assert min(error(outputs, each) for each in (wanted, unsigned(model, [X]))) <= (
            bound + _INT8_BOUND)
    found = {runtime: error(outputs, wanted) for runtime, outputs in found.items()}
    assert found.pop("as it stands", 0.0) <= 1e-6
    assert {name: figure for name, figure in found.items() if not figure <= bound} == {}
    return refused


def error(found, wanted):
    """Largest relative distance of an output; infinite for other shapes."""
    if [each.shape for each in found if each.size > 1] != [
            each.shape for each in wanted if each.size > 1]:
        return np.inf
    return max(np.linalg.norm(np.float64(a).ravel() - b.ravel()) / max(np.linalg.norm(b), 1e-6)
               for a, b in zip(found, wanted))


@pytest.mark.parametrize("names", IN_CI, ids=" | ".join)
def test_pairs_of_operators(names, tmp_path):
    assert check(pair(*names), str(tmp_path / "m")) == []


@pytest.mark.nightly
@given(st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(KINDS)),
                 st.sampled_from(NAMES)))
def test_random_pairs_of_operators(tmp_path_factory, names):
    net = pair(*names)
    assume(net is not None)
    check(net, str(tmp_path_factory.mktemp("pair") / "m"))
