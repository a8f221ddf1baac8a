"""Trained models, quantized by PTQ, in both formats and every runtime, against the simulation."""

import pytest
from deploy_cases import CASES, report

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_every_runtime_agrees_with_the_simulation(name, tmp_path):
    found = report(name, tmp_path)
    print(found)
    assert len(found.rows) == 6 and found.ok, str(found)
    for row in found.rows:
        assert row.top1 >= 0.99
        if row.runtime == "reference" and row.file.endswith(".pdmodel"):
            assert row.error <= 1e-6
        if row.runtime == "onnxruntime":
            assert row.size <= 0.3 * row.float_size
