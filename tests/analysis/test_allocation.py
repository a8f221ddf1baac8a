"""Choice of float layers by cost: allocation, costs, and metrics that need no labels."""

import itertools

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Chain, SmallNet, save_float, warmed
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.analysis import AccuracyReport, keep_accuracy, sensitivity
from paddleq.analysis.accuracy import AccuracySearch
from paddleq.analysis.allocation import cheapest_allocations
from paddleq.analysis.layer_costs import layer_costs
from paddleq.engine import quantized_layers, quantizing_only
from paddleq.errors import ConfigError, ConfigTypeError
from paddleq.export.program.program import Program


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=3),
                min_size=1, max_size=5))
def test_allocations_are_the_least_degradation_of_each_cost(layers):
    """Against all combinations."""
    costs, losses = ([[pair[i] for pair in layer] for layer in layers] for i in range(2))

    def total(table, options):
        return sum(row[option] for row, option in zip(table, options))

    least = {}
    for options in itertools.product(*map(range, map(len, layers))):
        cost = total(costs, options)
        least[cost] = min(least.get(cost, 10 ** 6), total(losses, options))
    expected, best = [], 10 ** 6
    for cost in sorted(least):
        if least[cost] < best:
            best = least[cost]
            expected.append((cost, best))
    assert [(total(costs, options), total(losses, options))
            for options in cheapest_allocations(costs, losses)] == expected


@settings(max_examples=20)
@given(st.integers(0, 2 ** 31))
def test_allocations_of_large_costs_are_near_the_best(seed):
    """The rounding of each cost is at most 1/4096 of their sum."""
    rng = np.random.default_rng(seed)
    costs, losses = rng.integers(1, 10 ** 9, 12), rng.random(12)
    subsets = np.array(list(itertools.product([0, 1], repeat=12)))
    all_costs, all_losses = subsets @ costs, (1 - subsets) @ losses
    found = np.array(cheapest_allocations([[0, cost] for cost in costs],
                                          [[loss, 0.0] for loss in losses]))
    for options in found:
        cost, loss = options @ costs, (1 - options) @ losses
        rounded = cost - 12 / 4096 * costs.sum()
        assert loss <= all_losses[all_costs <= rounded].min(initial=np.inf) + 1e-12
    assert len(found) <= 256 and not found[0].any() and found[-1].all()


def test_costs_of_layers():
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(2, 4, 3, stride=2, padding=1)
            self.depthwise = nn.Conv2D(4, 4, 3, groups=4)
            self.up = nn.Conv2DTranspose(4, 6, 2, stride=2)
            self.fc = nn.Linear(6, 5)

        def forward(self, x):  # [3, 2, 8, 8] -> [3, 4, 4, 4] -> [3, 4, 2, 2] -> [3, 6, 4, 4]
            x = self.up(self.depthwise(self.conv(x)))
            return self.fc(x.flatten(2).transpose([0, 2, 1]))

    x = paddle.rand([3, 2, 8, 8])
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(Net())
    ptq.calibrate(net, [x])
    assert layer_costs(net, [x], "layers") == dict.fromkeys(("conv", "depthwise", "up", "fc"), 1.0)
    assert layer_costs(net, [x], "bytes") == {
        "conv": 4 * 4 * 2 * 9, "depthwise": 4 * 4 * 9, "up": 4 * 4 * 6 * 4, "fc": 4 * 6 * 5}
    assert layer_costs(net, [x], "macs") == {
        "conv": 3 * 16 * 4 * 2 * 9, "depthwise": 3 * 4 * 4 * 9, "up": 3 * 4 * 4 * 6 * 4,
        "fc": 3 * 16 * 6 * 5}


WIDTHS = (16, 64, 64, 4, 32, 8)


def chain(seed, bits=6):
    """Return (quantized chain, batches)."""
    paddle.seed(seed)
    batches = [paddle.randn([32, 16]) for _ in range(2)]
    ptq = paddleq.PTQ(paddleq.paddleslim.AbsmaxQuantizer(bits),
                      paddleq.paddleslim.PerChannelAbsmaxQuantizer(bits))
    net = ptq.quantize(Chain(WIDTHS))
    ptq.calibrate(net, batches)
    return net, batches


def errors_of_all_choices(net, batches):
    """Return float layers -> relative L2 error of the output, in float64."""
    def outputs(names):
        with quantizing_only(net, names), paddle.no_grad():
            return np.concatenate([net(x).numpy().astype(np.float64) for x in batches])

    names = [name for name, _ in quantized_layers(net)]
    reference = outputs([])
    return {left: np.linalg.norm(outputs([name for name in names if name not in left]) - reference)
            / np.linalg.norm(reference)
            for count in range(len(names)) for left in itertools.combinations(names, count)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cost", ["layers", "macs", "bytes"])
def test_the_error_is_met_at_nearly_the_least_cost(cost, seed):
    """Against all choices of the layers to restore."""
    net, batches = chain(seed)
    errors, costs = errors_of_all_choices(net, batches), layer_costs(net, batches[:1], cost)
    allowed = 0.5 * errors[()]
    best = min(sum(costs[name] for name in left) for left, error in errors.items()
               if error <= allowed)
    found = keep_accuracy(net, batches, "error", allowed, cost=cost)
    left = tuple(name for name in costs if name in found.left_float)
    np.testing.assert_allclose([found.drop, -found.quantized_metric],
                               [errors[left], errors[()]], rtol=1e-4)
    assert found.met and found.cost == cost
    spent = sum(costs[name] for name in left)
    assert found.cost_share == pytest.approx(spent / sum(costs.values()))
    assert spent <= 1.2 * best  # noise of layers is not quite additive
    assert (f"% of {cost}" in str(found)) == (cost != "layers")


@pytest.mark.parametrize("needed", [{"add"}, {"conv"}, {"add", "conv"}])
def test_layers_without_bytes_can_be_restored(needed):
    """They cost nothing, so the first choice contains them."""
    class Fixed(AccuracySearch):
        def run_on(self):
            self.names, self.trials = ["conv", "add", "fc"], []
            self.report = AccuracyReport(0.0, 1.0, 0.0, 0.0, 3)
            left = self._search()
            self._report_left(left)
            return left

        def _measure(self):
            self.sqnr = {"conv": 10.0, "add": 20.0, "fc": 30.0}
            self.costs = {"conv": 40.0, "add": 0.0, "fc": 80.0}

        def _evaluate(self, left):
            self.trials.append((len(left), 0.0))
            return float(needed <= set(left))

    search = Fixed([0], lambda model: 0.0, 0.0, cost="bytes")
    assert set(search.run_on()) == needed
    assert search.report.cost_share == pytest.approx(("conv" in needed) / 3)


def test_labels_are_compared_along_the_last_axis():
    net, batches = chain(0, bits=4)
    with paddle.no_grad():
        quantized = [net(x).numpy() for x in batches]
        with quantizing_only(net, []):
            reference = [net(x).numpy() for x in batches]
    drop = np.mean([a.argmax(-1) != b.argmax(-1) for a, b in zip(quantized, reference)])
    report = keep_accuracy(net, batches, "labels", 0.5 * drop)
    assert report.quantized_metric == pytest.approx(-drop) and drop > 0.05
    assert report.met and report.float_metric == 0.0 and report.left_float


@pytest.mark.parametrize("metric", ["error", "labels"])
def test_shuffled_data_is_compared_batch_by_batch(metric):
    """Each pass over a shuffled loader has other batches; the metric is of the same samples."""
    paddle.seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    samples = paddle.io.TensorDataset([paddle.randn([64, 8])])
    loaders = [paddle.io.DataLoader(samples, batch_size=16, shuffle=shuffle)
               for shuffle in (False, True)]
    ordered, shuffled = (paddleq.PTQ("AbsmaxQuantizer", quant_bits=4).quantize_with_accuracy(
        net, loader, metric, 1.0)[1] for loader in loaders)
    assert ordered.float_metric == shuffled.float_metric == 0.0
    assert shuffled.quantized_metric == pytest.approx(ordered.quantized_metric, rel=1e-4)
    assert -0.4 < ordered.quantized_metric < 0.0


class WithHead(nn.Layer):
    """A head that only training runs."""

    def __init__(self):
        super().__init__()
        self.body, self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 400)

    def forward(self, x):
        x = self.body(x)
        return (self.out(x), self.head(x)) if self.training else self.out(x)


def test_layers_that_calibration_left_float_do_not_count():
    """The last quantized layer is one that is computed; their bits and costs are not reported."""
    paddle.seed(0)
    net, data, ptq = WithHead(), [paddle.randn([16, 8])], paddleq.PTQ("AbsmaxQuantizer")
    with pytest.raises(paddleq.errors.AccuracyError) as caught:
        ptq.quantize_with_accuracy(net, data, "error", 1e-9)
    assert caught.value.report.layers == 2 and len(caught.value.report.left_float) == 1
    _, report = ptq.quantize_with_bits(net, data, [(8, 8)], max_cost=1.0)
    assert report.layers == {"body": (8, 8), "out": (8, 8)} and report.cost_share == 0.25


class LargestIndex(nn.Layer):
    def forward(self, x):
        return x.argmax(-1)


@pytest.mark.parametrize("metric, last", [
    ("labels", nn.Linear), ("labels", LargestIndex), ("error", LargestIndex)])
def test_outputs_that_cannot_be_compared_are_refused(metric, last):
    """With them the metric would be 0 whatever the layers compute."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1) if last is nn.Linear else last())
    with pytest.raises(ConfigError, match="metric must be .*a function of the model"):
        paddleq.PTQ("AbsmaxQuantizer").quantize_with_accuracy(net, [paddle.randn([8, 4])], metric,
                                                              0.0)


def test_probabilities_are_compared_as_logits():
    """The sensitivities of a softmax classifier are those of its centred logits, in float64."""
    class Classifier(nn.Layer):
        def __init__(self):
            super().__init__()
            self.chain = Chain(WIDTHS)

        def forward(self, x):
            return nn.functional.softmax(20.0 * self.chain(x))

    paddle.seed(1)
    batches = [paddle.randn([32, 16]) for _ in range(2)]
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(Classifier())
    ptq.calibrate(net, batches)

    def logits(names):
        with quantizing_only(net, names), paddle.no_grad():
            values = np.concatenate([20.0 * net.chain(x).numpy().astype(np.float64)
                                     for x in batches])
        return values - values.mean(-1, keepdims=True)

    reference = logits([])
    for row in sensitivity(net, batches):
        noise = ((logits([row.name]) - reference) ** 2).sum()
        expected = 10 * np.log10((reference ** 2).sum() / noise)
        assert row.sqnr == pytest.approx(expected, abs=0.01)


def test_the_float_share_of_the_cost_is_limited():
    net, batches = chain(0)
    costs = layer_costs(net, batches[:1], "macs")
    largest = max(costs.values()) / sum(costs.values())
    with pytest.raises(paddleq.errors.AccuracyError) as caught:
        keep_accuracy(net, batches, "error", 0.0, max_float=0.9 * largest, cost="macs")
    assert 0 < caught.value.report.cost_share <= 0.9 * largest
    for name, value in (("cost", "flops"), ("metric", "accuracy")):
        with pytest.raises(ConfigError, match=f"{name} must be one of"):
            keep_accuracy(net, batches, **{"metric": "error", "max_drop": 0.1, name: value})


@pytest.mark.parametrize("interface", ["PTQ", "quant_post_static"])
def test_operators_of_a_saved_model_stay_float(interface, tmp_path):
    """Those that the search restored have float weights in the file, which meets the error."""
    net = warmed(SmallNet(), paddle.rand([16, 1, 8, 8]))
    save_float(net, str(tmp_path / "float" / "net"), [1, 8, 8])
    batches = [paddle.rand([8, 1, 8, 8]) for _ in range(3)]
    settings = {"metric": "error", "max_drop": 0.005, "cost": "macs"}
    if interface == "PTQ":
        model, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_accuracy(
            paddleq.SavedModel(str(tmp_path / "float")), batches, fuse=True, **settings)
        paddleq.save_quantized_model(model, str(tmp_path / "out" / "model"))
        assert report.met and report.quantized_metric < -0.005
        quantized = report.layers - len(report.left_float)
    else:
        quantized = len(paddleq.quant_post_static(
            str(tmp_path / "float"), str(tmp_path / "out"), batches, algo="abs_max",
            quantizable_op_type=["conv2d", "depthwise_conv2d", "mul"], accuracy=settings))
    program = Program.load(str(tmp_path / "out" / "model.pdmodel"),
                           str(tmp_path / "out" / "model.pdiparams"))
    integers = [name for name, value in program.arrays.items() if value.dtype == np.int8]
    assert len(integers) == quantized and 0 < quantized < 4
    x = np.concatenate([batch.numpy() for batch in batches])
    (found,) = paddle_inference(str(tmp_path / "out" / "model"), [x])
    with paddle.no_grad():
        expected = net(paddle.to_tensor(x)).numpy()
    assert 1e-5 < relative_error(found, expected) < 0.006


@pytest.mark.parametrize("value, error, match", [
    (0.01, ConfigTypeError, "accuracy must be a mapping"),
    ({"metric": "error"}, ConfigError, "accuracy must have 'max_drop'"),
    ({"metric": "error", "max_dorp": 0.1}, ConfigError, "max_drop"),
    ({"metric": "error", "max_drop": -1.0}, ConfigError, "max_drop")])
def test_invalid_accuracy_of_quant_post_static(value, error, match, tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    save_float(net, str(tmp_path / "float" / "net"), [4])
    with pytest.raises(error, match=match):
        paddleq.quant_post_static(str(tmp_path / "float"), str(tmp_path / "out"),
                                  [paddle.rand([2, 4])], accuracy=value)
    assert not (tmp_path / "out").exists()


def test_few_layers_without_the_cost_are_restored():
    """The operators of the full scope have no bytes: one of them suffices, of 40."""
    class Operators(AccuracySearch):
        def run_on(self):
            self.names, self.trials = [*map(str, range(40)), "conv"], []
            self.report = AccuracyReport(0.0, 1.0, 0.0, 0.0, 41)
            left = self._search()
            self._report_left(left)
            return left

        def _measure(self):
            self.sqnr = {name: 20.0 + (name != "7") for name in self.names}
            self.costs = {name: 1000.0 * (name == "conv") for name in self.names}

        def _evaluate(self, left):
            self.trials.append((len(left), 0.0))
            return float("7" in left)

    search = Operators([0], lambda model: 0.0, 0.0, evaluations=10, cost="bytes")
    assert search.run_on() == ["7"] and search.report.costs == {"7": 0.0}
