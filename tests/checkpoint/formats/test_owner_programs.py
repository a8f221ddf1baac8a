"""Checkpoints in the programs that own the formats, in both directions (make peers-llm-env)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from deployed import ACTIVATIONS, WEIGHTS, deploy
from llama_names import CONFIG, IDS, LlamaForCausalLM
from paddle import nn
from paths import HELPERS, ROOT

import paddleq

pytestmark = [pytest.mark.nightly, pytest.mark.one_version]

TRANSFORMERS = [("W4 g32", "A16"), ("W4 channel", "A16"), ("W8 channel", "A16"), ("W8 g32", "A16"),
                ("W8 channel", "A8 tensor"), ("W8 channel", "A8 tensor affine"),
                ("W8 channel", "A8 token")]
# transformers creates the zero points of packed layers in their unpacked shape, so that it loads
# asymmetric weights with dequantize=True only.
ASYMMETRIC = ["W4 g32 affine", "W8 channel affine", "W2 g32 affine"]
GPTQ = [("W4 g32", False), ("W4 g32", True), ("W4 channel", False), ("W8 channel", False),
        ("W3 g32", False), ("W4 g32 affine", False), ("W2 g32 affine", False)]
AWQ = ["W4 g32", "W4 g32 affine", "W4 channel"]
WRITTEN = {
    "gptq 4": ("write_gptq", {"bits": 4}), "gptq 8": ("write_gptq", {"bits": 8}),
    "gptq 3": ("write_gptq", {"bits": 3}), "gptq 2": ("write_gptq", {"bits": 2}),
    "gptq 4 act-order": ("write_gptq", {"bits": 4, "desc_act": True}),
    "gptq 4 v1": ("write_gptq", {"bits": 4, "version": "gptq"}),
    "awq": ("write_awq", {}),
    "int4 groups": ("write_compressed_tensors", {"bits": 4, "size": 32}),
    "int4 asymmetric": ("write_compressed_tensors", {"bits": 4, "size": 32, "symmetric": False}),
    "int8 channels": ("write_compressed_tensors", {"bits": 8}),
    "W8A8": ("write_compressed_tensors", {"bits": 8, "activation": True})}


def llama(weight, activation="A16", permuted=False):
    """A decoder whose float values have 16 bits, which GPTQModel rounds to."""
    model = LlamaForCausalLM()
    inputs = [(paddle.to_tensor(IDS),)]
    head = model.lm_head
    model.lm_head = nn.Identity()  # stays float
    deploy(model, WEIGHTS[weight], ACTIVATIONS[activation], inputs, permuted=permuted)
    model.lm_head = head
    for value in model.state_dict().values():
        if value.dtype == paddle.float32:
            value.set_value(value.astype("float16").astype("float32"))
    model.eval()
    return model


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run all jobs in one process, since importing the programs takes a minute.

    Returns (name of a case -> logits of paddleq, function that reads the result of a case).
    """
    named = os.environ.get("PADDLEQ_TORCH_PYTHON")
    python = Path(named) if named else ROOT / ".venv-peers-llm" / "bin" / "python"
    if not python.is_file():
        pytest.fail(f"{python} does not exist: run `make peers-llm-env`, or set "
                    "PADDLEQ_TORCH_PYTHON")
    folder, jobs, expected = tmp_path_factory.mktemp("owners"), [], {}

    def add(name, function, options, format=None, model=None):
        path = folder / name.replace(" ", "_")
        if model is not None:
            paddleq.save_checkpoint(model, path, format=format, config=CONFIG)
            with paddle.no_grad():
                expected[name] = model(paddle.to_tensor(IDS)).numpy()
        jobs.append([function, str(path), options])

    for weight, activation in TRANSFORMERS:
        add(f"ct {weight} {activation}", "load_transformers", {}, "compressed-tensors",
            llama(weight, activation))
    for weight in ASYMMETRIC:
        add(f"ct {weight}", "load_transformers", {"dequantize": True}, "compressed-tensors",
            llama(weight))
    for weight, permuted in GPTQ:
        add(f"gptq {weight} {permuted}", "load_gptqmodel", {"backend": "GPTQ_TORCH"}, "gptq",
            llama(weight, permuted=permuted))
    for weight in AWQ:
        add(f"awq {weight}", "load_gptqmodel", {"backend": "AWQ_TORCH"}, "awq", llama(weight))
        layer = nn.Sequential(("fc", nn.Linear(64, 96, bias_attr=False)))
        add(f"converted {weight}", "converted_awq", {})
        paddleq.save_checkpoint(deploy(layer, WEIGHTS[weight]), jobs[-1][1], format="awq")
        expected[f"converted {weight}"] = layer.fc.dequantized_weight().numpy()
    for name, (function, options) in WRITTEN.items():
        add(f"written {name}", function, options)
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    done = subprocess.run([str(python), str(HELPERS / "owners" / "worker.py"), str(path)],
                          env={**os.environ, "PYTHONPATH": ""}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]

    def result(name):
        path = folder / name.replace(" ", "_")
        if not os.path.exists(f"{path}.npz"):
            pytest.fail(Path(f"{path}.txt").read_text()[-3000:])
        with np.load(f"{path}.npz") as found:
            return path, dict(found)

    return expected, result


def close(found, expected, tolerance):
    return np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("weight, activation", TRANSFORMERS)
def test_transformers_computes_the_same_logits(weight, activation, results):
    expected, result = results
    name = f"ct {weight} {activation}"
    found = result(name)[1]["logits"]
    # Per token, compressed-tensors divides by 127.5 and paddleq (as vLLM's kernels) by 127.
    assert close(found, expected[name], 0.05 if activation == "A8 token" else 1e-5)


@pytest.mark.parametrize("weight", ASYMMETRIC)
def test_transformers_dequantizes_asymmetric_weights(weight, results):
    expected, result = results
    assert close(result(f"ct {weight}")[1]["logits"], expected[f"ct {weight}"], 1e-5)


@pytest.mark.parametrize("weight, permuted", GPTQ)
def test_gptqmodel_computes_the_same_logits(weight, permuted, results):
    expected, result = results
    name = f"gptq {weight} {permuted}"
    found = result(name)[1]
    assert found["count"] == 14
    assert close(found["logits"], expected[name], 1e-5)
    assert close(found["half"], expected[name], 0.01)


@pytest.mark.parametrize("weight", AWQ)
def test_gptqmodel_computes_the_same_logits_from_awq(weight, results):
    expected, result = results
    found = result(f"awq {weight}")[1]
    assert found["count"] == 14
    assert close(found["logits"], expected[f"awq {weight}"], 1e-5)
    assert close(found["half"], expected[f"awq {weight}"], 0.01)


@pytest.mark.parametrize("weight", [each for each in AWQ if each != "W4 channel"])
def test_compressed_tensors_converts_awq_to_the_same_weights(weight, results):
    expected, result = results
    assert np.allclose(result(f"converted {weight}")[1]["weight"], expected[f"converted {weight}"],
                       rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", WRITTEN)
def test_reads_what_the_owner_wrote(name, results):
    path, found = results[1](f"written {name}")
    model = nn.Sequential(("fc", nn.Linear(64, 96, bias_attr=False)))
    paddleq.load_checkpoint(model, path)
    weight = model.fc.dequantized_weight().numpy()
    if model.fc.permuted:
        weight = weight[np.argsort(model.fc.permutation.numpy())]
    assert np.allclose(weight, found["weight"], rtol=1e-6, atol=0)
    assert model.fc.per_token == (name == "W8A8")
