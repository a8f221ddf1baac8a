"""Resuming a killed run of the layer-by-layer driver."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from paths import HELPERS
from rules import rules
from transformers import Llama, build, sentences

import paddleq
from paddleq import PerGroup, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, NetworkHelper, SmoothQuant, quantize_layer_by_layer
from paddleq.config import LayerConfig
from paddleq.errors import ConfigError, FormatError

W4 = QuantSpec(4, granularity=PerGroup(16))
POLICY = LayerConfig(W4, smoother=SmoothQuant(), rounder=GPTQ())


def run(folder, name="llama", policy=POLICY, kind="per_channel", batches=None, network=None,
        helper=None):
    network = build(name) if network is None else network
    quantize_layer_by_layer(network, helper, rules(network, policy, kind),
                            sentences() if batches is None else batches, resume_dir=folder)
    return network


def assert_same(network, other):
    state, expected = network.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    for name in state:
        assert state[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(state[name].numpy(), expected[name].numpy(), err_msg=name)
    assert repr(network) == repr(other)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(name -> folder of a finished run, name -> its network)."""
    folders, networks = {}, {}
    for name in ("llama", "translator", "recurring"):
        folders[name] = str(tmp_path_factory.mktemp(name))
        networks[name] = run(folders[name], name)
    return folders, networks


@pytest.mark.parametrize("name, layers", [("llama", 3), ("translator", 4), ("recurring", 2)])
def test_resumed_result_is_identical(finished, name, layers, tmp_path):
    folders, networks = finished
    assert_same(run(None, name), networks[name])
    assert sorted(os.listdir(folders[name])) == sorted([
        "run.json", *(f"layer-{i:04d}.{end}" for i in range(layers)
                      for end in ("json", "safetensors"))])
    for kept in range(layers + 1):
        folder = tmp_path / str(kept)
        shutil.copytree(folders[name], folder)
        (folder / ".paddleq-killed").mkdir()
        for number in range(kept, layers):
            os.remove(folder / f"layer-{number:04d}.json")
            if number > kept:  # killed between two files
                os.remove(folder / f"layer-{number:04d}.safetensors")
        assert_same(run(folder, name), networks[name])
        assert sorted(os.listdir(folder)) == sorted(os.listdir(folders[name]))


def test_result_is_identical_after_ten_random_kills(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOG_minloglevel": "2", "PYTHONPATH":
                   os.pathsep.join([str(pathlib.Path(paddleq.__file__).parents[1]), str(HELPERS)])}
    done = subprocess.run(
        [sys.executable, str(HELPERS / "resume_worker.py"), str(tmp_path), "10", "2024"],
        env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["kills"]) == 10 and len(set(report["kills"])) > 1, report
    assert report["resumed"] and set(report["resumed"]) == {report["uninterrupted"]}, report


class Backwards(NetworkHelper):
    def decoder_layers(self, network):
        return [("layers.2", network.layers[2]), ("layers.0", network.layers[0])]


def other_weight():
    network = build("llama")
    weight = network.layers[1].mlp["up_proj"].weight
    weight.set_value(weight * 2.0)
    return network


def other_batches():
    batches = sentences()
    batches[1][0, 3] = (batches[1][0, 3] + 1) % 20
    return batches


@pytest.mark.parametrize("changed, words", [
    ({"policy": LayerConfig(W4, smoother=SmoothQuant(), rounder=GPTQ(damping=0.02))},
     "another configuration: the policy of layers.0.self_attn.q_proj was .*damping=0.01.* and is "
     r".*damping=0.02.* \(and 21 more\)"),
    ({"policy": LayerConfig(W4, smoother=AWQ(), rounder=GPTQ())}, r"SmoothQuant.* and is .*AWQ"),
    ({"kind": "per_token"}, "the KV cache of layers.0.self_attn.kv_cache was 'per_channel' and is "
                            "'per_token' now"),
    ({"kind": None}, "the KV cache .* was 'per_channel' and is None now"),
    ({"helper": Backwards()}, "decoder layers was"),
    ({"network": other_weight}, "another model: layers.1.mlp.up_proj.weight was '"),
    ({"network": lambda: Llama(4)}, "decoder layers was"),
    ({"batches": other_batches}, "another data: batch 1 was '"),
    ({"batches": lambda: sentences()[:2]}, "another data: batches was 3 and is 2 now"),
])
def test_state_of_another_run_is_rejected(finished, changed, words, tmp_path):
    folder = tmp_path / "resume"
    shutil.copytree(finished[0]["llama"], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments = {name: value() if callable(value) and not isinstance(value, NetworkHelper)
                 else value for name, value in changed.items()}
    with pytest.raises(ConfigError, match=words) as error:
        run(folder, **arguments)
    assert str(folder) in str(error.value) and "use another folder" in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("version", ["paddle", "paddleq"])
def test_state_of_other_versions_is_rejected(finished, version, tmp_path):
    folder = tmp_path / "resume"
    shutil.copytree(finished[0]["llama"], folder)
    content = json.loads((folder / "run.json").read_text())
    content["versions"][version] = "0.0.1"
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"another versions: {version} was '0.0.1' and is"):
        run(folder)


@pytest.mark.parametrize("damage", ["tensors", "description", "run", "no run", "no object"])
def test_damaged_files_are_rejected(finished, damage, tmp_path):
    folder = tmp_path / "resume"
    shutil.copytree(finished[0]["llama"], folder)
    if damage == "tensors":
        path = folder / "layer-0001.safetensors"
        data = bytearray(path.read_bytes())
        data[-7] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "description":
        path = folder / "layer-0001.json"
        path.write_text(path.read_text().replace("per_channel", "per_token", 1))
    elif damage == "run":
        (folder / "run.json").write_text("{\"versions\": ")
    elif damage == "no run":
        (folder / "run.json").write_text("{}")
    else:
        (folder / "run.json").write_text("[1]")
    with pytest.raises(FormatError):
        run(folder)


def test_invalid_folder_is_rejected(tmp_path):
    (tmp_path / "file").write_text("here is a file")
    with pytest.raises(FormatError, match="cannot use resume_dir .*file"):
        run(tmp_path / "file")


def test_resume_restores_parameters_outside_of_decoder_layers(finished):
    """The last step, repeated by a resumed run, folds a factor into the head's norm."""
    folders, networks = finished
    again = run(folders["llama"])
    np.testing.assert_array_equal(again.norm.weight.numpy(), networks["llama"].norm.weight.numpy())
    assert not np.array_equal(again.norm.weight.numpy(), build("llama").norm.weight.numpy())
    np.testing.assert_array_equal(again.lm_head.weight.numpy(),
                                  networks["llama"].lm_head.weight.numpy())
