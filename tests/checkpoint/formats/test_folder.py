"""Folders for servers: names, shards, config.json, float tensors, and files that do not fit."""

import json
import os

import numpy as np
import paddle
import pytest
from checkpoint_layouts import read_folder
from deployed import ACTIVATIONS, WEIGHTS, deploy
from llama_names import CONFIG, IDS, LlamaForCausalLM
from paddle import nn

import paddleq
from paddleq.checkpoint import (
    CHECKPOINT_FORMATS,
    CheckpointFormat,
    register_checkpoint_format,
)
from paddleq.checkpoint.formats import LinearWeight, Scheme
from paddleq.cli.main import main
from paddleq.errors import ConfigError, ConfigTypeError, ExportError, FormatError, ModelError
from paddleq.nn import IntegerLinear

TOKENS = paddle.to_tensor(IDS)
NAMES = {"llama.": "model."}
FILES = {"gptq": ["quantize_config.json"]}  # besides config.json and the tensors
CHANNELS = ("paddlenlp", "fastdeploy")  # formats that do not have small groups


def quantized(prefix="model", weight="W4 g32"):
    model = LlamaForCausalLM(prefix)
    deploy(getattr(model, prefix), WEIGHTS[weight])
    model.eval()
    return model


def logits(model):
    with paddle.no_grad():
        return model(TOKENS).numpy()


@pytest.mark.parametrize("format", CHECKPOINT_FORMATS)
def test_restores_a_decoder_from_shards(format, tmp_path):
    model = quantized("llama", "W4 channel" if format in CHANNELS else "W4 g32")
    for name, value in model.state_dict().items():
        if name.endswith("weight_scale"):
            value.set_value(value.astype("float16").astype("float32"))
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    paddleq.save_checkpoint(model, tmp_path, format=format, max_shard_size="30KB", config=CONFIG,
                            names=NAMES)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1 and files == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in
        range(1, len(files) + 1)]
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*files, "config.json", "model.safetensors.index.json", *FILES.get(format, [])])
    config, arrays = read_folder(tmp_path)
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert set(arrays) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in arrays.values())
    assert all(os.path.getsize(tmp_path / file) < 35000 for file in files)
    assert all(name.startswith(("model.", "lm_head.")) for name in arrays)
    head = model.lm_head.weight.numpy()
    assert np.array_equal(arrays["lm_head.weight"],
                          head.T if CHECKPOINT_FORMATS[format].transposed else head)
    other = paddleq.load_checkpoint(LlamaForCausalLM("llama"), tmp_path, names=NAMES)
    assert np.array_equal(logits(other), logits(model))
    for name, value in model.state_dict().items():
        assert np.array_equal(other.state_dict()[name].numpy(), value.numpy()), name
        assert np.array_equal(before[name], value.numpy()), name


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = quantized()
    for name in ("first", "second"):
        paddleq.save_checkpoint(model, tmp_path / name, format="gptq")
    for file in os.listdir(tmp_path / "first"):
        assert (tmp_path / "first" / file).read_bytes() == (
            tmp_path / "second" / file).read_bytes(), file


def test_config_is_that_of_the_folder_or_the_one_given(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    paddleq.save_checkpoint(quantized(), tmp_path, format="gptq")
    assert read_folder(tmp_path)[0]["model_type"] == "llama"
    paddleq.save_checkpoint(quantized(), tmp_path / "b", format="gptq",
                            config=tmp_path / "config.json")
    assert read_folder(tmp_path / "b")[0]["model_type"] == "llama"
    with pytest.raises(ConfigTypeError, match="JSON"):
        paddleq.save_checkpoint(quantized(), tmp_path / "c", format="gptq", config={"a": object()})


def test_float_layers_are_listed(tmp_path):
    model = quantized()
    paddleq.save_checkpoint(model, tmp_path, format="compressed-tensors")
    assert read_folder(tmp_path)[0]["quantization_config"]["ignore"] == ["lm_head"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float_tensors_keep_and_convert_their_types(dtype, tmp_path):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    deploy(nn.Sequential(model[0]), WEIGHTS["W4 g32"])
    model.to(dtype=dtype)
    paddleq.save_checkpoint(model, tmp_path, format="gptq")
    same = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64)).to(dtype=dtype)
    wide = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    for other in (same, wide):
        paddleq.load_checkpoint(other, tmp_path)
        for name, value in model.state_dict().items():
            assert np.array_equal(other.state_dict()[name].astype("float32").numpy(),
                                  value.astype("float32").numpy()), name


def test_shared_tensors_are_stored_once(tmp_path):
    class Tied(nn.Layer):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc = nn.Embedding(9, 64), nn.Linear(64, 64)
            self.tied = self.embedding.weight

    model = Tied()
    deploy(model, WEIGHTS["W4 g32"])
    paddleq.save_checkpoint(model, tmp_path, format="gptq")
    names = {"embedding.weight", "tied"} & set(read_folder(tmp_path)[1])
    assert len(names) == 1
    other = paddleq.load_checkpoint(Tied(), tmp_path)
    assert np.array_equal(other.tied.numpy(), model.embedding.weight.numpy())


def test_refuses_layers_that_no_server_format_has(tmp_path):
    model = nn.Sequential(nn.Embedding(8, 32), nn.Linear(32, 32))
    with pytest.raises(ModelError, match="no integer Linear"):
        paddleq.save_checkpoint(model, tmp_path / "out", format="gptq")
    ptq = paddleq.PTQ()
    simulated = ptq.quantize(model)
    ptq.calibrate(simulated, [paddle.to_tensor([[1, 2]])])
    with pytest.raises(ModelError, match=r"simulated; call freeze\(\)"):
        paddleq.save_checkpoint(simulated, tmp_path / "out", format="gptq")
    paddleq.freeze(simulated)
    with pytest.raises(ExportError, match="'[01]'.*IntegerLinear"):
        paddleq.save_checkpoint(simulated, tmp_path / "out", format="gptq")
    assert not (tmp_path / "out").exists()


def test_refuses_folders_with_other_checkpoints(tmp_path):
    paddleq.save_checkpoint(quantized(), tmp_path, format="gptq", max_shard_size=30000)
    before = {file: (tmp_path / file).read_bytes() for file in os.listdir(tmp_path)}
    with pytest.raises(ExportError, match="model-00001-of"):
        paddleq.save_checkpoint(quantized(), tmp_path, format="gptq")
    assert before == {file: (tmp_path / file).read_bytes() for file in os.listdir(tmp_path)}
    paddleq.save_checkpoint(quantized(), tmp_path, format="gptq", max_shard_size=30000)


@pytest.mark.parametrize("options, error", [
    ({"max_shard_size": "5 XB"}, ConfigError), ({"max_shard_size": 0}, ConfigError),
    ({"max_shard_size": True}, ConfigError), ({"names": ["model"]}, ConfigTypeError),
    ({"names": {"a": 1}}, ConfigTypeError), ({"config": 3}, ConfigTypeError),
    ({"format": "ggml"}, ConfigError),
    ({"format": "paddleq", "names": {}}, ConfigError)])
def test_rejects_invalid_options(options, error, tmp_path):
    with pytest.raises(error):
        paddleq.save_checkpoint(quantized(), tmp_path / "out", **{"format": "gptq", **options})
    assert not (tmp_path / "out").exists()


def test_names_are_an_option_of_folders(tmp_path):
    model = deploy(nn.Sequential(nn.Linear(32, 32)), WEIGHTS["W8 channel"])
    paddleq.save_checkpoint(model, tmp_path / "model")
    with pytest.raises(ConfigError, match="names"):
        paddleq.load_checkpoint(model, tmp_path / "model", names={"a": "b"})


class Plain(CheckpointFormat):
    """The integers as they are, per channel."""

    servers, marker, transposed = "none", "codes", False

    @classmethod
    def recognizes(cls, config):
        return config.get("quant_method") == "plain"

    def check(self, name, weight):
        pass

    def config(self, schemes, floats):
        return {"quant_method": "plain", "bits": {name: each.bits for name, each
                                                  in schemes.items()}}

    def encode(self, weight, config):
        return {"codes": weight.integers, "steps": weight.scale, "zeros": weight.zero_points}

    def decode(self, name, tensors, config, features):
        return LinearWeight(Scheme(config["bits"][name], False, None, False), tensors["codes"],
                            tensors["steps"], tensors["zeros"], np.zeros(features, "int32"))


def test_a_format_from_outside(tmp_path, capsys):
    register_checkpoint_format("plain")(Plain)
    try:
        model = deploy(nn.Sequential(nn.Linear(9, 7)), WEIGHTS["W5 channel"])
        paddleq.save_checkpoint(model, tmp_path, format="plain")
        other = paddleq.load_checkpoint(nn.Sequential(nn.Linear(9, 7)), tmp_path)
        x = paddle.rand([3, 9])
        assert np.array_equal(other(x).numpy(), model(x).numpy())
        assert main(["extensions"]) == 0
        assert "compressed-tensors, gptq, paddlenlp, fastdeploy, plain" in capsys.readouterr().out
    finally:
        CHECKPOINT_FORMATS.unregister("plain")


@pytest.fixture
def folder(tmp_path):
    paddleq.save_checkpoint(quantized(), tmp_path, format="gptq", max_shard_size="30KB",
                            config=CONFIG)
    return tmp_path


def rejected(folder, error, match, model=None, **options):
    model = LlamaForCausalLM() if model is None else model
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=match):
        paddleq.load_checkpoint(model, folder, **options)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {
        name: list(value.shape) for name, value in before.items()}
    for name, value in model.state_dict().items():
        assert np.array_equal(before[name], value.numpy()), name


def test_detects_a_shard_of_another_checkpoint(folder, tmp_path):
    other = tmp_path / "other"
    paddleq.save_checkpoint(quantized(), other, format="gptq", max_shard_size="30KB")
    name = sorted(each for each in os.listdir(other) if each.endswith(".safetensors"))[1]
    (folder / name).write_bytes((other / name).read_bytes())
    rejected(folder, FormatError, "another checkpoint")


def test_detects_missing_and_damaged_files(folder):
    name = sorted(each for each in os.listdir(folder) if each.endswith(".safetensors"))[0]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    rejected(folder, FormatError, "damaged")
    (folder / name).unlink()
    rejected(folder, FormatError, "cannot read")


@pytest.mark.parametrize("change, match", [
    (lambda index: index.update(weight_map=None), "must map"),
    (lambda index: index["weight_map"].update({"a": "../x.safetensors"}), "must map"),
    (lambda index: index["weight_map"].pop("model.layers.0.mlp.up_proj.g_idx"),
     "does not have the tensors"),
])
def test_detects_an_index_that_does_not_fit(change, match, folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    rejected(folder, FormatError, match)


@pytest.mark.parametrize("text, match", [
    ("{", "no JSON"), ("[]", "JSON object"), ("{}", "not quantized"),
    ('{"quantization_config": {"quant_method": "bitsandbytes"}}', "'bitsandbytes'.*gptq")])
def test_rejects_configurations_that_it_does_not_know(text, match, folder):
    (folder / "config.json").write_text(text)
    (folder / "quantize_config.json").unlink()
    rejected(folder, FormatError, match)


def test_rejects_models_that_do_not_fit(folder):
    rejected(folder, ModelError, "missing in it.*left over.*names", LlamaForCausalLM("llama"))
    model = LlamaForCausalLM()
    model.lm_head = nn.Linear(64, 95, bias_attr=False)
    rejected(folder, ModelError, "lm_head.weight is of another shape", model)
    model = LlamaForCausalLM()
    model.model.layers[0].mlp.up_proj = nn.Linear(64, 64, bias_attr=False)
    rejected(folder, ModelError, "64 output features in the model and 128", model)


def test_loads_into_integer_layers(folder):
    model = quantized(weight="W8 channel")
    paddleq.load_checkpoint(model, folder)
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, IntegerLinear) and layer.quant_type == "W4-per_group"


def test_rejects_simulated_models(folder):
    model = LlamaForCausalLM()
    paddleq.PTQ().quantize(model, inplace=True)
    with pytest.raises(ModelError, match="simulated"):
        paddleq.load_checkpoint(model, folder)


def test_w8a8_and_w4_layers_side_by_side(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    deploy(nn.Sequential(model[0]), WEIGHTS["W8 channel"], ACTIVATIONS["A8 token"])
    deploy(nn.Sequential(model[1]), WEIGHTS["W4 g32"])
    paddleq.save_checkpoint(model, tmp_path, format="compressed-tensors")
    config = read_folder(tmp_path)[0]["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert [each["targets"] for each in config["config_groups"].values()] == [["0"], ["1"]]
    other = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    paddleq.load_checkpoint(other, tmp_path)
    x = paddle.rand([3, 64])
    assert np.array_equal(other(x).numpy(), model(x).numpy())
