"""Architectures of all tasks in the stock runtimes, against their simulation."""

import openvino as ov
import pytest
from runtimes import precisions
from zoo_architectures import ARCHITECTURES, METHODS, RUNTIMES, measure, quantized, spec

pytestmark = [pytest.mark.slow, pytest.mark.one_version]

# One of each kind, with the method that CI runs; nightly runs all of them by both.
CI = {"MobileNetV2": "ptq", "ShuffleNetV2": "qat", "VGG": "ptq", "PoolFormer": "qat", "VAN": "ptq",
      "U-Net transposed": "ptq", "BlazeFace": "qat", "SSDLite": "ptq", "direction": "qat",
      "GPT": "ptq"}

# Architectures whose kernels in OpenVINO CI counts.
INTEGER_CI = {"MobileNetV3", "ShuffleNetV2", "GPT"}

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


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in INTEGER_CI else [pytest.mark.nightly])
    for name in ARCHITECTURES])
def test_quantized_layers_are_integer_in_openvino(name, tmp_path):
    """Convolutions and products of the graph that it runs, except for transposed convolutions."""
    quanter, net, _ = quantized(name, "ptq")
    quanter.save_quantized_model(net, tmp_path / "m", spec(name), format="openvino")
    model = ov.Core().read_model(tmp_path / "m.xml")
    wanted = sum(node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
                 and node.input_value(0).get_node().get_type_name() == "FakeQuantize"
                 for node in model.get_ops())
    found = precisions(ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    integer = sum(number for (kind, precision), number in found.items()
                  if precision in ("i8", "u8") and kind != "Deconvolution")
    assert 0 < wanted <= integer, found


def test_the_zoo_has_forty_architectures():
    assert len(ARCHITECTURES) >= 40
    assert len(CI) >= 10
