"""The quickstart notebook: its code cells run in order and print the results in its text."""

import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

NOTEBOOK = ROOT / "demo" / "quickstart.ipynb"


def cells(kind):
    """The cells of a kind, each as one text."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def text(cell):
    return "".join(cell["source"])


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Return the output of the code cells, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cells.py").write_text("\n\n".join(map(text, cells("code"))), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


def share(printed, pattern):
    """A percentage that was printed, as a fraction."""
    (found,) = re.findall(pattern, printed)
    return float(found) / 100


def test_notebook_has_no_outputs():
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(map(text, cells("markdown"))))
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links)


def test_int8_accuracy_is_close_to_float(printed):
    float_top1 = share(printed[0], r"float: ([\d.]+)% of the test images")
    simulated = share(printed[0], r"int8, simulated: ([\d.]+)%")
    assert float_top1 > 0.95 and abs(simulated - float_top1) < 0.01


def test_layers_are_sorted_by_sensitivity(printed):
    table = printed[0][printed[0].index("layer | type   | alone"):]
    alone = [float(row.split("|")[2]) for row in table.splitlines()[2:5]]
    assert len(alone) == 3 and alone == sorted(alone) and alone[0] > 15


def test_export_predicts_as_the_simulation(printed):
    out, folder = printed
    runtime = re.search(r"(\w+): [\d.]+% of the test images, ", out).group(1)
    assert runtime in ("paddle", "openvino", "onnxruntime")
    assert share(out, r", ([\d.]+)% of the labels as simulated") >= 0.99
    assert sorted(each.name for each in (folder / "out" / "quickstart").iterdir()) == [
        "net.paddleq.yaml", "net.pdiparams", "net.pdmodel"]
    assert "activation_quantizer: {name: HistQuantizer" in out
