"""Random small models for the fuzz tests: graphs of operators drawn one after another.

Each operator is tried in dygraph while it is drawn, on three sets of values ("lanes") at once: on
a batch, on a batch of another size (so that what depends on the batch size is known), and on the
first batch with every result slightly disturbed. Operators are rejected that do not run on both
sizes, overflow, or amplify a small disturbance (a ``floor`` at an integer, an ``argmax`` of equal
values), because runtimes cannot be compared on their results.
"""

from typing import Callable, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from hypothesis import strategies as st
from paddle import nn

_MOST_ELEMENTS = 4096
_NOISE = 1e-5
_SIZES = (1, 2, 3, 4, 6, 8)


class Graph(nn.Layer):
    """Steps that read values by number and make new ones."""

    def __init__(self):
        super().__init__()
        self.parts = nn.LayerList()
        self.steps = []  # (function, numbers of the values that it takes)
        self.outputs = []

    @paddle.jit.not_to_static
    def run(self, inputs):
        """Values of the outputs. Paddle traces it as it runs; there is nothing to transform."""
        values = list(inputs)
        for function, sources in self.steps:
            values.extend(_listed(function(*(values[i] for i in sources))))
        return [values[i] for i in self.outputs]


class OneInput(Graph):
    def forward(self, a):
        return self.run([a])


class TwoInputs(Graph):
    def forward(self, a, b):
        return self.run([a, b])


class ThreeInputs(Graph):
    def forward(self, a, b, c):
        return self.run([a, b, c])


def _listed(made):
    return list(made) if isinstance(made, (list, tuple)) else [made]


class Case:
    """A drawn model.

    Attributes:
        net: the Layer.
        spec: its InputSpecs; the first dimension is None if the batch size may vary.
        batches: two lists of input arrays, of different batch sizes if that may vary.
        expected: for each of them the outputs in dygraph.
        story: what was drawn, for the report of a failure.
    """

    def __init__(self, draw):
        self.draw = draw
        self.random = np.random.RandomState(draw(st.integers(0, 2 ** 16), label="numbers"))
        self.dynamic = draw(st.booleans(), label="dynamic batch")
        # A parameter's first value comes from paddle's own generator.
        paddle.seed(self.random.randint(2 ** 16))
        self.lanes = []  # for each value: what it is in each lane
        self.read, self.story, self.made = set(), [], {}
        kinds = draw(st.lists(st.sampled_from(["image", "image", "sequence", "vector", "tokens"]),
                              min_size=1, max_size=3), label="inputs")
        self.net = (OneInput, TwoInputs, ThreeInputs)[len(kinds) - 1]()
        size = draw(st.sampled_from([1, 2, 3]), label="batch")
        inputs = [self._input(kind, size) for kind in kinds]
        self.batches = [[lanes[i].numpy() for lanes in inputs] for i in range(2)]
        self.spec = [paddle.static.InputSpec(
            [None if self.dynamic else size, *lanes[0].shape[1:]], str(lanes[0].dtype)
            .split(".")[-1], name) for lanes, name in zip(inputs, "abc")]
        self.net.eval()
        with paddle.no_grad():
            self._grow()
            for i in range(len(kinds)):
                if i not in self.read:
                    # An output that is an input as it is would have its name, twice.
                    self._try("doubled", lambda t: t + t, [i])
        self.net.outputs = [i for i in range(len(self.lanes)) if i not in self.read]
        self.expected = [[self.lanes[i][k].numpy() for i in self.net.outputs] for k in range(2)]

    def _input(self, kind, size):
        rest = {"image": [self.one_of([1, 2, 3, 4]), *self.one_of([(6, 6), (5, 8), (8, 4)])],
                "sequence": [self.one_of([3, 5]), self.one_of([4, 6])],
                "vector": [self.one_of([4, 6, 8])], "tokens": [self.one_of([3, 5])]}[kind]
        sizes = (size, size + 2 * self.dynamic)
        arrays = [self.random.randint(0, 8, [n, *rest]).astype("int64") if kind == "tokens"
                  else self.random.randn(n, *rest).astype("float32") for n in sizes]
        lanes = [paddle.to_tensor(array) for array in (*arrays, arrays[0])]
        lanes[2] = self._disturbed(lanes[2])
        self.lanes.append(lanes)
        self.story.append(f"{len(self.lanes) - 1} = {kind} {self.shape(len(self.lanes) - 1)}")
        return lanes

    def _disturbed(self, tensor):
        if tensor.dtype != paddle.float32:
            return tensor
        noise = self.random.uniform(-_NOISE, _NOISE, tensor.shape).astype("float32")
        return tensor * paddle.to_tensor(1 + noise)

    def _grow(self):
        wanted = self.draw(st.integers(3, 15), label="operators")
        for _ in range(6 * wanted):
            if len(self.net.steps) == wanted:
                break
            x = self.value()
            family = self.one_of(["simple", "layer", "layer", "other", "other"])
            found = [name for name, each in OPERATORS.items()
                     if each.family == family and each.fits(self, x)]
            if found:
                name = self.one_of(found)
                self._try(name, *OPERATORS[name].drawn(self, x) or (None, None))

    def _try(self, name, function, sources):
        if function is None or None in sources:
            return  # the value that was drawn lacks something
        lanes = []
        try:
            for k in range(3):
                made = _listed(function(*(self.lanes[i][k] for i in sources)))
                lanes.append([self._disturbed(each) for each in made] if k == 2 else made)
        except (ValueError, RuntimeError, TypeError, IndexError, AssertionError):
            return  # sizes that do not go together
        if not all(_usable(*values) for values in zip(*lanes)):
            return
        first = len(self.lanes)
        self.lanes.extend([list(values) for values in zip(*lanes)])
        self.net.steps.append((function, sources))
        self.read.update(sources)
        self.story.append(", ".join(map(str, range(first, len(self.lanes)))) +
                          f" = {name}({', '.join(map(str, sources))}) "
                          f"{[self.shape(i) for i in range(first, len(self.lanes))]}")

    # What operators draw with

    def one_of(self, choices):
        # Hypothesis likes to repeat itself; the offset spreads what it draws.
        drawn = self.draw(st.integers(0, len(choices) - 1))
        return choices[(drawn + self.random.randint(len(choices))) % len(choices)]

    def number(self, low, high):
        return round(self.draw(st.integers(int(low * 8), int(high * 8))) / 8, 3)

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def flag(self):
        return self.draw(st.booleans())

    def value(self):
        """Number of a value, a recent one more often than not."""
        back = self.one_of([1, 1, 1, 1, 2, 2, 3, 4, 6, 9])
        return max(len(self.lanes) - back, 0)

    def another(self, fits):
        """Number of a value that fits, None if there is none."""
        found = [i for i in range(len(self.lanes)) if fits(i)]
        return self.one_of(found[-6:]) if found else None

    def shape(self, i):
        """Dimensions of a value, -1 where they depend on the batch size."""
        first, second = self.lanes[i][:2]
        return [a if a == b else -1 for a, b in zip(first.shape, second.shape)]

    def rank(self, i):
        return self.lanes[i][0].ndim

    def dtype(self, i):
        return str(self.lanes[i][0].dtype).split(".")[-1]

    def axis(self, i):
        """An axis, at times counted from the end."""
        rank = self.rank(i)
        return self.integer(-rank, rank - 1)

    def known_axis(self, i):
        """An axis whose size does not depend on the batch; None if there is none."""
        known = [k for k, size in enumerate(self.shape(i)) if size != -1]
        return self.one_of(known) if known else None

    def layer(self, key, make):
        """A layer; one of the same key is shared now and then."""
        if key in self.made and self.flag():
            return self.made[key]
        layer = make()
        layer.eval()
        self.net.parts.append(layer)
        self.made[key] = layer
        return layer

    def weight(self, shape, integers=None):
        """A function that returns a parameter, for use inside of a step."""
        holder = nn.Layer()
        array = (self.random.randn(*shape).astype("float32") if integers is None
                 else self.random.randint(0, integers, shape).astype("int64"))
        if integers is None:
            holder.weight = holder.create_parameter(
                list(array.shape), default_initializer=nn.initializer.Assign(array))
        else:
            holder.register_buffer("weight", paddle.to_tensor(array))
        self.net.parts.append(holder)
        return lambda: holder.weight


def _usable(first, second, disturbed):
    if first.ndim != second.ndim or str(first.dtype).split(".")[-1] not in (
            "float32", "int64", "int32", "bool"):
        return False
    if not all(0 < t.numel().item() <= _MOST_ELEMENTS for t in (first, second)):
        return False
    a, b, c = (t.numpy() for t in (first, second, disturbed))
    if a.dtype != np.float32:
        return a.shape == c.shape and np.array_equal(a, c)
    largest = max(np.abs(a).max(), np.abs(b).max())
    return (a.shape == c.shape and np.isfinite(largest) and largest < 1e3
            and np.abs(a - c).max() <= 100 * _NOISE * (np.abs(a).max() + 1e-3))


class Operator(NamedTuple):
    """Operator of random graphs.

    Attributes:
        family: group of similar operators.
        fits: returns True if the operator accepts a value.
        drawn: returns (function on tensors, sources), or None.
    """

    family: str
    fits: Callable
    drawn: Callable


OPERATORS = {}


def operator(fits, family="other"):
    """Register a function (case, number of a value) -> (function on tensors, sources)."""
    def register(function):
        OPERATORS[function.__name__.strip("_")] = Operator(family, fits, function)
        return function
    return register


def floats(low=0, high=9):
    return lambda case, x: case.dtype(x) == "float32" and low <= case.rank(x) <= high


def integers(case, x):
    return case.dtype(x) in ("int64", "int32")


def anything(low=0):
    return lambda case, x: case.rank(x) >= low


def _simple(fits, **functions):
    """Operators of one tensor that draw nothing."""
    for name, function in functions.items():
        OPERATORS[name] = Operator("simple", fits,
                                   lambda case, x, function=function: (function, [x]))


_simple(
    floats(), relu=F.relu, relu6=F.relu6, tanh=paddle.tanh, sigmoid=F.sigmoid, silu=F.silu,
    softsign=F.softsign, log_sigmoid=F.log_sigmoid, tanhshrink=F.tanhshrink, selu=F.selu,
    mish=F.mish, swish=F.swish, hardswish=F.hardswish, hardsigmoid=F.hardsigmoid,
    hardshrink=F.hardshrink, softshrink=F.softshrink, softplus=F.softplus,
    abs=paddle.abs, negative=lambda x: -x, exp=paddle.exp, expm1=paddle.expm1,
    square=paddle.square, sin=paddle.sin, cos=paddle.cos, erf=paddle.erf, atan=paddle.atan,
    asinh=paddle.asinh, sinh=paddle.sinh, floor=paddle.floor, ceil=paddle.ceil,
    round=paddle.round, sign=paddle.sign, trunc=paddle.trunc,
    log=lambda x: paddle.log(x.abs() + 0.5), log1p=lambda x: paddle.log1p(x.abs()),
    log2=lambda x: paddle.log2(x.abs() + 1.0), sqrt=lambda x: paddle.sqrt(x.abs() + 0.5),
    rsqrt=lambda x: paddle.rsqrt(x.abs() + 0.5), reciprocal=lambda x: 1.0 / (x.abs() + 0.5),
    isfinite=paddle.isfinite, isnan=paddle.isnan, gelu_tanh=lambda x: F.gelu(x, True),
    gelu=F.gelu, zeros_like=paddle.zeros_like, identity=lambda x: x.clone(), mean_all=paddle.mean,
    logit=lambda x: paddle.logit(F.sigmoid(x), 1e-3))
_simple(floats(2), fused_softmax=lambda x: F.softmax(paddle.matmul(x, x, transpose_y=True) * 0.1))


# Elements


@operator(floats())
def activation_with_numbers(case, x):
    a, b = case.number(0.125, 2), case.number(0.5, 3)
    return case.one_of([
        lambda t: F.leaky_relu(t, a), lambda t: F.elu(t, a), lambda t: F.celu(t, b),
        lambda t: F.hardtanh(t, -a, b), lambda t: paddle.clip(t, -a, b),
        lambda t: F.thresholded_relu(t, a), lambda t: paddle.stanh(t, a, b),
        lambda t: t * a + b, lambda t: (t + b) * a, lambda t: t / b - a,
        lambda t: paddle.pow(t.abs() + 0.5, b), lambda t: paddle.full_like(t, b) + t]), [x]


def _partner(case, x):
    """A value or a parameter that broadcasts with ``x``: (sources, function to get it)."""
    if case.flag():
        y = case.another(lambda i: case.dtype(i) == case.dtype(x))
        return [x, y], lambda tensors: tensors[1]
    shape = [1 if size == -1 or case.flag() else size for size in case.shape(x)]
    weight = case.weight(shape[case.integer(0, len(shape)):] or [1],
                         None if case.dtype(x) == "float32" else 5)
    return [x], lambda tensors: weight()


@operator(floats())
def binary(case, x):
    sources, other = _partner(case, x)
    function = case.one_of([
        paddle.add, paddle.subtract, paddle.multiply, paddle.maximum, paddle.minimum,
        paddle.fmax, paddle.fmin, lambda a, b: a / (b.abs() + 0.5),
        # Paddle itself fails where these two broadcast along an unknown size.
        lambda a, b: paddle.atan2(a + b * 0, b + a * 0),
        lambda a, b: paddle.lerp(a + b * 0, b + a * 0, 0.25),
        lambda a, b: paddle.pow(a.abs() + 0.5, paddle.tanh(b)),
        lambda a, b: paddle.mod(a, b.abs() + 1.0)])
    swapped = case.flag()
    return (lambda *t: function(other(t), t[0]) if swapped else function(t[0], other(t))), sources


@operator(lambda case, x: case.dtype(x) in ("float32", "int64"))
def compare(case, x):
    sources, other = _partner(case, x)
    function = case.one_of([paddle.less_than, paddle.less_equal, paddle.greater_than,
                            paddle.greater_equal, paddle.equal, paddle.not_equal])
    return (lambda *t: function(t[0], other(t))), sources


@operator(lambda case, x: case.dtype(x) == "bool")
def logic(case, x):
    y = case.another(lambda i: case.dtype(i) == "bool")
    function = case.one_of([paddle.logical_and, paddle.logical_or, paddle.logical_xor,
                            lambda a, b: paddle.logical_not(a) if case.dynamic else ~a | b])
    return function, [x, y]


@operator(floats())
def where(case, x):
    number, limit = case.number(-2, 2), case.number(-1, 1)
    y = case.another(lambda i: case.dtype(i) == "float32" and case.shape(i) == case.shape(x))
    return case.one_of([lambda a, b: paddle.where(a > limit, b, a * number),
                        lambda a, b: paddle.where(b < limit, a, paddle.full_like(a, number)),
                        lambda a, b: paddle.where((a > limit).logical_or(b < a), a, b)]), [x, y]


@operator(lambda case, x: case.dtype(x) in ("bool", "float32"))
def any_all(case, x):
    axis, keep = (case.axis(x) if case.rank(x) else None), case.flag()
    function = case.one_of([paddle.all, paddle.any])
    return (lambda t: function(t > 0.125 if t.dtype == paddle.float32 else t, axis, keep)), [x]


@operator(anything())
def sizes(case, x):
    return case.one_of([paddle.shape, paddle.numel, lambda t: paddle.shape(t)[0] + 1]), [x]


@operator(anything())
def cast(case, x):
    # To its own type it would be the same value, which Paddle saves as one output, not two.
    dtype = case.one_of([each for each in ("float32", "int64", "int32", "bool")
                         if each != case.dtype(x)])
    return (lambda t: t.astype(dtype)), [x]


@operator(integers)
def integer_arithmetic(case, x):
    number = case.integer(1, 5)
    return case.one_of([
        # Not t + number: Paddle 3 saves an output that is an input plus a number as the input.
        lambda t: t * 2 + number, lambda t: t * number, lambda t: t % number, lambda t: -t,
        lambda t: paddle.floor_divide(t, t * 0 + number),
        lambda t: t.astype("float32") / number, lambda t: t.clip(0, number),
        lambda t: F.one_hot(t.astype("int64") % number, number),
        lambda t: paddle.maximum(t, t * 0 + number)]), [x]


@operator(integers)
def embedding(case, x):
    layer = case.layer("embedding", lambda: nn.Embedding(8, 6))
    return (lambda t: layer(t.astype("int64") % 8)), [x]


# Matrices


@operator(floats(1), "layer")
def linear(case, x):
    size = case.shape(x)[-1]
    if size == -1:
        return None
    out, bias = case.one_of(_SIZES), case.flag()
    return case.layer(("linear", size, out), lambda: nn.Linear(
        size, out, bias_attr=None if bias else False)), [x]


@operator(floats(2))
def matmul(case, x):
    kind = case.one_of(["self", "weight", "value", "bmm"])
    if kind == "self":
        return (lambda t: paddle.matmul(t, t, transpose_y=True)), [x]
    if kind == "weight":
        size, transposed = case.shape(x)[-1], case.flag()
        if size == -1:
            return None
        out = case.one_of(_SIZES)
        weight = case.weight([out, size] if transposed else [size, out])
        return (lambda t: paddle.matmul(t, weight(), transpose_y=transposed)), [x]
    rank = case.rank(x)
    y = case.another(lambda i: case.dtype(i) == "float32" and case.rank(i) >= 2 and
                     (kind == "value" or case.rank(i) == rank == 3))
    if y is None:
        return None
    left, right = case.flag(), case.flag()
    if kind == "bmm":
        return (lambda a, b: paddle.bmm(a, b.transpose([0, 2, 1]))), [x, y]
    return (lambda a, b: paddle.matmul(a, b, left, right)), [x, y]


@operator(floats(2, 3))
def einsum(case, x):
    size = case.shape(x)[-1]
    if size == -1:
        return None
    weight = case.weight([size, case.one_of(_SIZES)])
    return (lambda t: paddle.einsum("...i,ij->...j", t, weight())), [x]


@operator(floats(3, 3), "layer")
def attention(case, x):
    size = case.shape(x)[-1]
    if size not in (4, 6, 8):
        return None
    layer = case.layer(("attention", size), lambda: nn.MultiHeadAttention(size, 2))
    return (lambda t: layer(t)), [x]


@operator(floats(3, 3), "layer")
def recurrent(case, x):
    size, both = case.shape(x)[-1], case.flag()
    if size == -1:
        return None
    kind = case.one_of([nn.LSTM, nn.GRU, nn.SimpleRNN])
    layer = case.layer((kind, size, both), lambda: kind(
        size, 4, direction="bidirect" if both else "forward"))
    return (lambda t: layer(t)[0]), [x]


# Images


@operator(floats(4, 4), "layer")
def conv2d(case, x):
    channels = case.shape(x)[1]
    if channels == -1:
        return None
    groups = case.one_of([g for g in (1, 1, 2, channels) if channels % g == 0])
    out = groups * case.one_of([1, 2])
    kernel = case.one_of([1, 2, 3, (3, 1)])
    padding = case.one_of([0, 1, "SAME", "VALID", [1, 0], [0, 1, 1, 0]])
    options = {"stride": case.one_of([1, 1, 2]), "dilation": case.one_of([1, 1, 2]),
               "groups": groups, "padding": padding,
               "bias_attr": None if case.flag() else False}
    if padding == "SAME":
        options["dilation"] = 1
    key = ("conv", channels, out, kernel, str(sorted(options.items(), key=str)))
    return case.layer(key, lambda: nn.Conv2D(channels, out, kernel, **options)), [x]


@operator(floats(4, 4), "layer")
def conv2d_last(case, x):
    """Channels last."""
    channels = case.shape(x)[3]
    if channels == -1:
        return None
    layer = case.layer(("nhwc", channels), lambda: nn.Conv2D(
        channels, 4, 3, padding=1, data_format="NHWC"))
    return layer, [x]


@operator(floats(4, 4), "layer")
def conv2d_transpose(case, x):
    channels = case.shape(x)[1]
    if channels == -1:
        return None
    groups = case.one_of([g for g in (1, 1, channels) if channels % g == 0])
    stride, extra = case.one_of([(1, 0), (2, 0), (2, 1)])
    return case.layer(("deconv", channels, groups, stride, extra), lambda: nn.Conv2DTranspose(
        channels, groups * 2, 3, stride=stride, padding=1, output_padding=extra,
        groups=groups)), [x]


@operator(floats(3, 3), "layer")
def conv1d(case, x):
    channels = case.shape(x)[1]
    if channels == -1:
        return None
    return case.layer(("conv1d", channels), lambda: nn.Conv1D(channels, 4, 3, padding=1)), [x]


@operator(floats(2, 4), "layer")
def batch_norm(case, x):
    channels = case.shape(x)[1]
    if channels == -1:
        return None
    kind = {2: nn.BatchNorm1D, 3: nn.BatchNorm1D, 4: nn.BatchNorm2D}[case.rank(x)]

    def make():
        layer = kind(channels)
        layer._mean.set_value(case.random.randn(channels).astype("float32"))
        layer._variance.set_value(case.random.uniform(0.5, 2, channels).astype("float32"))
        return layer
    return case.layer(("batch_norm", kind, channels), make), [x]


@operator(floats(2), "layer")
def layer_norm(case, x):
    shape = case.shape(x)
    sizes = shape[-case.integer(1, len(shape) - 1):]
    if -1 in sizes:
        return None
    return case.layer(("layer_norm", *sizes), lambda: nn.LayerNorm(sizes)), [x]


@operator(floats(4, 4), "layer")
def other_norms(case, x):
    channels = case.shape(x)[1]
    if channels == -1:
        return None
    groups = case.one_of([g for g in (1, 2, channels) if channels % g == 0])
    choices = [
        case.layer(("group_norm", groups, channels), lambda: nn.GroupNorm(groups, channels)),
        case.layer(("instance_norm", channels), lambda: nn.InstanceNorm2D(channels)),
        case.layer(("prelu", channels), lambda: nn.PReLU(channels))]
    if -1 not in case.shape(x)[1:]:
        choices.append(lambda t: F.local_response_norm(t, 3))
    return case.one_of(choices), [x]


@operator(floats(4, 4), "layer")
def pool(case, x):
    kernel, stride = case.one_of([2, 3, (2, 1)]), case.one_of([1, 2])
    padding, ceil, exclusive = case.one_of([0, 0, 1]), case.flag(), case.flag()
    size = case.one_of([1, 2, (3, 2)])
    return case.one_of([
        lambda t: F.max_pool2d(t, kernel, stride, padding, ceil_mode=ceil),
        lambda t: F.avg_pool2d(t, kernel, stride, padding, ceil_mode=ceil, exclusive=exclusive),
        lambda t: F.adaptive_avg_pool2d(t, size), lambda t: F.adaptive_max_pool2d(t, size),
        lambda t: list(F.max_pool2d(t, 2, 2, return_mask=True))]), [x]


@operator(floats(4, 4), "layer")
def interpolate(case, x):
    mode, align = case.one_of(["nearest", "bilinear", "bicubic"]), case.flag()
    where = case.one_of([{"scale_factor": 2.0}, {"scale_factor": [1.5, 0.5]}, {"size": [3, 7]}])
    options = {} if mode == "nearest" else {"align_corners": align}
    if mode == "bilinear" and not align:
        options["align_mode"] = case.integer(0, 1)
    return (lambda t: F.interpolate(t, mode=mode, **where, **options)), [x]


@operator(floats(4, 4), "layer")
def rearranged(case, x):
    return case.one_of([
        lambda t: F.pixel_shuffle(t, 2), lambda t: F.pixel_unshuffle(t, 2),
        lambda t: F.channel_shuffle(t, 2), lambda t: F.unfold(t, 2, 2),
        lambda t: F.temporal_shift(t, 1, 0.25)]), [x]


@operator(floats(4, 4), "layer")
def grid_sample(case, x):
    mode, padding = case.one_of(["bilinear", "nearest"]), case.one_of(["zeros", "border"])
    align = case.flag()
    weight = case.weight([1, 3, 2, 2])

    def function(t):
        grid = paddle.tanh(weight()) + t.mean([1, 2, 3]).reshape([-1, 1, 1, 1]) * 0
        return F.grid_sample(t, grid, mode, padding, align)
    return function, [x]


@operator(floats(3, 5))
def pad(case, x):
    amounts = [case.integer(0, 2) for _ in range(2 * (case.rank(x) - 2))]
    mode = case.one_of(["constant", "reflect", "replicate", "circular"])
    layout = {3: "NCL", 4: "NCHW", 5: "NCDHW"}[case.rank(x)]
    return (lambda t: F.pad(t, amounts, mode, data_format=layout)), [x]


@operator(floats(1))
def pad_all(case, x):
    amounts = [n for size in case.shape(x)
               for n in ([0, 0] if size == -1 else [case.integer(0, 1), case.integer(0, 1)])]
    number = case.number(-1, 1)
    return (lambda t: F.pad(t, amounts, value=number)), [x]


# Reductions, sorting


@operator(floats(1))
def softmax(case, x):
    axis = case.axis(x)
    return case.one_of([lambda t: F.softmax(t, axis), lambda t: F.log_softmax(t, axis)]), [x]


@operator(floats(1))
def reduce(case, x):
    rank = case.rank(x)
    axes = case.draw(st.lists(st.integers(0, rank - 1), unique=True, max_size=rank))
    axes = [axis - rank if case.flag() else axis for axis in axes] or None
    keep = case.flag()
    function = case.one_of([paddle.sum, paddle.mean, paddle.max, paddle.min, paddle.prod,
                            paddle.logsumexp, paddle.amax, paddle.amin])
    return (lambda t: function(t, axes, keepdim=keep)), [x]


@operator(integers)
def reduce_integers(case, x):
    axis = case.axis(x) if case.rank(x) else None
    return case.one_of([lambda t: paddle.sum(t, axis), lambda t: paddle.max(t, axis),
                        lambda t: paddle.cumsum(t, axis)]), [x]


@operator(floats(1))
def norm(case, x):
    axis, keep = case.axis(x), case.flag()
    return case.one_of([
        lambda t: paddle.linalg.norm(t, 2, axis, keep),
        lambda t: paddle.linalg.norm(t, 1, axis, keep),
        lambda t: paddle.linalg.norm(t), lambda t: F.normalize(t, axis=axis)]), [x]


@operator(floats(1))
def cumulative(case, x):
    axis = case.axis(x)
    return case.one_of([lambda t: paddle.cumsum(t, axis), lambda t: paddle.cumsum(t),
                        lambda t: paddle.cumprod(t, axis)]), [x]


@operator(floats(1))
def sort(case, x):
    axis, largest = case.axis(x), case.flag()
    k = case.integer(1, max(1, min(a.shape[axis] for a in case.lanes[x][:2])))
    return case.one_of([
        lambda t: list(paddle.topk(t, k, axis, largest)),
        lambda t: paddle.sort(t, axis, largest), lambda t: paddle.argsort(t, axis, largest),
        lambda t: list(paddle.kthvalue(t, k, axis))]), [x]


@operator(floats(1))
def argmax(case, x):
    axis, keep = case.one_of([case.axis(x), None]), case.flag()
    dtype = case.one_of(["int64", "int32"])
    function = case.one_of([paddle.argmax, paddle.argmin])
    return (lambda t: function(t, axis, keep and axis is not None, dtype)), [x]


# Shapes


@operator(anything(2))
def transpose(case, x):
    order = case.draw(st.permutations(range(case.rank(x))))
    return (lambda t: paddle.transpose(t, order)), [x]


@operator(anything(1))
def reshape(case, x):
    shape = case.shape(x)
    start = case.integer(0, len(shape) - 1)
    stop = case.integer(start, len(shape) - 1)
    known = case.known_axis(x)
    size = shape[known] if known is not None else 1
    split = [n for n in (2, 3) if size % n == 0]
    choices = [lambda t: paddle.flatten(t, start, stop), lambda t: t.reshape([-1]),
               lambda t: t.reshape([paddle.shape(t)[0], -1]), lambda t: t.reshape([0, -1, 1])]
    if split and -1 not in shape[1:]:
        n = case.one_of(split)
        new = [0 if i == 0 else size for i, size in enumerate(shape[:known])]
        new += [n, size // n, *shape[known + 1:]]
        if known or shape[0] != -1:
            choices += [lambda t: t.reshape(new)] * 2
    return case.one_of(choices), [x]


@operator(anything())
def unsqueeze(case, x):
    rank = case.rank(x)
    if rank > 5:
        return None
    axis = case.one_of([case.integer(0, rank), -1, [0, rank + 1]])
    return (lambda t: paddle.unsqueeze(t, axis)), [x]


@operator(lambda case, x: 1 in case.shape(x))
def squeeze(case, x):
    ones = [i for i, size in enumerate(case.shape(x)) if size == 1]
    axes = case.one_of([ones, ones[0], ones[-1] - case.rank(x)])
    return (lambda t: paddle.squeeze(t, axes)), [x]


@operator(anything(1))
def slice_(case, x):
    axis = case.axis(x)
    size = min(a.shape[axis] for a in case.lanes[x][:2])
    start, step = case.integer(-size, size - 1), case.integer(1, 2)
    stop = case.one_of([size, -1, 2 ** 31 - 1, start + 1 if start != -1 else size])
    before = (slice(None),) * (axis % case.rank(x))
    return case.one_of([
        lambda t: paddle.slice(t, [axis % t.ndim], [start], [stop]),
        lambda t: paddle.strided_slice(t, [axis % t.ndim], [start], [stop], [step]),
        lambda t: t[(*before, start)], lambda t: t[(*before, slice(start, None, step))],
        lambda t: t[..., None], lambda t: t[(*before, slice(None, None, -1))],
        lambda t: t[0]]), [x]


@operator(anything(1))
def concat(case, x):
    axis = case.axis(x)
    several = [x, *(case.another(lambda i: case.dtype(i) == case.dtype(x) and
                                 case.rank(i) == case.rank(x))
                    for _ in range(case.integer(1, 2)))]
    return case.one_of([lambda *t: paddle.concat(list(t), axis),
                        lambda *t: paddle.stack(list(t), axis),
                        lambda *t: paddle.concat([*t, t[0]], axis)]), several


@operator(floats(1))
def add_n(case, x):
    y = case.another(lambda i: case.shape(i) == case.shape(x) and case.dtype(i) == "float32")
    return (lambda a, b: paddle.add_n([a, b, a])), [x, y]


@operator(anything(1))
def split(case, x):
    axis = case.known_axis(x)
    if axis is None:
        return None
    size = case.shape(x)[axis]
    parts = [n for n in (2, 3, 4) if size % n == 0]
    choices = []
    if x < len(case.spec):
        # Paddle aborts where the size is not known while it traces; inputs' sizes are.
        choices += [lambda t: paddle.unbind(t, axis), lambda t: paddle.unstack(t, axis)]
    if parts:
        n = case.one_of(parts)
        choices += [lambda t: paddle.split(t, n, axis), lambda t: paddle.chunk(t, n, axis)]
    if size > 1:
        first = case.integer(1, size - 1)
        choices += [lambda t: paddle.split(t, [first, size - first], axis),
                    lambda t: paddle.split(t, [first, -1], axis)]
    return (case.one_of(choices), [x]) if choices else None


@operator(anything(1))
def tile(case, x):
    shape, rank = case.shape(x), case.rank(x)
    times = [case.one_of([1, 1, 2]) for _ in range(rank)]
    n, axis = case.integer(2, 3), case.axis(x)
    choices = [lambda t: paddle.repeat_interleave(t, 2, axis)]
    if case.dtype(x) != "bool":  # there Paddle asks for stop_gradient of one kind or the other
        wide = [-1 if size != 1 else n for size in shape]
        choices += [lambda t: paddle.tile(t, times), lambda t: paddle.expand(t, wide),
                    lambda t: paddle.expand(t, [n, *[-1] * rank])]
    return case.one_of(choices), [x]


@operator(anything(1))
def moved(case, x):
    axis, shift = case.axis(x), case.integer(-2, 2)
    return case.one_of([lambda t: paddle.flip(t, [axis]), lambda t: paddle.roll(t, shift, axis),
                        lambda t: paddle.roll(t, shift)]), [x]


@operator(floats(2))
def triangle(case, x):
    offset = case.integer(-1, 1)
    return case.one_of([lambda t: paddle.tril(t, offset), lambda t: paddle.triu(t, offset),
                        lambda t: paddle.diagonal(t, 0), lambda t: paddle.diag_embed(t)]), [x]


# Indices


@operator(anything(1))
def gather(case, x):
    axis = case.axis(x)
    size = min(a.shape[axis] for a in case.lanes[x][:2])
    weight = case.weight([case.integer(1, 3)], size)
    return case.one_of([lambda t: paddle.gather(t, weight(), axis % t.ndim),
                        lambda t: paddle.index_select(t, weight(), axis),
                        lambda t: t[weight()] if axis == 0 else paddle.gather(t, weight())]), [x]


@operator(floats(2))
def gather_nd(case, x):
    size = min(min(a.shape) for a in case.lanes[x][:2])
    weight = case.weight([2, 2], size)
    return (lambda t: paddle.gather_nd(t, weight())), [x]


@operator(floats(2))
def along_axis(case, x):
    axis = case.axis(x)
    return case.one_of([
        lambda t: paddle.take_along_axis(t, paddle.argsort(t, axis), axis),
        lambda t: paddle.index_sample(t, paddle.argsort(t, -1)[:, :1]),
        lambda t: paddle.put_along_axis(t, paddle.argsort(t, axis), 1.5, axis)]), [x]


@operator(floats(1))
def assigned(case, x):
    """A slice of a tensor overwritten."""
    number = case.number(-1, 1)

    def function(t):
        return paddle.static.setitem(t.clone(), 0, number)
    return function, [x]


@operator(floats())
def made(case, x):
    """Tensors that depend on nothing, or on a shape alone."""
    n, number = case.integer(1, 4), case.number(-2, 2)
    return case.one_of([
        lambda t: paddle.arange(n).astype("float32") + t.mean(),
        lambda t: paddle.full([n, 2], number) * t.mean(), lambda t: paddle.eye(n) + t.mean(),
        lambda t: paddle.linspace(0, 1, n) * t.sum(),
        lambda t: paddle.zeros(paddle.shape(t)) + number,
        lambda t: paddle.to_tensor([1.0, 2.0, number]) + t.mean(),
        lambda t: paddle.ones([n], "int64") + paddle.numel(t)]), [x]


@st.composite
def cases(draw):
    """Strategy of :class:`Case`."""
    return Case(draw)
