"""Operators behind a quantized convolution, layers and blocks: no runtime is wrong."""

import re
import runpy

import numpy as np
import paddle
import pytest
from layer_conformance import EXACT, LAYERS
from layer_conformance import measure as measure_layer
from operator_conformance import OPERATORS, RUNTIMES, STEPS, compared, measure
from paths import ROOT

PAGE = runpy.run_path(str(ROOT / "docs/operator_runtimes.py"))
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in PAGE["PAGES"]}
CASES = {"operators": OPERATORS, "layers": LAYERS}
ROWS = {table: PAGE["rows"](PAGES["operators.md"], table) for table in CASES}

# One or two of each kind; the others run nightly.
IN_CI = set(re.findall(r"\w[^;]*", """
    relu; gelu approximate; softplus beta 2, threshold 1.5; celu 0.3; maxout 3 groups;
    prelu channels; softmax axis 1; log_sigmoid; expm1; trunc; isfinite; floor_divide; where;
    argmax keepdim; matmul; einsum; mean; std; cumprod; logcumsumexp; argmax; topk; norm 1.5;
    max_pool2d NHWC; reshape; split; roll; diagonal; meshgrid; strided_slice; gather_nd;
    take_along_axis; scatter add; avg_pool2d inclusive ceil; adaptive_avg_pool1d; max_pool3d;
    interpolate nearest; interpolate bilinear align_corners; pixel_unshuffle; channel_shuffle;
    fold strides; affine_grid; pad reflect; group_norm; conv2d_transpose"""))
LAYERS_IN_CI = set(re.findall(r"\w[^;]*", """
    Conv1D NLC; Conv2D NHWC; Conv2D depthwise; Conv3D; Conv1DTranspose output_padding;
    Conv2DTranspose SAME; GRU; BatchNorm2D, ReLU between; squeeze and excitation; U-Net;
    depthwise NHWC"""))

# (operator, runtime) -> versions of Paddle with wrong values that are not mended, and the reason.
KNOWN_FAULTS = {
    **dict.fromkeys([(name, runtime) for name in ("cov", "corrcoef") for runtime in RUNTIMES],
                    (("2.6",), "conj of real numbers reads memory that is not set")),
}
# Paddle's own kernels end the process.
ENDS_THE_PROCESS = {("nanmedian", "2.6"), ("psroi_pool", "2.6")}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in IN_CI else pytest.mark.nightly) for name in OPERATORS])
def test_operator_is_right_or_refused(name, tmp_path):
    version = paddle.__version__[:3]
    if (name, version) in ENDS_THE_PROCESS:
        pytest.skip(f"ends the process on Paddle {version}")
    found = measure(name, tmp_path)
    if found is None:
        pytest.skip(f"Paddle {version} does not have it")
    wrong = {runtime for runtime, cell in found.items() if cell.verdict == "wrong"}
    known = {runtime for (operator, runtime), (versions, _) in KNOWN_FAULTS.items()
             if operator == name and version in versions}
    assert wrong == known if version == "3.1" else wrong <= known, found
    stands = found["as it stands"]
    assert stands.verdict != "right" or stands.figure <= 1e-6
    assert all(cell.reason for cell in found.values() if cell.verdict == "refused")
    if version == "3.1":
        assert_is_on_the_page("operators", name, found)


def assert_is_on_the_page(table, name, found):
    assert [PAGE["entry"](found[each]) for each in RUNTIMES] == ROWS[table][name], (
        f"out of date: run python docs/operator_runtimes.py '{name}'")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in LAYERS_IN_CI else pytest.mark.nightly)
    for name in LAYERS])
def test_layer_is_right_or_refused(name, tmp_path):
    found = measure_layer(name, tmp_path)
    assert not any(cell.verdict == "wrong" for cell in found.values()), found
    stands = found["as it stands"]
    assert stands.verdict == "right" and stands.figure <= EXACT
    if paddle.__version__.startswith("3.1"):
        assert_is_on_the_page("layers", name, found)


def test_pages_list_the_operators_and_layers():
    for table, cases in CASES.items():
        for text in PAGES.values():
            assert list(PAGE["rows"](text, table)) == list(cases)
        translated = PAGE["written"](PAGES["operators.zh.md"], table, ROWS[table],
                                     PAGE["PAGES"]["operators.zh.md"])
        assert translated == PAGES["operators.zh.md"]


def test_enough_operators_are_computed():
    assert len({name.partition(" ")[0] for name in OPERATORS}) >= 200
    assert OPERATORS.keys() >= IN_CI and len(IN_CI) >= 40
    assert LAYERS.keys() >= LAYERS_IN_CI and len(LAYERS) >= 43
    assert {name.partition(" ")[0] for name in OPERATORS} >= STEPS
    assert all(row[0] != "absent" for row in ROWS["operators"].values())


def test_few_operators_are_refused():
    """Not counted: operators that Paddle itself cannot save."""
    for runtime in ("OpenVINO .xml", "ONNX Runtime"):
        column = RUNTIMES.index(runtime)
        refused = [name for name, row in ROWS["operators"].items()
                   if row[column].startswith("refused") and not row[0].startswith("refused")]
        assert len(refused) <= 5, refused


def test_wrong_values_are_found():
    wanted = [np.linspace(-1, 1, 50).reshape(5, 10)]
    assert compared([wanted[0] + 5e-5], wanted).verdict == "right"
    assert compared([wanted[0] + 2e-4], wanted).verdict == "wrong"
    assert compared([wanted[0].T], wanted).verdict == "wrong"
    assert compared([], wanted).verdict == "wrong"
    other = np.where(wanted[0] > 0.99, 0, wanted[0])
    assert compared([other], wanted, steps=True).verdict == "wrong"
