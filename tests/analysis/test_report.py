"""Pictures of a quantized model: histograms, scales over time, the HTML page."""

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
from paddleq.analysis.distributions import Distributions, Histogram
from paddleq.analysis.report import svg
from paddleq.engine import capture_calls, eager_evaluation
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ExportError,
    ModelError,
    NonFiniteError,
)
from paddleq.observers import KLObserver


def calibrated(net, data, quantizer="AbsmaxQuantizer", **options):
    ptq = paddleq.PTQ(quantizer)
    quantized = ptq.quantize(net, **options)
    ptq.calibrate(quantized, data)
    return quantized


# --- histograms

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(arrays(np.float32, st.integers(0, 20), elements=FLOATS), max_size=5))
def test_a_streamed_histogram_is_that_of_all_values_at_once(parts):
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
    if next(part for part in parts if part.size).any():  # zeros first: it begins with 1
        assert top / 2 <= np.abs(values).max()
    for bars in (1, 7, 64):
        for low, high in ((None, 2.0 * top), (-9.0 * top, None), (values.min(), values.max())):
            counts, edges = histogram.shown(low, high, bars)
            assert counts.sum() == values.size and 0 < len(counts) <= bars
            assert len(edges) == len(counts) + 1
            assert edges[0] <= values.min() and (low is None or edges[0] <= low)
            assert edges[-1] >= values.max() and (high is None or edges[-1] >= high)


def seen(model, batches):
    found = Distributions(model)
    with eager_evaluation(model):
        found.see_weights()
        with capture_calls(found.layers, found.see):
            for x in batches:
                model(x)
    return found.found


def test_distributions_are_of_what_goes_into_the_quantizers():
    rng = np.random.RandomState(0)
    batches = [rng.randn(30, 4).astype("float32") * scale for scale in (1.0, 3.0)]
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    ptq = paddleq.PTQ("HistQuantizer", hist_percent=0.9)
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, batches)
    weight, activation = seen(quantized, map(paddle.to_tensor, batches))["0"]
    x, w = np.concatenate(batches), net[0].weight.numpy()
    threshold = quantized[0].activation_quantizer.threshold.item()
    assert activation.name == "0.activation_quantizer" and activation.part == "activation"
    assert activation.histogram.total == x.size
    assert (activation.histogram.low, activation.histogram.high) == (x.min(), x.max())
    assert (activation.low, activation.high) == pytest.approx((-threshold * 128 / 127, threshold))
    outside = (x > threshold) | (x < -threshold * 128 / 127)
    assert activation.clipped == outside.sum() > 0
    assert activation.share == outside.mean() and activation.fixed
    largest = np.abs(w).max(0)
    assert weight.high == pytest.approx(largest.max())
    assert weight.narrowest[1] == pytest.approx(largest.min())
    assert weight.clipped == 0 and not weight.fixed and weight.histogram.total == w.size


def test_limits_of_pact_and_of_affine_ranges():
    x = paddle.to_tensor(np.linspace(-1.0, 3.0, 64).reshape(16, 4).astype("float32"))
    pact = paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(
        nn.Sequential(nn.Linear(4, 4)))
    pact(x)
    for parameter in pact[0].activation_preprocess.parameters():
        parameter.set_value(paddle.full_like(parameter, 0.5))
    pact.eval()
    found = {each.part: each for each in seen(pact, [x])["0"]}["activation"]
    assert (found.low, found.high) == (-0.5, 0.5)
    assert found.clipped == (np.abs(x.numpy()) > 0.5).sum()
    affine = paddleq.SimulatedQuantizationAwareTraining().apply(nn.Sequential(nn.Linear(4, 4)))
    affine(x)
    affine.eval()
    found = {each.part: each for each in seen(affine, [x])["0"]}
    low, high = found["activation"].low, found["activation"].high
    assert (low, high) == pytest.approx((-1.0, 3.0), abs=0.02)
    assert found["output"].histogram.total == 64


# --- scales over time


@pytest.mark.parametrize("quantizer", ["AbsmaxQuantizer", "KLQuantizer"])
def test_scales_of_a_calibration_are_those_after_each_batch(quantizer, digits):
    batches = digits.batches(16, 4)
    net = warmed(SmallNet(), batches[0])
    ptq = paddleq.PTQ(quantizer)
    quantized = ptq.quantize(net)
    with ScaleHistory(quantized) as history:
        ptq.calibrate(quantized, batches)
        quantized(batches[0])  # nothing is learned here
    quantized(batches[0])
    scales = history.scales["conv2.activation_quantizer"]
    assert [scale.step for scale in scales] == [0, 1, 2, 3]
    for count, scale in enumerate(scales, start=1):
        until = calibrated(net, batches[:count], quantizer)
        expected = until.conv2.activation_quantizer.threshold.item()
        assert scale.low == scale.high == pytest.approx(expected, rel=1e-6)
    weight = history.scales["conv1.weight_quantizer"][-1]
    largest = np.abs(net.conv1.weight.numpy()).max((1, 2, 3))
    assert (weight.low, weight.high) == pytest.approx((largest.min(), largest.max()))


def test_scales_of_training():
    net = paddleq.QAT().quantize(nn.Sequential(nn.Linear(2, 2)))
    history, largest = ScaleHistory(net, every=2), []
    with history:
        for step in range(5):
            net.train()
            net(paddle.full([1, 2], float(step + 1)))
            largest.append(net[0].activation_quantizer.threshold.item())
            net.eval()
            net(paddle.full([1, 2], 99.0))
    assert [scale.step for scale in history.scales["0.activation_quantizer"]] == [0, 2, 4]
    assert [scale.high for scale in history.scales["0.activation_quantizer"]] == largest[::2]
    net.train()
    net(paddle.full([1, 2], 1.0))
    assert len(history.scales["0.activation_quantizer"]) == 3


def test_a_histogram_observer_that_calibrates_is_left_as_it_is(digits):
    batches = digits.batches(16, 2)
    net = warmed(SmallNet(), batches[0])
    watched = paddleq.PTQ().quantize(net)
    with ScaleHistory(watched):
        paddleq.calibrate(watched, batches)
    plain = calibrated(net, batches, "KLQuantizer")
    for key, value in plain.state_dict().items():
        assert np.array_equal(value.numpy(), watched.state_dict()[key].numpy()), key
    assert isinstance(watched.conv1.activation_quantizer.observer, KLObserver)


def test_wrong_arguments_of_a_history():
    with pytest.raises(ConfigError, match="every"):
        ScaleHistory(every=0)
    with pytest.raises(ModelError, match="a model to watch"), ScaleHistory():
        pass
    with pytest.raises(ConfigTypeError, match="paddle.nn.Layer"), ScaleHistory("net"):
        pass


# --- plots

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text, kind):
    """The elements of a plot that have this class; the plot must be well-formed XML."""
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img" and root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    return [each for each in root.iter() if kind in each.attrib.get("class", "").split()]


@given(st.lists(st.floats(-20.0, 60.0), min_size=1, max_size=12))
def test_bars_are_as_long_as_their_values(values):
    rows = [(f"<layer&{i}>", (value, value / 2)) for i, value in enumerate(values)]
    text = svg.bars(rows, ("a", "b"), "bars", "dB")
    for series, share in (("series0", 1.0), ("series1", 0.5)):
        lengths = [float(each.attrib["width"]) for each in drawn(text, series)[1:]]  # legend first
        assert len(lengths) == len(values)
        longest = max(range(len(values)), key=lambda i: abs(values[i]))
        if abs(values[longest]) > 1e-3:
            unit = lengths[longest] / abs(values[longest] * share)
            assert lengths == pytest.approx([abs(v * share) * unit for v in values], abs=0.2)
    labels = [each.text for each in drawn(text, "end")]
    assert labels == [row[0] for row in rows]


def test_bars_without_a_value_and_without_an_error():
    rows = [("a", (None, 3.0)), ("b", (float("inf"), -float("inf")))]
    text = svg.bars(rows, ("x", "y"), "t", "dB")
    assert len(drawn(text, "series0")) == 2 and len(drawn(text, "series1")) == 3
    assert "no error" in text and "nan" not in text and "inf dB" not in text.replace("-inf", "")


def test_a_histogram_is_drawn_to_a_logarithmic_scale():
    counts, edges = np.array([1, 0, 100, 10000]), np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    text = svg.histogram(counts, edges, [-1.0, 1.5], [-0.5, 1.5], "values")
    (path,) = drawn(text, "series0")
    heights = [float(y) for y in re.findall(r"L[\d.]+,([\d.]+)H", path.attrib["d"])]
    assert heights[0] - heights[2] == pytest.approx(heights[2] - heights[3], abs=0.2)
    assert heights[1] == 140 > heights[0]  # no value, and one
    solid = [each for each in drawn(text, "limit") if "narrow" not in each.attrib["class"]]
    assert [float(each.find(f"{SVG}title").text) for each in solid] == [-1.0, 1.5]
    assert [float(each.find(f"{SVG}title").text) for each in drawn(text, "narrow")] == [-0.5]
    start, end = (float(each.attrib["x1"]) for each in solid)
    assert (end - start) / (350 - 38) == pytest.approx(2.5 / 4, abs=0.01)


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
def test_lines_follow_the_values(values):
    text = svg.lines([("largest", [0, 5, 10], values)], "scale")
    (line,) = drawn(text, "line0")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
    rises = [points[0][1] - y for _, y in points]
    expected = [value - values[0] for value in values]
    unit = rises[1] / expected[1] if expected[1] else 0.0
    assert rises == pytest.approx([value * unit for value in expected], abs=0.2)
    assert all(10 <= y <= 122 for _, y in points)


def test_one_step_is_a_dot():
    assert len(drawn(svg.lines([("largest", [3], [1.0])], "scale"), "dot0")) == 1


# --- the page


class Page(HTMLParser):
    """What a browser makes of a page: the tags must be balanced."""

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


def test_the_page_says_what_the_analysis_says(digits, tmp_path):
    batches = digits.batches(16, 3)
    net = warmed(SmallNet(), batches[0])
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net, fuse=True)
    with ScaleHistory(quantized) as history:
        ptq.calibrate(quantized, batches)
    path = tmp_path / "folder" / "report.html"
    report(quantized, path, loader=iter(batches), history=history,
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
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    moved = sum(len({(s.low, s.high) for s in each}) > 1 for each in history.scales.values())
    assert len(plots) == 2 + 2 * 4 + moved and moved >= 1
    for plot in plots:
        ElementTree.fromstring(plot)
    # What is on the page is in the page.
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action")] == []
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert ("html", "lang", "en") in page.attributes and "@import" not in text
    assert len(text) < 200_000
    assert os.listdir(path.parent) == ["report.html"]


def test_the_same_arguments_give_the_same_page(digits, tmp_path):
    batches = digits.batches(16, 2)
    net = warmed(SmallNet(), batches[0])
    quantized = calibrated(net, batches)
    before = quantized(batches[0]).numpy()
    for name in ("a", "b"):
        report(quantized, str(tmp_path / name), batches, float_model=net, batch_num=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(before, quantized(batches[0]).numpy())


def test_a_page_without_data_has_weights_only(tmp_path):
    quantized = paddleq.QAT().quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))  # untrained
    report(quantized, tmp_path / "r.html")
    text, page = read(tmp_path / "r.html")
    assert page.headings == ["Sequential", "Layers", "Values, and where they are clipped", "0"]
    assert text.count("<svg") == 1 and "no scale yet" in text and "int8" in text


def test_a_page_with_sensitivities_by_a_metric_and_layers_left_float(tmp_path):
    x = paddle.randn([16, 4])
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    quantized = calibrated(net, [x])
    expected = net(x)
    found = sensitivity(quantized, metric=lambda model: -(model(x) - expected).abs().max())
    paddleq.engine.leave_float(quantized, {"0": "for <reasons>"})
    history = ScaleHistory()
    history.record(quantized, 0)
    report(quantized, tmp_path / "r.html", [x], sensitivities=found, history=history)
    text, page = read(tmp_path / "r.html")
    rows = {row[0]: row for row in page.rows}
    assert rows["0"][2] == "left" and rows["0"][-1] == "for <reasons>"
    assert "metric loses" in text and "None moved." in text


def test_the_size_is_that_of_the_export(tmp_path):
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


def test_wrong_arguments_of_a_report(tmp_path):
    x = paddle.randn([4, 4])
    net = nn.Sequential(nn.Linear(4, 4))
    quantized = calibrated(net, [x])
    path = tmp_path / "r.html"
    with pytest.raises(ModelError, match="no quantized layer"):
        report(net, path)
    for arguments, name in (({"path": 3}, "path"), ({"history": {}}, "history"),
                            ({"sensitivities": []}, "sensitivities"), ({"title": 3}, "title"),
                            ({"loader": 3}, "loader")):
        with pytest.raises(ConfigTypeError, match=f"^{name} must be"):
            report(quantized, **{"path": path, **arguments})
    for arguments in ({"float_model": net}, {"batch_num": 1}):
        with pytest.raises(ConfigError, match="^loader must be"):
            report(quantized, path, **arguments)
    with pytest.raises(ConfigError, match="batch_num"):
        report(quantized, path, [x], batch_num=0)
    with pytest.raises(NonFiniteError):
        report(quantized, path, [x * float("nan")])
    with pytest.raises(CalibrationError, match="not calibrated"):
        report(paddleq.PTQ().quantize(net), path, [x])
    assert not path.exists()
    path.mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        report(quantized, path)
    assert os.listdir(path) == [] and os.listdir(tmp_path) == ["r.html"]
