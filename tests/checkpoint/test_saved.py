"""Checkpoints: the same bits back, from whole files of the same model only."""

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
    """A tied embedding, a layer that is used twice, buffers of all dtypes."""

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
def test_a_float_model_becomes_the_saved_one(tmp_path, weight, activation, how):
    model, path = quantized(weight, activation, **how), str(tmp_path / "in" / "model")
    paddleq.save_checkpoint(model, path)
    fresh = Net()
    assert paddleq.load_checkpoint(fresh, path) is fresh
    same_state(fresh, model)
    assert repr(fresh) == repr(model)
    for found, expected in zip(outputs(fresh), outputs(model)):
        assert np.array_equal(found, expected)
    # Sharing is as it was: of a layer, and of a parameter.
    assert fresh.again is fresh.body[0] and fresh.tied is fresh.embedding.weight
    # A second time, into the structure that is there already.
    fresh.again.weight_scale.set_value(paddle.zeros_like(fresh.again.weight_scale))
    paddleq.load_checkpoint(fresh, path)
    same_state(fresh, model)


def test_the_model_is_not_changed_by_saving(tmp_path):
    model = quantized()
    before = snapshot(model)
    paddleq.save_checkpoint(model, tmp_path / "model")
    assert snapshot(model) == before
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]


def test_others_read_the_tensors(tmp_path):
    """The safetensors library itself, but for bfloat16, which its numpy reader may lack."""
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


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in "ab":
        paddleq.save_checkpoint(quantized(), tmp_path / name)
    for ending in (".json", ".safetensors"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_the_description_says_what_it_is(tmp_path):
    paddleq.save_checkpoint(quantized(), tmp_path / "model")
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["version"] == 1
    assert content["libraries"] == {"paddleq": paddleq.__version__, "paddle": paddle.__version__}
    assert sorted(content["layers"]) == ["body.0", "head", "plain"]
    assert content["layers"]["plain"]["kind"] == "IntegerLinear"
    assert content["shared"]["embedding.weight"] == "tied"
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == (
        content["tensors_sha256"])


def refused(path, error=(FormatError, ModelError), match=None, model=None):
    """Loading is refused and leaves the model as it was."""
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


def written(folder, files, **changed):
    for ending, content in files.items():
        (folder / f"model{ending}").write_bytes(changed.get(ending[1:], content))
    return folder / "model"


@settings(max_examples=150)
@given(data=st.data(), ending=st.sampled_from([".json", ".safetensors"]),
       bit=st.integers(0, 7))
def test_one_flipped_bit_is_found(tmp_path_factory, files, data, ending, bit):
    content = bytearray(files[ending])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << bit
    refused(written(tmp_path_factory.mktemp("flipped"), files, **{ending[1:]: bytes(content)}),
            FormatError)


def test_any_flipped_byte_of_the_description_is_found(tmp_path, files):
    """Of its first lines each byte, of spaces into other spaces too."""
    for at in range(200):
        content = bytearray(files[".json"])
        content[at] = ord("\t") if content[at] == ord(" ") else content[at] ^ 1
        with pytest.raises(FormatError):
            paddleq.load_checkpoint(nn.Linear(1, 1), written(tmp_path, files,
                                                            json=bytes(content)))


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, files, ending, share):
    content = files[f".{ending}"]
    cut = content[:int(len(content) * share)]
    refused(written(tmp_path, files, **{ending: cut}), FormatError)
    refused(written(tmp_path, files, **{ending: content + b" "}), FormatError)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_missing_file_is_refused(tmp_path, files, ending):
    path = written(tmp_path, files)
    (tmp_path / f"model.{ending}").unlink()
    refused(path, FormatError, "model")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.trap),)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_pickle_is_refused_and_not_unpickled(tmp_path, files, ending):
    Bomb.trap = tmp_path / "trap"
    refused(written(tmp_path, files, **{ending: pickle.dumps({"w": Bomb()})}), FormatError)
    state = tmp_path / "state.pdparams"
    paddle.save(quantized().state_dict(), str(state))
    refused(written(tmp_path, files, **{ending: state.read_bytes()}), FormatError)
    assert not Bomb.trap.exists()


def signed(content):
    """The description with a right digest: what somebody would forge."""
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
def test_a_forged_description_is_refused(tmp_path, files, change):
    content = json.loads(files[".json"])
    refused(written(tmp_path, files, json=signed({**content, **change})))


def test_a_forged_layer_is_refused(tmp_path, files):
    content = json.loads(files[".json"])
    content["layers"]["plain"]["description"]["weight"]["bits"] = 99
    refused(written(tmp_path, files, json=signed(content)), FormatError, "bits")


def test_files_of_two_models_do_not_go_together(tmp_path, files):
    paddleq.save_checkpoint(quantized(seed=1), tmp_path / "other")
    other = (tmp_path / "other.safetensors").read_bytes()
    refused(written(tmp_path, files, safetensors=other), FormatError, "does not belong")


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


def test_another_model_is_refused_and_stays_as_it_was(tmp_path, files):
    path = written(tmp_path, files)
    refused(path, ModelError, "plain", Without())
    refused(path, ModelError, "features", Net(16))
    more = Net()
    more.extra = nn.LayerNorm(3)
    refused(path, ModelError, "extra.weight", more)
    no_linear = Net()
    no_linear.plain = nn.LayerNorm(32)
    refused(path, ModelError, "plain|Linear", no_linear)
    biased = Net()
    biased.plain = nn.Linear(32, 32)
    refused(path, ModelError, "bias", biased)
    other_dtype = Net()
    other_dtype.body[1].to(dtype="float16")
    refused(path, ModelError, "body.1.weight", other_dtype)
    # Quantized, but otherwise.
    refused(path, ModelError, "weight", quantized(W8))
    more_quantized = quantized(W4)
    more_quantized.extra = IntegerLinear(32, 32, W4)
    refused(path, ModelError, "extra", more_quantized)


@pytest.mark.parametrize("saved, own", [({}, {"smoothed": True}), ({"smoothed": True}, {}),
                                        ({"permuted": True}, {})])
def test_what_only_data_decide_is_as_the_file_says(tmp_path, saved, own):
    model, other = quantized(W4, **saved), quantized(W4, **own)
    paddleq.save_checkpoint(model, tmp_path / "model")
    paddleq.load_checkpoint(other, tmp_path / "model")
    same_state(other, model)


def test_sharing_that_is_not_the_models_own(tmp_path, files):
    # Apart in the model, one in the file: both get it.
    path, untied = written(tmp_path, files), Untied()
    paddleq.load_checkpoint(untied, path)
    assert np.array_equal(untied.tied.numpy(), untied.embedding.weight.numpy())
    # One in the model, two in the file: it cannot be both.
    paddleq.save_checkpoint(deploy(Untied(), W4), tmp_path / "untied")
    refused(tmp_path / "untied", ModelError, "one tensor", Net())


def test_a_float_model_has_a_checkpoint_too(tmp_path):
    model, fresh = Net(), Net()
    paddleq.save_checkpoint(model, tmp_path / "float")
    paddleq.load_checkpoint(fresh, tmp_path / "float")
    same_state(fresh, model)
    refused(tmp_path / "float", ModelError, "plain", quantized())


@pytest.mark.parametrize("call", [paddleq.save_checkpoint, paddleq.load_checkpoint])
def test_wrong_arguments(tmp_path, call):
    with pytest.raises(ConfigTypeError, match="model"):
        call({"weight": 1}, tmp_path / "model")
    with pytest.raises(ConfigTypeError, match="path"):
        call(Net(), 3)
    with pytest.raises(ConfigTypeError, match="path"):
        call(Net(), "")


def test_a_target_that_cannot_be_written(tmp_path):
    (tmp_path / "model.json").mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        paddleq.save_checkpoint(quantized(), tmp_path / "model")
    assert os.listdir(tmp_path) == ["model.json"]  # nothing is left half way


def test_a_dtype_that_the_format_lacks(tmp_path):
    model = Net()
    model.register_buffer("wide", paddle.zeros([2], "complex128"))
    with pytest.raises(ModelError, match="wide is complex128"):
        paddleq.save_checkpoint(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def checkpoints_after_crashes(folder, *arguments):
    """Return (finished renames, "ones", "twos" or "refused") for each step that was killed."""
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
    """The old files before the first rename, the new ones after the last; torn ones are refused."""
    return ["ones" if count == 0 else "twos" if count == max(renames) else "refused"
            for count in renames]


def test_a_killed_process_leaves_whole_files(tmp_path):
    renames, found = zip(*checkpoints_after_crashes(tmp_path))
    assert max(renames) == 2 and renames.count(0) >= 2  # at each write, and between the renames
    assert list(found) == expected_after_crashes(renames)
    # The renames follow all writes: no step but a rename lies between the first and the last.
    assert renames[-3:] == (0, 1, 2) and found[-3:] == ("ones", "refused", "twos")


def test_the_crash_test_detects_a_rename_before_the_last_write(tmp_path):
    renames, _ = zip(*checkpoints_after_crashes(tmp_path, "interleaved"))
    assert renames[-3:] != (0, 1, 2)


def test_a_state_in_safetensors_for_simulated_training(tmp_path):
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


def test_a_state_of_bfloat16(tmp_path):
    """read_state gives the bits, as it does of a .pdparams."""
    net = nn.Linear(3, 2)
    net.to(dtype="bfloat16")
    paddleq.save_checkpoint(net, tmp_path / "net")
    state = read_state(tmp_path / "net.safetensors")
    assert np.array_equal(state["weight"], bits(net.weight).view("uint16"))


@settings(max_examples=40)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_an_error_of_ours(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "state.safetensors"
    path.write_bytes(content)
    try:
        state = read_state(path)
    except PaddleqError:
        return
    assert isinstance(state, dict)


def test_a_copy_has_a_checkpoint_of_its_own(tmp_path):
    model = deploy(nn.Sequential(nn.Linear(32, 32)), W4)
    other = copy.deepcopy(model)
    other[0].weight_scale.set_value(other[0].weight_scale * 2.0)
    paddleq.save_checkpoint(other, tmp_path / "copy")
    paddleq.load_checkpoint(model, tmp_path / "copy")
    same_state(model, other)
