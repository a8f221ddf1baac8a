"""Architectures of all tasks in the stock runtimes, against their simulation."""

import pytest
from zoo_architectures import ARCHITECTURES, METHODS, RUNTIMES, measure

pytestmark = [pytest.mark.slow, pytest.mark.one_version]

# One of each kind, with the method that CI runs; nightly runs all of them by both.
CI = {"MobileNetV2": "ptq", "ShuffleNetV2": "qat", "VGG": "ptq", "PoolFormer": "qat", "VAN": "ptq",
      "U-Net transposed": "ptq", "BlazeFace": "qat", "SSDLite": "ptq", "direction": "qat",
      "GPT": "ptq"}

# (architecture, runtime): reason of a wrong value. An entry that is right again has to be removed.
KNOWN = {
}
# (architecture, runtime): the operator that a runtime, or the writer of its format, names.
REFUSED = {
    **{(name, "openvino"): "channel_shuffle"
       for name in ("PP-HumanSeg-Lite", "TinyPose", "LiteHRNet")},
    ("ENet", "openvino"): "prelu",
    ("Conformer", "openvino"): "log_softmax",
}


@pytest.mark.parametrize("name, method", [
    pytest.param(name, method, marks=[] if CI.get(name) == method else [pytest.mark.nightly])
    for name in ARCHITECTURES for method in METHODS])
def test_stock_runtimes_compute_the_simulation(name, method):
    result = measure(name, method)
    assert {runtime: message for runtime, message in result.refusals.items()
            if REFUSED.get((name, runtime), message + "?") not in message} == {}
    assert {runtime for refused, runtime in REFUSED if refused == name} <= {*result.refusals}
    known = {runtime for wrong, runtime in KNOWN if wrong == name}
    wrong = {runtime for runtime in RUNTIMES if result.wrong(runtime)}
    assert wrong == known if method == "ptq" else wrong <= known, result


def test_the_zoo_has_forty_architectures():
    assert len(ARCHITECTURES) >= 40
    assert len(CI) >= 10
