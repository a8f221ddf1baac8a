"""VisualDL draws the graphs that are written here, in a real browser.

Needs Chromium and its driver on PATH (Debian: chromium, chromium-driver), VisualDL and selenium.
"""

import collections
import contextlib
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

import paddle
import pytest
from paddle.vision.models import mobilenet_v2

import paddleq
from paddleq.export.program import Program

pytestmark = [pytest.mark.browser, pytest.mark.needs_pir]

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
    """Where a program is. Without it the test fails: nothing is left out in silence."""
    found = shutil.which(name)
    assert found, f"no {name} on PATH; on Debian: apt-get install chromium chromium-driver"
    return found


@contextlib.contextmanager
def visualdl(model, folder):
    """Address of a VisualDL that shows ``model``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}/app", folder / "visualdl.log"
    logs = folder / "logs"
    logs.mkdir()
    # --language: a client that names none gets an error 500 otherwise.
    command = [pathlib.Path(sys.executable).parent / "visualdl", "--logdir", logs, "--model", model,
               "--host", "127.0.0.1", "--port", port, "--language", "en", "--disable-telemetry"]
    with open(log, "wb") as output:
        server = subprocess.Popen([str(each) for each in command], stdout=output, stderr=output,
                                  start_new_session=True)
    try:
        until = time.monotonic() + 60
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
    """Chromium with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = on_path("chromium")
    for argument in [*CHROMIUM, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options,
                              service=webdriver.ChromeService(on_path("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def drawn(path, folder):
    """Titles of the nodes on VisualDL's page for ``path.pdmodel``, and the number of edges."""
    from selenium.webdriver.support.ui import WebDriverWait

    with visualdl(f"{path}.pdmodel", folder) as address, chromium(folder) as driver:
        driver.get(f"{address}/graph/static_graph")
        wait = WebDriverWait(driver, 90)
        frame = wait.until(lambda _: driver.find_elements("css selector", "iframe"))[0]
        driver.switch_to.frame(frame)
        wait.until(lambda _: driver.execute_script(NODES))
        # It is placed before it is shown.
        wait.until(lambda _: driver.execute_script(
            "return [...document.querySelectorAll('g.node')].every(n => n.style.opacity === '1')"))
        found = driver.execute_script(NODES), driver.execute_script(EDGES)
        assert [entry["message"] for entry in driver.get_log("browser")
                if entry["level"] == "SEVERE"] == []
        driver.switch_to.default_content()
        assert driver.save_screenshot(str(folder / "graph.png"))
    return found


def check(path, folder, kinds):
    """Each operator of the program is a node, and nothing else is."""
    program = Program.load(f"{path}.pdmodel", f"{path}.pdiparams")
    (block,) = program.desc.blocks
    expected = collections.Counter(op.type for op in block.ops)
    assert set(kinds) <= set(expected)
    found, edges = drawn(path, folder)
    # Feeds and fetches are drawn as the ends of the graph, by their numbers.
    ends = expected.pop("feed") + expected.pop("fetch")
    assert found.pop("0") == ends == 2
    assert found == expected
    # Connected: all but the first node have something before them.
    assert edges >= sum(expected.values()) + 1
    assert (folder / "graph.png").stat().st_size > 20000


def test_a_converted_float_model(tmp_path):
    net = mobilenet_v2(scale=0.25, num_classes=10)
    net.eval()
    paddle.jit.save(net, str(tmp_path / "pir"), input_spec=SPEC)
    paddleq.export.to_program_desc(tmp_path / "pir", tmp_path / "net")
    check(tmp_path / "net", tmp_path, ["conv2d", "depthwise_conv2d", "batch_norm", "relu6",
                                       "elementwise_add", "pool2d", "matmul_v2"])


def test_a_quantized_model(tmp_path):
    net = mobilenet_v2(scale=0.25, num_classes=10)
    qat = paddleq.QAT()
    qat.quantize(net)
    net.train()
    for _ in range(2):
        net(paddle.randn([4, 3, 32, 32]))
    qat.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    check(tmp_path / "net", tmp_path, ["conv2d", "batch_norm", "relu6", "quantize_linear",
                                       "dequantize_linear", "matmul_v2"])
