"""VisualDL pages of the logs, and the HTML report, in a real browser.

Needs VisualDL, and for the browser selenium and Chromium with its driver on PATH (Debian: chromium,
chromium-driver). Screenshots are kept in out/browser.
"""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import paddle
import pytest
from nets import SmallNet, train_steps, warmed
from paddle.vision.models import mobilenet_v2
from paths import ROOT

import paddleq
from paddleq.analysis import ScaleHistory, VisualDLLogger, layer_errors, report, sensitivity
from paddleq.errors import ConfigError, ConfigTypeError, FormatError, ModelError
from paddleq.export.program.program import Program

PATIENCE = 300  # seconds for a condition, on a machine that other tests keep busy
SCREENSHOTS = ROOT / "out" / "browser"
SPEC = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "x")]
# No network but this machine's own: neither Chromium's services nor VisualDL's telemetry.
CHROMIUM = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1400,1000",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
NODES = """
const found = {};
for (const node of document.querySelectorAll("g.node")) {
    const title = node.querySelector("text").textContent;
    found[title] = (found[title] || 0) + 1;
}
return found;
"""
EDGES = "return document.querySelectorAll('g.edge-paths path, path.edge-path').length"


def on_path(name):
    """Return the path of a program. A missing program is a failure, not a skip."""
    found = shutil.which(name)
    assert found, f"no {name} on PATH; on Debian: apt-get install chromium chromium-driver"
    return found


@contextlib.contextmanager
def visualdl(folder, *options, logdir=None):
    """Address of a VisualDL that shows ``logdir`` (default: an empty folder), with these options.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}/app", folder / "visualdl.log"
    if logdir is None:
        logdir = folder / "logs"
        logdir.mkdir()
    # --language: a client that names none gets an error 500 otherwise.
    command = [pathlib.Path(sys.executable).parent / "visualdl", "--logdir", logdir, "--host",
               "127.0.0.1", "--port", port, "--language", "en", "--disable-telemetry", *options]
    with open(log, "wb") as output:
        server = subprocess.Popen([str(each) for each in command], stdout=output, stderr=output,
                                  start_new_session=True)
    try:
        until = time.monotonic() + PATIENCE
        while not answers(address):
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # its workers too
        server.wait()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def chromium(folder):
    """Start Chromium with a new profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = on_path("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in [*CHROMIUM, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options,
                              service=webdriver.ChromeService(on_path("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def said(driver):
    """Return the errors in the log of the page."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def keep(driver, name):
    """Keep a screenshot; more than a blank page must be on it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    assert driver.save_screenshot(str(path))
    assert path.stat().st_size > 20000


def nodes_and_edges(driver):
    """Titles of the nodes of the graph on the page, with their numbers, and the number of edges."""
    wait_for(driver, lambda: driver.find_elements("css selector", "iframe"))
    driver.switch_to.frame(driver.find_element("css selector", "iframe"))
    wait_for(driver, lambda: driver.execute_script(NODES))
    # It is placed before it is shown.
    wait_for(driver, lambda: driver.execute_script(
        "return [...document.querySelectorAll('g.node')].every(n => n.style.opacity === '1')"))
    found = driver.execute_script(NODES), driver.execute_script(EDGES)
    driver.switch_to.default_content()
    return found


def operators(path, kinds):
    """Operators of a program by their types; these ``kinds`` must be among them."""
    (block,) = Program.load(f"{path}.pdmodel", f"{path}.pdiparams").desc.blocks
    found = collections.Counter(op.type for op in block.ops)
    assert set(kinds) <= set(found)
    return found


def check(path, folder, kinds):
    """Each operator of the program is a node, and nothing else is."""
    expected = operators(path, kinds)
    with visualdl(folder, "--model", f"{path}.pdmodel") as address, chromium(folder) as driver:
        driver.get(f"{address}/graph/static_graph")
        found, edges = nodes_and_edges(driver)
        assert said(driver) == []
        keep(driver, f"graph-{path.name}")
    # Feeds and fetches are drawn as the ends of the graph, by their numbers.
    ends = expected.pop("feed") + expected.pop("fetch")
    assert found.pop("0") == ends == 2
    assert found == expected
    # Connected: all but the first node have something before them.
    assert edges >= sum(expected.values()) + 1


@pytest.mark.browser
@pytest.mark.needs_pir
def test_a_converted_float_model(tmp_path):
    net = mobilenet_v2(scale=0.25, num_classes=10)
    net.eval()
    paddle.jit.save(net, str(tmp_path / "pir"), input_spec=SPEC)
    paddleq.export.to_program_desc(tmp_path / "pir", tmp_path / "float")
    check(tmp_path / "float", tmp_path, ["conv2d", "depthwise_conv2d", "batch_norm", "relu6",
                                         "elementwise_add", "pool2d", "matmul_v2"])


@pytest.mark.browser
@pytest.mark.needs_pir
def test_a_quantized_model(tmp_path):
    net = mobilenet_v2(scale=0.25, num_classes=10)
    qat = paddleq.QAT()
    qat.quantize(net)
    net.train()
    for _ in range(2):
        net(paddle.randn([4, 3, 32, 32]))
    qat.save_quantized_model(net, str(tmp_path / "quantized"), SPEC)
    check(tmp_path / "quantized", tmp_path, ["conv2d", "batch_norm", "relu6", "quantize_linear",
                                             "dequantize_linear", "matmul_v2"])


# --- written records


def logged(folder):
    """A reader of the one log in ``folder``."""
    from visualdl import LogReader

    (name,) = (name for name in os.listdir(folder) if "vdlrecords" in name)
    return LogReader(file_path=str(folder / name))


def scalars(reader, tag):
    return [(record.id, record.value) for record in reader.get_data("scalar", tag)]


def test_a_logged_calibration(digits, tmp_path):
    batches = digits.batches(16, 4)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(warmed(SmallNet(), batches[0]))
    with VisualDLLogger(tmp_path / "vdl", quantized, every=1, histograms=2) as logger:
        ptq.calibrate(quantized, batches)
        errors = layer_errors(quantized, batches)
        logger.log_errors(errors)
    reader = logged(tmp_path / "vdl")
    tags = reader.get_tags()
    names = ["conv1", "conv2", "conv3", "fc"]
    both = [f"{name} {part}" for name in names for part in ("activation", "weight")]
    assert {f"scale/{name}" for name in both} <= set(tags["scalar"])
    assert {f"clipped/{name} activation" for name in names} <= set(tags["scalar"])
    assert set(tags["histogram"]) == {f"values/{name}" for name in both}
    assert set(tags["image"]) == {f"clipping/{name}" for name in names} | {"errors of layers/SQNR"}
    history = logger.history.scales["conv1.activation_quantizer"]
    largest = np.maximum.accumulate([np.abs(x.numpy()).max() for x in batches]) / 127
    assert scalars(reader, "scale/conv1 activation") == [
        (step, pytest.approx(value)) for step, value in enumerate(largest)]
    assert [scale.high for scale in history] == pytest.approx(list(largest))
    (weight,) = {value for _, value in scalars(reader, "scale/fc weight, smallest")}
    assert weight == pytest.approx(np.abs(quantized.fc.weight.numpy()).max(0).min() / 127)
    (first, second) = reader.get_data("histogram", "values/conv1 activation")
    assert [first.id, second.id] == [0, 2]
    counts, edges = np.histogram(batches[2].numpy(), 64)
    assert list(second.histogram.hist) == list(counts)
    assert list(second.histogram.bin_edges) == pytest.approx(list(edges))
    for tag in ("clipping/conv1", "errors of layers/SQNR"):
        (image,) = reader.get_data("image", tag)
        assert image.image.encoded_image_string[:4] == b"\x89PNG"
    assert scalars(reader, "SQNR/output") == [(4, pytest.approx(errors.output, rel=1e-6))]


def test_the_share_that_is_clipped_is_logged(tmp_path):
    quantized = paddleq.PTQ("HistQuantizer", hist_percent=0.9).quantize(
        paddle.nn.Sequential(paddle.nn.Linear(4, 2)))
    x = paddle.to_tensor(np.random.RandomState(0).randn(500, 4).astype("float32"))
    with VisualDLLogger(tmp_path, quantized, histograms=1):
        paddleq.calibrate(quantized, [x])
    abs_max = quantized[0].activation_quantizer.abs_max.item()
    outside = ((x.numpy() > abs_max) | (x.numpy() < -abs_max * 128 / 127)).mean()
    ((_, share),) = scalars(logged(tmp_path), "clipped/0 activation")
    assert share == pytest.approx(outside) and 0.08 < share < 0.12


def test_a_callback_of_model_fit(digits, tmp_path):
    images, labels = (paddle.to_tensor(each) for each in digits.train)
    net = paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(SmallNet())
    model = paddle.Model(net)
    model.prepare(paddle.optimizer.Adam(1e-3, parameters=net.parameters()),
                  paddle.nn.CrossEntropyLoss())
    data = paddle.io.TensorDataset([images[:160], labels[:160].reshape([-1, 1])])
    logger = VisualDLLogger(tmp_path / "vdl", every=3, histograms=5)
    for _ in range(2):
        # Evaluation is no step.
        model.fit(data, data, batch_size=32, epochs=1, verbose=0, callbacks=[logger])
    logger.log_errors(layer_errors(net, [images[:64]]))
    reader = logged(tmp_path / "vdl")
    steps = [step for step, _ in scalars(reader, "scale/conv2 activation")]
    assert steps == [0, 3, 6, 9]  # ten batches in two runs
    assert [record.id for record in reader.get_data("histogram", "values/conv2 activation")] == [
        0, 5]
    assert scalars(reader, "scale/conv2 activation")[-1][1] == pytest.approx(
        net.conv2.activation_quantizer.scale.item())
    assert len(reader.get_data("image", "clipping/conv2")) == 2
    assert len(reader.get_data("image", "errors of layers/SQNR")) == 1


def test_logging_changes_nothing(tmp_path):
    def trained(*logger):
        paddle.seed(3)
        net = paddleq.QAT().quantize(SmallNet())
        with contextlib.ExitStack() as stack:
            for each in logger:
                stack.enter_context(each(net))
            train_steps(net, paddle.randn([8, 1, 8, 8]))
        return net

    plain = trained()
    watched = trained(lambda net: VisualDLLogger(tmp_path, net, every=1, histograms=1))
    for key, value in plain.state_dict().items():
        assert np.array_equal(value.numpy(), watched.state_dict()[key].numpy()), key
    for mine, theirs in zip(plain.sublayers(include_self=True),
                            watched.sublayers(include_self=True)):
        assert set(theirs.__dict__) == set(mine.__dict__)
        assert len(mine._forward_pre_hooks) == len(theirs._forward_pre_hooks)
        assert len(mine._forward_post_hooks) == len(theirs._forward_post_hooks)


def test_a_pass_that_raises_leaves_the_layers_as_they_were(tmp_path):
    net = paddleq.QAT().quantize(SmallNet())
    with VisualDLLogger(tmp_path, net, histograms=1):
        with pytest.raises(Exception, match="shape|dimension|channel"):
            net(paddle.ones([2, 3, 8, 8]))
        net(paddle.ones([2, 1, 8, 8]))
    assert not any("forward" in layer.__dict__ for layer in net.sublayers())
    assert len(logged(tmp_path).get_data("histogram", "values/conv1 activation")) == 1


def test_a_step_that_overflows_does_not_stop_the_training(tmp_path, caplog):
    net = paddleq.QAT().quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
    with VisualDLLogger(tmp_path, net, every=1, histograms=1) as logger:
        for value in (1.0, float("inf"), float("nan"), 2.0):
            net(paddle.full([1, 2], value))
    reader = logged(tmp_path)
    assert [each.id for each in reader.get_data("histogram", "values/0 activation")] == [0, 3]
    assert "0.activation_quantizer has NaN or infinite values at step 1" in caplog.text
    # The observer skips the batches.
    assert [step for step, _ in scalars(reader, "scale/0 activation")] == [0, 1, 2, 3]
    report(net, tmp_path / "r.html", history=logger.history)
    assert ">nan<" not in (tmp_path / "r.html").read_text("utf-8")


def test_a_compiled_model_has_scales_but_no_histograms(tmp_path):
    net = paddle.nn.Sequential(paddle.nn.Linear(4, 2))
    net = paddle.jit.to_static(paddleq.QAT().quantize(net))
    with VisualDLLogger(tmp_path, net, every=1, histograms=1):
        for _ in range(3):
            net(paddle.randn([4, 4]))
    tags = logged(tmp_path).get_tags()
    assert "scale/0 activation" in tags["scalar"] and "histogram" not in tags


def test_a_layer_that_is_called_twice(tmp_path):
    shared = paddle.nn.Linear(4, 4)
    net = paddleq.QAT().quantize(paddle.nn.Sequential(shared, shared))
    with VisualDLLogger(tmp_path, net, histograms=1):
        net(paddle.randn([4, 4]))
    tags = logged(tmp_path).get_tags()
    assert {"values/0 activation", "values/0 activation, call 2"} <= set(tags["histogram"])


def test_wrong_arguments(tmp_path):
    net = paddle.nn.Sequential(paddle.nn.Linear(4, 2))
    quantized = paddleq.QAT().quantize(net, inplace=False)
    for arguments, error, match in (
            (({},), ConfigTypeError, "logdir"), ((tmp_path, net), ModelError, "no quantized layer"),
            ((tmp_path, quantized, 0), ConfigError, "every"),
            ((tmp_path, quantized, 1, -1), ConfigError, "histograms")):
        with pytest.raises(error, match=match):
            VisualDLLogger(*arguments)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ModelError, match="needs a model"), VisualDLLogger(tmp_path):
        pass
    logger = VisualDLLogger(tmp_path, quantized)
    with pytest.raises(FormatError, match="missing.pdmodel"):
        logger.log_graph(tmp_path / "missing")
    with pytest.raises(ConfigTypeError, match="layer_errors"):
        logger.log_errors([])
    model = paddle.Model(net)
    model.prepare(paddle.optimizer.Adam(parameters=net.parameters()), paddle.nn.MSELoss())
    data = paddle.io.TensorDataset([paddle.ones([4, 4]), paddle.ones([4, 2])])
    with pytest.raises(ModelError, match="no quantized layer"):
        model.fit(data, verbose=0, callbacks=[VisualDLLogger(tmp_path)])


@pytest.mark.parametrize("missing", ["visualdl", "matplotlib"])
def test_what_is_not_installed_is_named_with_the_remedy(missing, tmp_path):
    """In a process that cannot import it."""
    script = f"""
import sys
sys.modules["{missing}"] = None
import paddleq
try:
    paddleq.analysis.VisualDLLogger("vdl")
except paddleq.errors.DependencyError as error:
    sys.stdout.write("said: " + str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          cwd=tmp_path, timeout=120,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert f"said: VisualDLLogger needs VisualDL and matplotlib, but {missing} is" in done.stdout, (
        done.stderr)
    assert "pip install 'paddleq[viz]'" in done.stdout
    assert os.listdir(tmp_path) == []


# --- in the browser

# Pixels of VisualDL's blue, of which lines and areas are, on each canvas that is in view; axes and
# titles, which are there before, are grey.
INK = """
return [...document.querySelectorAll("canvas")].filter(c => {
    const box = c.getBoundingClientRect();
    return box.width > 50 && box.top >= 0 && box.bottom <= window.innerHeight;
}).map(c => {
    const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let ink = 0;
    for (let i = 0; i < data.length; i += 4)
        if (data[i + 3] > 0 && data[i + 2] > data[i] + 60) ink += 1;
    return ink;
});
"""


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """(log folder, prefix of the exported model) of a calibration that was logged."""
    folder = tmp_path_factory.mktemp("run")
    batches = digits.batches(32, 8)
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(warmed(SmallNet(), batches[0]), fuse=True)
    path = folder / "int8"
    with VisualDLLogger(folder / "vdl", quantized, every=1, histograms=2) as logger:
        ptq.calibrate(quantized, batches)
        logger.log_errors(layer_errors(quantized, batches[:2]))
        ptq.save_quantized_model(quantized, str(path), [
            paddle.static.InputSpec([None, 1, 8, 8], "float32")])
        logger.log_graph(path)
    return folder / "vdl", path


def wait_for(driver, condition):
    """Wait until ``condition()`` holds on the page.

    A page that is still being built has nodes without a title and canvases without a size, on
    which the script of a condition fails.
    """
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, PATIENCE, ignored_exceptions=[WebDriverException]).until(
        lambda _: condition())


def drawn_charts(driver):
    """Return the number of visible charts with content, or 0 while one is empty."""
    ink = driver.execute_script(INK)
    return len(ink) if ink and min(ink) > 200 else 0


def groups(driver):
    """Titles of the groups of charts on a page of VisualDL, with how many charts each has."""
    lines = driver.execute_script("return document.body.innerText").splitlines()
    return {title: int(count) for title, count in zip(lines, lines[1:]) if count.isdigit()}


@pytest.mark.browser
def test_visualdl_shows_a_logged_calibration(run, tmp_path):
    logdir, path = run
    expected = operators(path, ["conv2d", "quantize_linear", "dequantize_linear"])
    with visualdl(tmp_path, logdir=logdir) as address, chromium(tmp_path) as driver:
        driver.get(f"{address}/scalar")
        # Four layers; a weight has a largest and a smallest scale.
        wait_for(driver, lambda: groups(driver) == {"clipped": 4, "scale": 12, "SQNR": 1})
        box = driver.find_element("css selector", "input[placeholder]")
        box.send_keys("scale/conv")
        wait_for(driver, lambda: groups(driver) == {"Search Result": 9})
        # (Titles of charts are part of the picture.) Axes and lines are drawn.
        wait_for(driver, lambda: drawn_charts(driver) >= 2)
        keep(driver, "scalars")
        driver.get(f"{address}/histogram")
        wait_for(driver, lambda: groups(driver) == {"values": 8})
        wait_for(driver, lambda: drawn_charts(driver) >= 2)
        keep(driver, "histograms")
        driver.get(f"{address}/sample/image")
        wait_for(driver, lambda: groups(driver).get("clipping") == 4)
        text = driver.execute_script("return document.body.innerText")
        assert {f"clipping/{name}" for name in ("conv1", "conv2", "conv3", "fc")} <= set(
            text.splitlines())
        (image,) = logged(logdir).get_data("image", "clipping/conv1")
        width = int.from_bytes(image.image.encoded_image_string[16:20], "big")  # of a PNG
        wait_for(driver, lambda: driver.execute_script(
            "return [...document.images].filter(i => i.naturalWidth === arguments[0]).length",
            width) >= 2)
        keep(driver, "images")
        driver.get(f"{address}/graph/dynamic_graph")
        found, edges = nodes_and_edges(driver)
        assert said(driver) == []
        keep(driver, "graph-int8")
    # Here feeds and fetches have the names of their tensors.
    assert expected.pop("feed") == expected.pop("fetch") == 1
    assert {kind: found[kind] for kind in expected} == expected
    assert sum(found.values()) == sum(expected.values()) + 2
    assert edges >= sum(expected.values()) + 1


@pytest.mark.browser
def test_the_report_opens_from_disk_without_a_network(digits, tmp_path):
    batches = digits.batches(32, 4)
    net = warmed(SmallNet(), batches[0])
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net, fuse=True)
    with ScaleHistory(quantized) as history:
        ptq.calibrate(quantized, batches)
    page = tmp_path / "report.html"
    report(quantized, page, batches, history=history,
           sensitivities=sensitivity(quantized, batches[:1]), title="Digits, int8")
    plots = """return [...document.querySelectorAll("svg")].map(s => {
        const box = s.getBoundingClientRect();
        return [s.querySelector("title").textContent, box.width, box.height,
                getComputedStyle(s.querySelector('[style*=first]')).fill];
    })"""
    with chromium(tmp_path) as driver:
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", {
            "offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
        driver.get("about:blank")
        driver.get_log("performance")  # of Chromium's own first page
        driver.get(page.as_uri())
        assert driver.title == "Digits, int8" and said(driver) == []
        keep(driver, "report")
        found = {title: size for title, *size in driver.execute_script(plots)}
        width, height, fill = found["Errors of layers"]
        assert width > 800 and height > 120 and fill == "rgb(47, 108, 171)"
        assert "Sensitivity of the model to each layer" in found
        assert {"activation of conv2", "weight of fc"} <= set(found)
        bars = driver.execute_script(
            "return document.querySelector('svg').querySelectorAll('path[style*=first]').length")
        assert bars == 1 + len(layer_errors(quantized, batches))  # one is the legend's
        # The worst layers are unfolded, the others unfold by the keyboard.
        states = "return [...document.querySelectorAll('details')].map(d => d.open)"
        assert driver.execute_script(states).count(True) == 3
        folded = next(each for each in driver.find_elements("css selector", "details")
                      if not each.get_attribute("open"))
        folded.find_element("css selector", "summary").send_keys("\n")
        assert driver.execute_script(states) == [True] * 4
        rows = [row.text for row in driver.find_elements("css selector", "tbody th")]
        assert {"conv1", "bn1", "conv2", "bn2", "conv3", "fc"} <= set(rows)
        # On a telephone nothing but the wide parts scrolls; in the dark the page is dark.
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True})
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 400
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        assert driver.execute_script(
            "return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
        keep(driver, "report-telephone-dark")
        asked = [event["params"]["request"]["url"] for event in (
            json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
            if event["method"] == "Network.requestWillBeSent"]
    assert asked and {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
