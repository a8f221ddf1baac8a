"""Histograms, scales over time, plots and the HTML report."""

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nets import SmallNet, warmed
from paddle import nn

import paddleq
from paddleq.analysis import ScaleHistory, layer_errors, report, sensitivity
from paddleq.analysis.distributions import Distribution, Distributions, Histogram
from paddleq.analysis.report import plots
from paddleq.engine import eager_evaluation
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ExportError,
    ModelError,
    NonFiniteError,
)
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.graph.calls import capture_calls
from paddleq.observers import KLObserver


def calibrated(net, data, quantizer="AbsmaxQuantizer", **options):
    ptq = paddleq.PTQ(quantizer)
    quantized = ptq.quantize(net, **options)
    ptq.calibrate(quantized, data)
    return quantized


# --- histograms

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(arrays(np.float32, st.integers(0, 20), elements=FLOATS), max_size=5))
def test_a_streaming_histogram_equals_one_over_all_values(parts):
    histogram = Histogram(bins=64)
    for part in parts:
        histogram.add(part)
    values = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)
    assert histogram.total == values.size == histogram.counts.sum()
    if not values.size:
        return
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    top = histogram.top or 1.0
    assert np.array_equal(histogram.counts, np.histogram(values, 64, (-top, top))[0])
    if values.any():
        assert np.abs(values).max() < top
    if next(part for part in parts if part.size).any():  # after leading zeros the range starts at 1
        assert top / 2 <= np.abs(values).max()
    for bars in (1, 7, 64):
        for low, high in ((None, 2.0 * top), (-9.0 * top, None), (values.min(), values.max())):
            counts, edges = histogram.rebin(low, high, bars)
            assert counts.sum() == values.size and 0 < len(counts) <= bars
            assert len(edges) == len(counts) + 1
            assert edges[0] <= values.min() and (low is None or edges[0] <= low)
            assert edges[-1] >= values.max() and (high is None or edges[-1] >= high)


def distributions_of(model, batches):
    found = Distributions(model)
    with eager_evaluation(model):
        found.add_weights()
        with capture_calls(found.layers, found.add_call):
            for x in batches:
                model(x)
    return found.found


def test_distributions_describe_the_inputs_of_quantizers():
    rng = np.random.RandomState(0)
    batches = [rng.randn(30, 4).astype("float32") * scale for scale in (1.0, 3.0)]
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    ptq = paddleq.PTQ("HistQuantizer", hist_percent=0.9)
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, batches)
    weight, activation = distributions_of(quantized, map(paddle.to_tensor, batches))["0"]
    x, w = np.concatenate(batches), net[0].weight.numpy()
    abs_max = quantized[0].activation_quantizer.abs_max.item()
    assert activation.name == "0.activation_quantizer" and activation.part == "activation"
    assert activation.histogram.total == x.size
    assert (activation.histogram.low, activation.histogram.high) == (x.min(), x.max())
    assert (activation.low, activation.high) == pytest.approx((-abs_max * 128 / 127, abs_max))
    outside = (x > abs_max) | (x < -abs_max * 128 / 127)
    assert activation.clipped == outside.sum() > 0
    assert activation.clipped_share == outside.mean() and activation.fixed
    largest = np.abs(w).max(0)
    assert weight.high == pytest.approx(largest.max())
    assert weight.narrowest[1] == pytest.approx(largest.min())
    assert weight.clipped == 0 and not weight.fixed and weight.histogram.total == w.size


def test_clipping_limits_of_pact_and_of_affine_ranges():
    x = paddle.to_tensor(np.linspace(-1.0, 3.0, 64).reshape(16, 4).astype("float32"))
    pact = paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(
        nn.Sequential(nn.Linear(4, 4)))
    pact(x)
    for parameter in pact[0].activation_preprocess.parameters():
        parameter.set_value(paddle.full_like(parameter, 0.5))
    pact.eval()
    found = {each.part: each for each in distributions_of(pact, [x])["0"]}["activation"]
    assert (found.low, found.high) == (-0.5, 0.5)
    assert found.clipped == (np.abs(x.numpy()) > 0.5).sum()
    affine = SimQAT().apply(nn.Sequential(nn.Linear(4, 4)))
    affine(x)
    affine.eval()
    found = {each.part: each for each in distributions_of(affine, [x])["0"]}
    low, high = found["activation"].low, found["activation"].high
    assert (low, high) == pytest.approx((-1.0, 3.0), abs=0.02)
    assert found["output"].histogram.total == 64


# --- scales over time


@pytest.mark.parametrize("quantizer", ["AbsmaxQuantizer", "KLQuantizer"])
def test_recorded_scales_equal_calibrations_on_fewer_batches(quantizer, digits):
    batches = digits.batches(16, 4)
    net = warmed(SmallNet(), batches[0])
    ptq = paddleq.PTQ(quantizer)
    quantized = ptq.quantize(net)
    with ScaleHistory(quantized) as history:
        ptq.calibrate(quantized, batches)
        quantized(batches[0])  # not a step of calibration
    quantized(batches[0])
    scales = history.scales["conv2.activation_quantizer"]
    assert [scale.step for scale in scales] == [0, 1, 2, 3]
    for count, scale in enumerate(scales, start=1):
        until = calibrated(net, batches[:count], quantizer)
        expected = until.conv2.activation_quantizer.scale.item()
        assert scale.low == scale.high == pytest.approx(expected, rel=1e-6)
    weight = history.scales["conv1.weight_quantizer"][-1]
    largest = np.abs(net.conv1.weight.numpy()).max((1, 2, 3))
    assert (weight.low, weight.high) == pytest.approx((largest.min() / 127, largest.max() / 127))


def test_scale_history_of_training():
    net = paddleq.QAT().quantize(nn.Sequential(nn.Linear(2, 2)))
    history, largest = ScaleHistory(net, every=2), []
    with history:
        for step in range(5):
            net.train()
            net(paddle.full([1, 2], float(step + 1)))
            largest.append(net[0].activation_quantizer.scale.item())
            net.eval()
            net(paddle.full([1, 2], 99.0))
    assert [scale.step for scale in history.scales["0.activation_quantizer"]] == [0, 2, 4]
    assert [scale.high for scale in history.scales["0.activation_quantizer"]] == largest[::2]
    net.train()
    net(paddle.full([1, 2], 1.0))
    assert len(history.scales["0.activation_quantizer"]) == 3


def test_scale_history_leaves_calibrating_observers_unchanged(digits):
    batches = digits.batches(16, 2)
    net = warmed(SmallNet(), batches[0])
    watched = paddleq.PTQ().quantize(net)
    with ScaleHistory(watched):
        paddleq.calibrate(watched, batches)
    plain = calibrated(net, batches, "KLQuantizer")
    for key, value in plain.state_dict().items():
        assert np.array_equal(value.numpy(), watched.state_dict()[key].numpy()), key
    assert isinstance(watched.conv1.activation_quantizer.observer, KLObserver)


def test_invalid_arguments_of_a_scale_history():
    with pytest.raises(ConfigError, match="every"):
        ScaleHistory(every=0)
    with pytest.raises(ModelError, match="needs a model"), ScaleHistory():
        pass
    with pytest.raises(ConfigTypeError, match="paddle.nn.Layer"), ScaleHistory("net"):
        pass


# --- plots

SVG = "{http://www.w3.org/2000/svg}"


def check_svg(figure):
    """The figure gives the same well-formed SVG with a title and a description each time."""
    text = plots.to_svg(figure, "<title>", "a & b")
    assert plots.to_svg(figure, "<title>", "a & b") == text
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img" and root.find(f"{SVG}title").text == "<title>"
    assert root.find(f"{SVG}desc").text == "a & b"
    return text


def vertical_lines(axes, style):
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == style]


@given(st.lists(st.floats(-20.0, 60.0), min_size=1, max_size=12))
def test_bar_lengths_are_the_values(values):
    rows = {f"<layer&{i}>": (value, value / 2) for i, value in enumerate(values)}
    (axes,) = plots.bars(rows, ("a", "b"), "dB").axes
    for bars, share in zip(axes.containers, (1.0, 0.5)):
        assert [bar.get_width() for bar in bars] == pytest.approx([v * share for v in values])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_bars_without_a_value_and_without_an_error():
    rows = {"a": (None, 3.0), "b": (math.inf, -math.inf)}
    figure = plots.bars(rows, ("x", "y"), "dB")
    (axes,) = figure.axes
    first, second = axes.containers
    assert len(first) == 1 and len(second) == 2
    assert first[0].get_width() > second[0].get_width() == 3.0 > 0 > second[1].get_width()
    text = check_svg(figure)
    assert "no error" in text and "nan" not in text


def test_a_histogram_has_a_logarithmic_axis_and_its_clipping_limits():
    histogram = Histogram(bins=4)
    histogram.add(np.repeat(np.float32([-1.5, 0.5, 1.5]), [1, 100, 10000]))
    found = Distribution("conv.weight_quantizer", histogram, low=-1.0, high=1.5,
                         narrowest=(-0.5, 1.5))
    figure = plots.histograms([found, found], "conv")
    for axes in figure.axes:
        assert axes.get_yscale() == "log" and axes.get_ylim()[0] > 0
        (stairs,) = axes.patches
        assert stairs.get_data().values.tolist() == [1, 0, 100, 10000]
        assert vertical_lines(axes, "-") == [-1.0, 1.5] and vertical_lines(axes, "--") == [-0.5]
    check_svg(figure)
    image = plots.to_image(figure)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.min() < 100


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [1.0]])
def test_lines_follow_the_values(values):
    figure = plots.lines([("largest", [0, 5, 10][:len(values)], values)])
    (axes,) = figure.axes
    (line,) = axes.lines
    assert list(line.get_ydata()) == values
    assert list(line.get_xdata()) == [0, 5, 10][:len(values)]
    assert (line.get_marker() == "o") == (len(values) == 1)  # a line of one point is invisible
    check_svg(figure)


# --- the page


class Page(HTMLParser):
    """Parsed page; its tags must be balanced."""

    VOID = {"meta", "link", "br", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.rows, self.headings, self.cell = [], [], None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td", "h1", "h2", "h3", "dd"):
            self.cell = []

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.rows[-1].append("".join(self.cell))
        if tag in ("h1", "h2", "h3"):
            self.headings.append("".join(self.cell))

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)


def read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return text, Page(text)


def test_the_report_contains_the_results_of_the_analysis(digits, tmp_path):
    batches = digits.batches(16, 3)
    net = warmed(SmallNet(), batches[0])
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net, fuse=True)
    with ScaleHistory(quantized) as history:
        ptq.calibrate(quantized, batches)
    path = tmp_path / "folder" / "report.html"
    report(quantized, path, data=iter(batches), history=history,
           sensitivities=sensitivity(quantized, batches), title="Digits <b>&amp;")
    text, page = read(path)
    errors = layer_errors(quantized, batches)
    rows = {row[0]: row for row in page.rows}
    assert page.rows[0][3:6] == ["alone, dB", "accumulated, dB", "clipped"]
    for row in errors:
        assert rows[row.name][1:5] == ["Conv2D" if "conv" in row.name else "Linear", "quantized",
                                       f"{row.alone:.1f}", f"{row.accumulated:.1f}"]
    assert rows["bn1"][2] == "folded" and rows["bn1"][-1] == "folded into conv1"
    assert page.headings[:4] == ["Digits <b>&amp;", "Errors of layers", "Sensitivity", "Layers"]
    assert {"conv1", "conv2", "conv3", "fc"} <= set(page.headings)
    assert f"{errors.output:.1f} dB" in text and errors.worst()[0] in text
    assert f"paddle {paddle.__version__}" in text and paddleq.__version__ in text
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    moved = sum(len({(s.low, s.high) for s in each}) > 1 for each in history.scales.values())
    assert len(figures) == 2 + 2 * 4 + moved and moved >= 1
    for figure in figures:
        ElementTree.fromstring(figure)
    # The page is self-contained.
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action")] == []
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # namespaces of SVG
    assert ("html", "lang", "en") in page.attributes and "@import" not in text
    assert len(text) < 200_000
    assert os.listdir(path.parent) == ["report.html"]


def test_the_report_is_deterministic(digits, tmp_path):
    batches = digits.batches(16, 2)
    net = warmed(SmallNet(), batches[0])
    quantized = calibrated(net, batches)
    before = quantized(batches[0]).numpy()
    for name in ("a", "b"):
        report(quantized, str(tmp_path / name), batches, float_model=net, num_batches=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(before, quantized(batches[0]).numpy())


def test_a_report_without_data_shows_weights_only(tmp_path):
    quantized = paddleq.QAT().quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))  # untrained
    report(quantized, tmp_path / "r.html")
    text, page = read(tmp_path / "r.html")
    assert page.headings == ["Sequential", "Layers", "Values and clipping limits", "0"]
    assert text.count("<svg") == 1 and "no scale yet" in text and "int8" in text


def test_a_report_with_a_metric_and_restored_layers(tmp_path):
    x = paddle.randn([16, 4])
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    quantized = calibrated(net, [x])
    expected = net(x)
    found = sensitivity(quantized, metric=lambda model: -(model(x) - expected).abs().max())
    paddleq.engine.restore_float(quantized, {"0": "for <reasons>"})
    history = ScaleHistory()
    history.record(quantized, 0)
    report(quantized, tmp_path / "r.html", [x], sensitivities=found, history=history)
    text, page = read(tmp_path / "r.html")
    rows = {row[0]: row for row in page.rows}
    assert rows["0"][2] == "left" and rows["0"][-1] == "for <reasons>"
    assert "Drop of the metric" in text and "No scale changed." in text


def test_the_reported_size_is_that_of_the_export(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 64, 3), nn.ReLU(), nn.Conv2D(64, 128, 3), nn.Flatten(),
                        nn.Linear(2048, 100))
    x = paddle.randn([2, 3, 8, 8])
    quantized = calibrated(net, [x])
    report(quantized, tmp_path / "r.html")
    paddleq.export.save(quantized, str(tmp_path / "m"), [x])
    said = re.search(r"<dd>([\d.]+) kB<small>(\d+)%", (tmp_path / "r.html").read_text("utf-8"))
    size = (tmp_path / "m.pdiparams").stat().st_size
    assert float(said[1]) * 1e3 == pytest.approx(size, rel=0.02)
    assert 25 <= int(said[2]) <= 27


def test_invalid_arguments_of_a_report(tmp_path):
    x = paddle.randn([4, 4])
    net = nn.Sequential(nn.Linear(4, 4))
    quantized = calibrated(net, [x])
    path = tmp_path / "r.html"
    with pytest.raises(ModelError, match="no quantized layer"):
        report(net, path)
    for arguments, name in (({"path": 3}, "path"), ({"history": {}}, "history"),
                            ({"sensitivities": []}, "sensitivities"), ({"title": 3}, "title")):
        with pytest.raises(ConfigTypeError, match=f"^{name} must be"):
            report(quantized, **{"path": path, **arguments})
    with pytest.raises(ConfigTypeError, match="must be an iterable of batches"):
        report(quantized, path, data=3)
    for arguments in ({"float_model": net}, {"num_batches": 1}):
        with pytest.raises(ConfigError, match="^data must be"):
            report(quantized, path, **arguments)
    with pytest.raises(ConfigError, match="num_batches"):
        report(quantized, path, [x], num_batches=0)
    with pytest.raises(NonFiniteError):
        report(quantized, path, [x * float("nan")])
    with pytest.raises(CalibrationError, match="not calibrated"):
        report(paddleq.PTQ().quantize(net), path, [x])
    assert not path.exists()
    path.mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        report(quantized, path)
    assert os.listdir(path) == [] and os.listdir(tmp_path) == ["r.html"]
