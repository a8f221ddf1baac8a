"""Trained models, quantized by PTQ, in both formats and every runtime, against the simulation."""

import numpy as np
import paddle
import pytest
from deploy_cases import CASES, compare, export

from paddleq.deploy import metrics
from paddleq.deploy.model_file import model_files
from paddleq.deploy.runtimes import RUNTIMES, paddle_inference

pytestmark = pytest.mark.slow


# The zoo (test_zoo.py) covers more architectures, untrained; the others run nightly.
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "demo" else [
        pytest.mark.one_version if name == "GPT" else pytest.mark.nightly]) for name in CASES])
def test_every_runtime_agrees_with_the_simulation(name, tmp_path):
    case, quantized, path = export(name, tmp_path)
    found = compare(case, quantized, path)
    print(found)
    assert len(found.rows) == 6
    for row in found.rows:
        if row.fallback and row.runtime == "paddle":
            # Its float kernels leave out the rounding of activations.
            assert error_of_float_kernels(case, quantized, row.file) < 1.0
            continue
        assert row.ok and row.top1 >= 0.99, str(found)
        if row.runtime == "reference" and row.file.endswith(".pdmodel"):
            assert row.error <= 1e-6
        if row.runtime == "onnxruntime":
            assert row.size <= 0.3 * row.float_size


def test_float_kernels_without_vnni_are_closer_to_the_float_model(tmp_path, monkeypatch):
    monkeypatch.setattr(paddle_inference, "has_vnni", lambda: False)
    case, quantized, path = export("demo", tmp_path)
    assert error_of_float_kernels(case, quantized, path + ".pdmodel") < 1.0


def error_of_float_kernels(case, quantized, file):
    """Error of Paddle Inference against the float model, as a part of that of the simulation."""
    (file,) = model_files(file)
    batches = np.array_split(case.compared, 4)
    session = RUNTIMES["paddle"].load(file, 1)
    assert session.fallback
    found = [session.run([batch]) for batch in batches]
    session.close()
    for net in (case.net, quantized):
        net.eval()
    exact, simulated = ([[net(paddle.to_tensor(batch)).numpy()] for batch in batches]
                        for net in (case.net, quantized))
    return metrics.relative_error(found, exact) / metrics.relative_error(simulated, exact)
