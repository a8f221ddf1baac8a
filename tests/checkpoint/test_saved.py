"""Checkpoints restore identical bits; files that are damaged or of another model are rejected."""

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import paddle
import pytest
import safetensors.numpy
from deployed import deploy
from hypothesis import given, settings
from hypothesis import strategies as st
from paddle import nn
from paths import HELPERS, ROOT

import paddleq
from paddleq import PerChannel, PerGroup, PerToken, QuantSpec
from paddleq.checkpoint import read_state
from paddleq.errors import ConfigTypeError, ExportError, FormatError, ModelError, PaddleqError
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.nn import IntegerLinear

W4 = QuantSpec(4, granularity=PerGroup(16))
W8 = QuantSpec(8, granularity=PerChannel(1))
AFFINE = QuantSpec(4, signed=False, symmetric=False, granularity=PerGroup(16))
TOKEN = QuantSpec(8, granularity=PerToken())


class Net(nn.Layer):
    """A tied embedding, a layer used twice, buffers of all dtypes."""

    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.body = nn.LayerList([nn.Linear(width, width), nn.LayerNorm(width)])
        self.again = self.body[0]
        self.plain = nn.Linear(width, width, bias_attr=False)
        self.head = nn.Linear(width, 11)
        self.tied = self.embedding.weight
        for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
                      "bool", "complex64"):
            value = paddle.to_tensor(np.arange(6).reshape(2, 3) % 5)
            self.register_buffer(f"of_{dtype}", value.astype(dtype))
        self.register_buffer("empty", paddle.zeros([0, 3]))
        self.register_buffer("scalar", paddle.full([], 2.5))
        self.register_buffer("not_saved", paddle.zeros([1]), persistable=False)

    def forward(self, ids):
        x = self.embedding(ids)
        x = self.again(self.body[1](self.body[0](x)))
        return self.head(self.plain(x)), paddle.matmul(x, self.tied, transpose_y=True)


IDS = np.arange(22).reshape(2, 11) % 11


def quantized(weight=W4, activation=None, seed=0, **how):
    paddle.seed(seed)
    return deploy(Net(), weight, activation, [(paddle.to_tensor(IDS),)], **how)


def bits(tensor):
    return (tensor.view("int16") if tensor.dtype == paddle.bfloat16 else tensor).numpy()


def snapshot(model):
    """Return the visible state of a model: structure, classes, bits."""
    layers = {name: (id(layer), type(layer), sorted(layer.__dict__))
              for name, layer in model.named_sublayers(include_self=True)}
    state = {name: (str(value.dtype), bits(value).tobytes(), id(value))
             for name, value in model.state_dict().items()}
    return repr(model), layers, state


def same_state(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert list(found[name].shape) == list(value.shape), name
        assert np.array_equal(bits(found[name]), bits(value)), name


def outputs(model):
    model.eval()
    return [y.numpy() for y in model(paddle.to_tensor(IDS))]


@pytest.mark.parametrize("weight, activation, how", [
    (W8, None, {}), (W4, None, {}), (AFFINE, None, {"smoothed": True}),
    (W8, QuantSpec(), {"smoothed": True}), (W4, TOKEN, {"permuted": True}),
    (W8, QuantSpec(signed=False, symmetric=False), {}),
])
def test_loading_converts_a_float_model_to_the_saved_one(tmp_path, weight, activation, how):
    model, path = quantized(weight, activation, **how), str(tmp_path / "in" / "model")
    paddleq.save_checkpoint(model, path)
    fresh = Net()
    assert paddleq.load_checkpoint(fresh, path) is fresh
    same_state(fresh, model)
    assert repr(fresh) == repr(model)
    for found, expected in zip(outputs(fresh), outputs(model)):
        assert np.array_equal(found, expected)
    # Shared layers and parameters stay shared.
    assert fresh.again is fresh.body[0] and fresh.tied is fresh.embedding.weight
    # A second time, into the converted structure.
    fresh.again.weight_scale.set_value(paddle.zeros_like(fresh.again.weight_scale))
    paddleq.load_checkpoint(fresh, path)
    same_state(fresh, model)


def test_saving_does_not_change_the_model(tmp_path):
    model = quantized()
    before = snapshot(model)
    paddleq.save_checkpoint(model, tmp_path / "model")
    assert snapshot(model) == before
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]


def test_safetensors_library_reads_the_tensors(tmp_path):
    """Read by the safetensors library; its numpy reader may lack bfloat16."""
    model = quantized()
    del model._buffers["of_bfloat16"]
    paddleq.save_checkpoint(model, tmp_path / "model")
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    state = model.state_dict()
    assert set(state) - set(found) == {"again.weight", "again.weight_scale", "again.bias",
                                       "embedding.weight"}
    for name, value in found.items():
        assert value.dtype == state[name].numpy().dtype
        assert np.array_equal(value, state[name].numpy()), name


def test_saving_is_reproducible(tmp_path):
    for name in "ab":
        paddleq.save_checkpoint(quantized(), tmp_path / name)
    for ending in (".json", ".safetensors"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_description_fields(tmp_path):
    paddleq.save_checkpoint(quantized(), tmp_path / "model")
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["version"] == 1
    assert content["libraries"] == {"paddleq": paddleq.__version__, "paddle": paddle.__version__}
    assert sorted(content["layers"]) == ["body.0", "head", "plain"]
    assert content["layers"]["plain"]["kind"] == "IntegerLinear"
    assert content["shared"]["embedding.weight"] == "tied"
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == (
        content["tensors_sha256"])


def assert_rejected(path, error=(FormatError, ModelError), match=None, model=None):
    """Assert that loading raises and leaves the model unchanged."""
    model = Net() if model is None else model
    before = snapshot(model)
    with pytest.raises(error, match=match):
        paddleq.load_checkpoint(model, path)
    assert snapshot(model) == before


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    paddleq.save_checkpoint(quantized(), path)
    return {ending: path.with_suffix(ending).read_bytes() for ending in (".json", ".safetensors")}


def rewrite(folder, files, **changed):
    for ending, content in files.items():
        (folder / f"model{ending}").write_bytes(changed.get(ending[1:], content))
    return folder / "model"


@settings(max_examples=150)
@given(data=st.data(), ending=st.sampled_from([".json", ".safetensors"]),
       bit=st.integers(0, 7))
def test_flipped_bit_is_detected(tmp_path_factory, files, data, ending, bit):
    content = bytearray(files[ending])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << bit
    changed = {ending[1:]: bytes(content)}
    assert_rejected(rewrite(tmp_path_factory.mktemp("flipped"), files, **changed), FormatError)


def test_flipped_byte_of_the_description_is_detected(tmp_path, files):
    """Each byte of the first lines, including a space changed to other white space."""
    for at in range(200):
        content = bytearray(files[".json"])
        content[at] = ord("\t") if content[at] == ord(" ") else content[at] ^ 1
        with pytest.raises(FormatError):
            paddleq.load_checkpoint(nn.Linear(1, 1), rewrite(tmp_path, files,
                                                            json=bytes(content)))


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_rejected(tmp_path, files, ending, share):
    content = files[f".{ending}"]
    cut = content[:int(len(content) * share)]
    assert_rejected(rewrite(tmp_path, files, **{ending: cut}), FormatError)
    assert_rejected(rewrite(tmp_path, files, **{ending: content + b" "}), FormatError)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_missing_file_is_rejected(tmp_path, files, ending):
    path = rewrite(tmp_path, files)
    (tmp_path / f"model.{ending}").unlink()
    assert_rejected(path, FormatError, "model")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.trap),)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_pickle_is_rejected_without_unpickling(tmp_path, files, ending):
    Bomb.trap = tmp_path / "trap"
    assert_rejected(rewrite(tmp_path, files, **{ending: pickle.dumps({"w": Bomb()})}), FormatError)
    state = tmp_path / "state.pdparams"
    paddle.save(quantized().state_dict(), str(state))
    assert_rejected(rewrite(tmp_path, files, **{ending: state.read_bytes()}), FormatError)
    assert not Bomb.trap.exists()


def with_valid_digest(content):
    """Return a modified description with a valid digest."""
    content = {name: value for name, value in content.items() if name != "sha256"}

    def text(content):
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    return text({**content, "sha256": hashlib.sha256(text(content)).hexdigest()})


@pytest.mark.parametrize("change", [
    {"version": 2}, {"version": "1"}, {"format": "other"}, {"layers": []}, {"shared": ["tied"]},
    {"shared": {"tied": 3}}, {"shared": {"tied": "nothing"}}, {"tensors_sha256": 5},
    {"layers": {"plain": 3}}, {"layers": {"plain": {"kind": "IntegerLinear"}}},
    {"layers": {"plain": {"kind": "Linear", "description": {}}}},
    {"layers": {"plain": {"kind": ["IntegerLinear"], "description": {}}}},
    {"layers": {"plain": {"kind": "IntegerLinear", "description": {}}}},
    {"layers": {"plain": {"kind": "IntegerLinear", "description": [1]}}},
], ids=str)
def test_invalid_description_is_rejected(tmp_path, files, change):
    content = json.loads(files[".json"])
    assert_rejected(rewrite(tmp_path, files, json=with_valid_digest({**content, **change})))


def test_invalid_layer_description_is_rejected(tmp_path, files):
    content = json.loads(files[".json"])
    content["layers"]["plain"]["description"]["weight"]["bits"] = 99
    assert_rejected(rewrite(tmp_path, files, json=with_valid_digest(content)), FormatError, "bits")


def test_mixed_files_of_two_models_are_rejected(tmp_path, files):
    paddleq.save_checkpoint(quantized(seed=1), tmp_path / "other")
    other = (tmp_path / "other.safetensors").read_bytes()
    assert_rejected(rewrite(tmp_path, files, safetensors=other), FormatError, "does not belong")


class Without(Net):
    def __init__(self):
        super().__init__()
        del self.plain


class Untied(Net):
    def __init__(self):
        super().__init__()
        self.tied = self.create_parameter(list(self.embedding.weight.shape))


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.head.bias = self.create_parameter([11], is_bias=True)
        self.second = self.head.bias


def test_other_model_structure_is_rejected_and_unchanged(tmp_path, files):
    path = rewrite(tmp_path, files)
    assert_rejected(path, ModelError, "plain", Without())
    assert_rejected(path, ModelError, "features", Net(16))
    more = Net()
    more.extra = nn.LayerNorm(3)
    assert_rejected(path, ModelError, "extra.weight", more)
    no_linear = Net()
    no_linear.plain = nn.LayerNorm(32)
    assert_rejected(path, ModelError, "plain|Linear", no_linear)
    biased = Net()
    biased.plain = nn.Linear(32, 32)
    assert_rejected(path, ModelError, "bias", biased)
    other_dtype = Net()
    other_dtype.body[1].to(dtype="float16")
    assert_rejected(path, ModelError, "body.1.weight", other_dtype)
    # Quantized with another configuration.
    assert_rejected(path, ModelError, "weight", quantized(W8))
    more_quantized = quantized(W4)
    more_quantized.extra = IntegerLinear(32, 32, W4)
    assert_rejected(path, ModelError, "extra", more_quantized)


@pytest.mark.parametrize("saved, own", [({}, {"smoothed": True}), ({"smoothed": True}, {}),
                                        ({"permuted": True}, {})])
def test_data_dependent_state_is_taken_from_the_file(tmp_path, saved, own):
    model, other = quantized(W4, **saved), quantized(W4, **own)
    paddleq.save_checkpoint(model, tmp_path / "model")
    paddleq.load_checkpoint(other, tmp_path / "model")
    same_state(other, model)


def test_mismatched_parameter_sharing(tmp_path, files):
    # Separate in the model, shared in the file: both are loaded.
    path, untied = rewrite(tmp_path, files), Untied()
    paddleq.load_checkpoint(untied, path)
    assert np.array_equal(untied.tied.numpy(), untied.embedding.weight.numpy())
    # Shared in the model, two tensors in the file: an error.
    paddleq.save_checkpoint(deploy(Untied(), W4), tmp_path / "untied")
    assert_rejected(tmp_path / "untied", ModelError, "one tensor", Net())


def test_float_model(tmp_path):
    model, fresh = Net(), Net()
    paddleq.save_checkpoint(model, tmp_path / "float")
    paddleq.load_checkpoint(fresh, tmp_path / "float")
    same_state(fresh, model)
    assert_rejected(tmp_path / "float", ModelError, "plain", quantized())


@pytest.mark.parametrize("call", [paddleq.save_checkpoint, paddleq.load_checkpoint])
def test_invalid_arguments(tmp_path, call):
    with pytest.raises(ConfigTypeError, match="model"):
        call({"weight": 1}, tmp_path / "model")
    with pytest.raises(ConfigTypeError, match="path"):
        call(Net(), 3)
    with pytest.raises(ConfigTypeError, match="path"):
        call(Net(), "")


def test_unwritable_target(tmp_path):
    (tmp_path / "model.json").mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        paddleq.save_checkpoint(quantized(), tmp_path / "model")
    assert os.listdir(tmp_path) == ["model.json"]  # no partial file remains


def test_unsupported_dtype(tmp_path):
    model = Net()
    model.register_buffer("wide", paddle.zeros([2], "complex128"))
    with pytest.raises(ModelError, match="wide is complex128"):
        paddleq.save_checkpoint(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def checkpoints_after_crashes(folder, *arguments):
    """Return (finished renames, "ones", "twos" or "refused") for each killed step."""
    done = subprocess.run([sys.executable, str(HELPERS / "crash_worker.py"), str(folder),
                           *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    renames, found = json.loads(done.stdout.splitlines()[-1]), []
    for number in range(len(renames)):
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
        try:
            paddleq.load_checkpoint(model, folder / str(number) / "model")
        except FormatError:
            found.append("refused")
        else:
            values = {float(each) for value in model.state_dict().values()
                      for each in (value.min(), value.max())}
            found.append({(1.0,): "ones", (2.0,): "twos"}[tuple(values)])
    return list(zip(renames, found))


def expected_after_crashes(renames):
    """Old files before the first rename, new ones after the last, else mixed files: refused."""
    return ["ones" if count == 0 else "twos" if count == max(renames) else "refused"
            for count in renames]


def test_killed_process_leaves_complete_files(tmp_path):
    renames, found = zip(*checkpoints_after_crashes(tmp_path))
    assert max(renames) == 2 and renames.count(0) >= 2  # at each write and rename
    assert list(found) == expected_after_crashes(renames)
    # All writes precede the first rename.
    assert renames[-3:] == (0, 1, 2) and found[-3:] == ("ones", "refused", "twos")


def test_the_crash_test_detects_a_rename_before_the_last_write(tmp_path):
    renames, _ = zip(*checkpoints_after_crashes(tmp_path, "interleaved"))
    assert renames[-3:] != (0, 1, 2)


def test_simulated_qat_loads_a_safetensors_state_dict(tmp_path):
    """A state_dict that the safetensors library wrote loads like a .pdparams."""
    images = paddle.rand([32, 1, 8, 8])

    def network():
        paddle.seed(3)
        net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                            nn.Linear(144, 10))
        return algorithm.apply(net, images)

    algorithm = SimQAT({"enable_fusion": True})
    trained = network()
    for _ in range(3):
        trained(images)
    path = str(tmp_path / "net.safetensors")
    safetensors.numpy.save_file({name: np.ascontiguousarray(value.numpy())
                                 for name, value in trained.state_dict().items()}, path)
    paddle.save(trained.state_dict(), str(tmp_path / "net.pdparams"))
    by_both = [algorithm.convert(network(), str(tmp_path / f"net.{ending}"))
               for ending in ("safetensors", "pdparams")]
    for model in by_both:
        assert np.array_equal(model(images).numpy(), algorithm.convert(trained)(images).numpy())
    with pytest.raises(ModelError, match="left over|missing"):
        algorithm.convert(algorithm.apply(nn.Sequential(nn.Linear(64, 10)), images.flatten(1)),
                          path)
    content = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(content[:-1])
    with pytest.raises(FormatError, match="safetensors"):
        algorithm.convert(network(), path)


def test_bfloat16_state(tmp_path):
    """read_state returns the same bits as from a .pdparams file."""
    net = nn.Linear(3, 2)
    net.to(dtype="bfloat16")
    paddleq.save_checkpoint(net, tmp_path / "net")
    state = read_state(tmp_path / "net.safetensors")
    assert np.array_equal(state["weight"], bits(net.weight).view("uint16"))


@settings(max_examples=40)
@given(content=st.binary(max_size=200))
def test_random_bytes_raise_format_errors(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "state.safetensors"
    path.write_bytes(content)
    try:
        state = read_state(path)
    except PaddleqError:
        return
    assert isinstance(state, dict)


def test_copies_have_independent_checkpoints(tmp_path):
    model = deploy(nn.Sequential(nn.Linear(32, 32)), W4)
    other = copy.deepcopy(model)
    other[0].weight_scale.set_value(other[0].weight_scale * 2.0)
    paddleq.save_checkpoint(other, tmp_path / "copy")
    paddleq.load_checkpoint(model, tmp_path / "copy")
    same_state(model, other)
