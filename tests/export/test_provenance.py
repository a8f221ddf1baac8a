"""Provenance file beside an export: correct, complete, deterministic, for every exporter."""

import hashlib
import os
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import paddle
import pytest
import yaml
from nets import SmallNet
from paddle import nn
from paddle.static import InputSpec
from paths import ROOT

import paddleq
from paddleq.errors import ExportError
from paddleq.frontends.golden_stick import PTQ as GoldenStickPTQ
from paddleq.frontends.golden_stick import PTQConfig
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.recipes import Recipe, run

IMAGE = [InputSpec([None, 1, 8, 8], "float32", "x")]


def record(folder, name="m"):
    """Return the entries beside an export, after checking their digests."""
    entries = yaml.safe_load((folder / f"{name}.paddleq.yaml").read_text())["exports"]
    for each in entries:
        for file, digest in each["files"].items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
        assert each["versions"]["paddle"] == paddle.__version__
    return entries


def calibrated(net=None, **options):
    ptq = paddleq.PTQ("HistQuantizer", hist_percent=0.999)
    quantized = ptq.quantize(net or SmallNet(), **options)
    ptq.calibrate(quantized, [paddle.rand([4, 1, 8, 8])])
    return ptq, quantized


def bare(row):
    """Return a row without its range of scales, which depends on weights and data."""
    return {key: {name: {k: v for k, v in each.items() if k != "scale"}
                  for name, each in value.items()} if key == "quantizers" else value
            for key, value in row.items()}


def test_ptq_records_method_and_layers(tmp_path):
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(144, 10))
    ptq, quantized = calibrated(net, fuse=True, skip=["^4$"])
    ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE)
    (entry,) = record(tmp_path)
    assert entry["format"] == "pdmodel" and entry["model"] == "Sequential"
    assert entry["quantize"] == {
        "method": "ptq", "fuse": True, "rules": [{"pattern": "^4$", "skip": True}],
        "activation_quantizer": {"name": "HistQuantizer", "quant_bits": 8, "bins": 1024,
                                 "upsample_bins": 64, "hist_percent": 0.999},
        "weight_quantizer": {"name": "PerChannelAbsmaxQuantizer", "quant_bits": 8}}
    rows = {row["name"]: row for row in entry["layers"]}
    assert bare(rows["0"]) == {
        "name": "0", "type": "Conv2D", "done": "quantized", "why": "quantized by type Conv2D",
        "quantizers": {
            "activation": {"observer": "HistogramObserver", "bits": 8,
                           "granularity": "per_tensor"},
            "weight": {"observer": "CurrentAbsMaxObserver", "bits": 8,
                       "granularity": "per_channel(0)"}}}
    weight = np.abs(quantized[0].weight.numpy()).max((1, 2, 3))
    low, high = map(float, rows["0"]["quantizers"]["weight"]["scale"].split(".."))
    assert low == pytest.approx(weight.min() / 127, rel=1e-3)
    assert high == pytest.approx(weight.max() / 127, rel=1e-3)
    assert rows["1"]["done"] == "folded"
    assert rows["4"] == {"name": "4", "type": "Linear", "done": "left",
                         "why": "excluded by pattern '^4$'"}
    # The same as in the summary.
    assert [[row[key] for key in ("name", "type", "done", "why")] for row in entry["layers"]] == [
        [row.name, row.type, row.done, row.why] for row in paddleq.engine.summary_rows(quantized)]


def test_ptq_entry_is_a_valid_recipe_section(tmp_path):
    """In a recipe it gives the same file from the same weights and data."""
    images = np.random.RandomState(0).rand(16, 1, 8, 8).astype("float32")
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "zoo.py").write_text(
        "from paddle import nn\n\n\ndef build():\n    return nn.Sequential(\n"
        "        nn.Conv2D(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n")
    base = {"paddleq": 1, "model": {"build": "zoo.py:build", "weights": "net.pdparams",
                                    "input_spec": [{"name": "x", "shape": [None, 1, 8, 8]}]},
            "data": {"calibration": {"source": "images.npy", "batch_size": 16}}}
    with paddle.utils.unique_name.guard():
        net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        paddle.save(net.state_dict(), str(tmp_path / "net.pdparams"))
        ptq = paddleq.PTQ(paddleq.paddleslim.HistQuantizer(7, hist_percent=0.99),
                          paddleq.paddleslim.AbsmaxQuantizer(6))
        quantized = ptq.quantize(net, skip=nn.Linear)
        ptq.calibrate(quantized, [paddle.to_tensor(images)])
        ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE)
    (entry,) = record(tmp_path)
    text = yaml.safe_dump({**base, "quantize": entry["quantize"],
                           "export": {"path": "again"}}, sort_keys=False)
    run(Recipe.parse(text, folder=str(tmp_path)))
    for ending in (".pdmodel", ".pdiparams"):
        assert (tmp_path / f"again{ending}").read_bytes() == (tmp_path / f"m{ending}").read_bytes()
    (again,) = record(tmp_path, "again")
    assert again["layers"] == entry["layers"]


def test_formats_at_one_prefix_share_a_file_in_any_order(tmp_path):
    texts = set()
    for number, formats in enumerate((("pdmodel", "onnx"), ("onnx", "pdmodel"),
                                      ("pdmodel", "onnx", "pdmodel"))):
        folder = tmp_path / str(number)
        paddle.seed(3)
        with paddle.utils.unique_name.guard():
            ptq, quantized = calibrated()
            for format in formats:
                with paddle.utils.unique_name.guard():
                    ptq.save_quantized_model(quantized, folder / "m", IMAGE, format=format)
        entries = record(folder)
        assert [each["format"] for each in entries] == ["onnx", "pdmodel"]
        assert "paddle2onnx" in entries[0]["versions"]
        assert entries[0]["layers"] == entries[1]["layers"]
        texts.add((folder / "m.paddleq.yaml").read_bytes())
    assert len(texts) == 1


def test_entries_of_removed_or_overwritten_files_are_removed(tmp_path):
    ptq, quantized = calibrated()
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE, format=format)
    (tmp_path / "m.onnx").write_bytes(b"another one")
    ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE)
    assert [each["format"] for each in record(tmp_path)] == ["pdmodel"]
    paddleq.export.to_onnx(quantized, tmp_path / "m", IMAGE)
    (tmp_path / "m.pdiparams").unlink()
    paddleq.export.to_onnx(quantized, tmp_path / "m", IMAGE)
    assert [each["format"] for each in record(tmp_path)] == ["onnx"]


@pytest.mark.needs_pir
def test_pir_overwrites_the_parameters_of_a_pdmodel(tmp_path):
    ptq, quantized = calibrated()
    for format in ("pdmodel", "onnx", "pir"):
        ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE, format=format)
    assert [each["format"] for each in record(tmp_path)] == ["pir", "onnx"]


@pytest.mark.parametrize("content", [
    b"\xff\xfe no text", b"[", b"- 1\n", b"exports: 3\n", b"exports: [3, {files: x}]\n",
    b"date: 2020-99-99\n", b"exports: [{files: {m.onnx: 3}}, {files: {../m: x}}]\n"])
def test_damaged_provenance_does_not_stop_an_export(tmp_path, content):
    (tmp_path / "m.paddleq.yaml").write_bytes(content)
    ptq, quantized = calibrated()
    ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE)
    assert [each["format"] for each in record(tmp_path)] == ["pdmodel"]
    paddleq.export.to_onnx(tmp_path / "m", tmp_path / "n")
    (tmp_path / "m.paddleq.yaml").write_bytes(content)
    paddleq.export.to_onnx(tmp_path / "m", tmp_path / "n")
    (entry,) = record(tmp_path, "n")
    assert sorted(entry["made_from"]) == ["m.pdiparams", "m.pdmodel"] and entry["layers"]


@pytest.mark.parametrize("format, ending", [("pdmodel", ".pdmodel"), ("onnx", ".onnx")])
def test_failed_export_writes_none(tmp_path, format, ending):
    ptq, quantized = calibrated()
    (tmp_path / f"m{ending}").mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE, format=format)
    assert [each.name for each in tmp_path.iterdir()] == [f"m{ending}"]
    # Nor is there an export where its record cannot be written.
    (tmp_path / "n.paddleq.yaml").mkdir()
    with pytest.raises(ExportError, match=r"n\.paddleq\.yaml"):
        ptq.save_quantized_model(quantized, tmp_path / "n", IMAGE, format=format)
    assert sorted(each.name for each in tmp_path.iterdir()) == [f"m{ending}", "n.paddleq.yaml"]


def test_failed_export_keeps_the_old_provenance(tmp_path):
    ptq, quantized = calibrated()
    ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(ExportError):
        ptq.save_quantized_model(quantized, tmp_path / "m", IMAGE, format="onnx")
    (tmp_path / "m.onnx").rmdir()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


class Own(nn.Layer):
    """User-defined preprocess."""

    def forward(self, x):
        return x


def test_qat_records_configuration_and_hooks(tmp_path):
    config = {"weight_bits": 4, "activation_quantize_type": "lsq",
              "quantizable_layer_type": ["Conv2D"]}
    qat = paddleq.QAT(config, weight_preprocess=Own, weight_quantize=paddleq.FakeQuantize.with_args(
        observer=paddleq.observers.MinMaxObserver, dtype="qint8", qscheme="per_tensor_symmetric"))
    net = qat.quantize(SmallNet(), skip="conv2")
    net(paddle.rand([4, 1, 8, 8])).sum().backward()
    qat.save_quantized_model(net, tmp_path / "m", IMAGE, onnx_format=False)
    (entry,) = record(tmp_path)
    said = entry["quantize"]
    assert said["method"] == "qat" and entry["onnx_format"] is False
    assert {key: said["config"][key] for key in config} == config
    assert said["weight_preprocess"] == "Own" and said["rules"] == [
        {"name": "conv2", "skip": True}]
    assert said["weight_quantize"] == {
        "name": "FakeQuantize", "observer": "MinMaxObserver", "dtype": "qint8",
        "qscheme": "per_tensor_symmetric"}
    paddleq.QAT(said["config"])  # it is one that QAT takes
    row = next(row for row in entry["layers"] if row["name"] == "conv1")
    assert row["quantizers"]["activation"]["quantizer"] == "LSQ"
    assert row["quantizers"]["weight"]["observer"] == "MinMaxObserver"


def test_simulated_qat(tmp_path):
    config = {"per_channel": (False, True), "symmetric": True, "enable_fusion": True}
    algorithm, x = SimQAT(config), paddle.rand([4, 1, 8, 8])
    net = algorithm.apply(SmallNet(), x)
    net(x).sum().backward()
    paddleq.export.save(algorithm.convert(net), tmp_path / "m", IMAGE)
    (entry,) = record(tmp_path)
    said = entry["quantize"]
    assert said["method"] == "simulated_qat"
    assert said["config"]["per_channel"] == [False, True] and said["config"]["enable_fusion"]
    assert said["config"]["quant_dtype"] == ["INT8", "INT8"]


class Stack(nn.Layer):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 96, dropout=0.0, normalize_before=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.encoder(x))


TOKENS = [InputSpec([None, 8, 64], "float32", "x")]


def test_golden_stick_ptq(tmp_path):
    config = PTQConfig(weight_quant_dtype="int4", weight_quant_granularity="per_group",
                       group_size=64, precision_recovery="gptq", opname_blacklist=["self_attn"])
    policies = OrderedDict({".*linear2$": PTQConfig(), "head": None})
    ptq = GoldenStickPTQ(config, policies)
    net = ptq.convert(ptq.apply(Stack(), datasets=[paddle.rand([2, 8, 64])]))
    paddleq.save_quantized_model(net, tmp_path / "m", TOKENS)
    (entry,) = record(tmp_path)
    said = entry["quantize"]
    assert said["method"] == "golden_stick"
    # Said so that it can be given again.
    assert PTQConfig.parse(said["config"]) == config
    assert PTQConfig.parse(said["layer_policies"][".*linear2$"]) == policies[".*linear2$"]
    assert said["layer_policies"]["head"] is None
    rows = {row["name"]: row for row in entry["layers"]}
    assert rows["encoder.layers.0.linear1"]["quantizers"] == {
        "weight": {"bits": 4, "granularity": "per_group(64)"}}
    assert rows["encoder.layers.0.linear1"]["why"] == "GPTQ-W4-per_group"
    assert "self_attn" in rows["encoder.layers.0.self_attn.q_proj"]["why"]
    assert rows["head"]["done"] == "left" and "layer_policies" in rows["head"]["why"]


def test_amct(tmp_path):
    config = {"batch_num": 1, "skip_layers": "head", "algorithm": {"smoothquant"},
              "quant_cfg": {"weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
                            "inputs": {"type": "int8", "symmetric": True, "strategy": "tensor"}}}
    net = Stack()
    paddleq.amct.quantize(net, config)
    with paddle.no_grad():
        net(paddle.rand([2, 8, 64]))
    paddleq.amct.convert(net)
    paddleq.save_quantized_model(net, tmp_path / "m", TOKENS)
    (entry,) = record(tmp_path)
    assert entry["quantize"] == {"method": "amct",
                                 "config": {**config, "algorithm": {"smoothquant": {}}}}
    paddleq.amct.quantize(Stack(), entry["quantize"]["config"])
    row = next(row for row in entry["layers"] if row["name"] == "encoder.layers.0.linear1")
    assert row["quantizers"]["activation"] == {"bits": 8, "granularity": "per_tensor"}


def test_parts_quantized_separately(tmp_path):
    net = nn.Sequential(nn.Sequential(nn.Conv2D(1, 4, 3), nn.ReLU()), nn.Flatten(),
                        nn.Sequential(nn.Linear(144, 10)))
    paddleq.QAT().quantize(net[0])
    paddleq.QAT({"weight_bits": 4}).quantize(net[2])
    net(paddle.rand([4, 1, 8, 8])).sum().backward()
    paddleq.save_quantized_model(net, tmp_path / "m", IMAGE)
    (entry,) = record(tmp_path)
    assert [(each["part"], each["config"]["weight_bits"]) for each in entry["quantize"]] == [
        ("0", 8), ("2", 4)]


def float_files(folder):
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    net.eval()
    paddle.jit.save(net, str(folder / "float" / "net"), IMAGE)
    return net, {each.name: hashlib.sha256(each.read_bytes()).hexdigest()
                 for each in (folder / "float").iterdir()
                 if each.suffix in (".pdmodel", ".json", ".pdiparams")}


def test_saved_models(tmp_path):
    net, files = float_files(tmp_path)
    skipped = net[2].weight.name
    paddleq.quant_post_static(str(tmp_path / "float"), str(tmp_path), [paddle.rand([4, 1, 8, 8])],
                              algo="abs_max", skip_tensor_list=[skipped])
    (entry,) = record(tmp_path, "model")
    assert entry["made_from"] == files
    said = entry["quantize"]
    assert (said["method"], said["algo"], said["skip_tensor_list"]) == (
        "quant_post_static", "abs_max", [skipped])
    assert [bare(row) for row in entry["layers"]] == [
        {"name": net[0].weight.name, "type": "conv2d", "done": "quantized", "quantizers": {
            "weight": {"bits": 8, "granularity": "per_channel(0)"},
            "activation": {"bits": 8, "granularity": "per_tensor"}}},
        {"name": skipped, "type": "matmul_v2", "done": "left"}]
    # To ONNX at the same prefix: the entry of the source is used.
    paddleq.export.to_onnx(tmp_path / "model", tmp_path / "model", target="plain")
    onnx, pdmodel = record(tmp_path, "model")
    assert pdmodel == entry
    assert (onnx["made_from"], onnx["target"]) == (entry["files"], "plain")
    assert (onnx["quantize"], onnx["layers"]) == (entry["quantize"], entry["layers"])


def test_dynamic(tmp_path):
    net, files = float_files(tmp_path)
    for source in (net, str(tmp_path / "float")):
        paddleq.quant_post_dynamic(source, str(tmp_path), input_spec=IMAGE, weight_bits=16,
                                   save_model_filename="__model__", save_params_filename="w",
                                   generate_test_model=True, weight_quantize_type="abs_max")
        (entry,) = record(tmp_path / "quantized_model", "__model__")
        assert entry["quantize"] == {
            "method": "dynamic", "weight_bits": 16, "weight_quantize_type": "abs_max",
            "quantizable_op_type": ["conv2d", "depthwise_conv2d", "conv2d_transpose", "mul"]}
        assert entry["model"] == "Sequential" if source is net else entry["made_from"] == files
        assert [bare(row)["quantizers"] for row in entry["layers"]] == [
            {"weight": {"bits": 16, "granularity": "per_tensor"}}] * 2
        (entry,) = record(tmp_path / "test_model", "__model__")
        assert entry["as_float"] and {row["done"] for row in entry["layers"]} == {"left"}


def test_float_layer_to_onnx(tmp_path):
    paddleq.export.to_onnx(SmallNet(), tmp_path / "m.onnx", IMAGE, opset=14)
    (entry,) = record(tmp_path)
    assert entry["opset"] == 14 and "quantize" not in entry
    assert {row["why"] for row in entry["layers"]} == {"the model was not quantized"}


def test_another_process_writes_the_same_file(tmp_path):
    script = (
        "import zlib, sys, numpy as np, paddle, paddleq\n"
        "paddle.seed(0)\n"
        "net = paddle.nn.Sequential(paddle.nn.Linear(8, 4), paddle.nn.ReLU())\n"
        "qat = paddleq.QAT({'activation_preprocess_type': 'PACT'},\n"
        "    weight_quantize=paddleq.LSQ.with_args(learning_rate=0.1))\n"
        "qat.quantize(net, skip=['1'])(paddle.ones([2, 8])).sum().backward()\n"
        "qat.save_quantized_model(net, sys.argv[1])\n")
    for number in ("1", "2"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / number / "m")], check=True,
                       env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": number},
                       cwd=tmp_path)
        record(tmp_path / number)
    assert (tmp_path / "1" / "m.paddleq.yaml").read_bytes() == (
        tmp_path / "2" / "m.paddleq.yaml").read_bytes()
