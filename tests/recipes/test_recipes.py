"""Recipes: validation with line numbers, execution and reproducibility."""

import hashlib
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import paddle
import pytest
import yaml
from paths import ROOT
from runtimes import onnxruntime, paddle_inference, relative_error

import paddleq
from paddleq.algorithms import AdaRound
from paddleq.algorithms.distillation import seeded
from paddleq.errors import ConfigError, FormatError, ModelError, RecipeError
from paddleq.export.provenance_file import read_provenance
from paddleq.recipes import Recipe, run
from paddleq.recipes.run import sensitivities
from paddleq.recipes.sources import find_function, image_transform, open_data

GOOD = """\
paddleq: 1
seed: 5
model:
  build: zoo.py:build
  arguments: {channels: 6}
  input_spec:
    - {shape: [null, 1, 8, 8], name: image}
data:
  calibration:
    source: digits.npz
    labels: y
    batch_size: 32
    batches: 4
quantize:
  method: ptq
  activation_quantizer: {name: HistQuantizer, hist_percent: 0.999}
  weight_quantizer: PerChannelAbsmaxQuantizer
  fuse: true
  rules:
    - {name: "0", skip: true}
    - {type: Linear, weight_quantizer: AbsmaxQuantizer}
    - {pattern: "^3$", activation_quantizer: {name: KLQuantizer, bins: 512}}
export:
  - {format: pdmodel, path: out/net}
"""

ZOO = """\
from paddle import nn


def build(channels=8):
    return nn.Sequential(
        nn.Conv2D(1, channels, 3, bias_attr=False), nn.BatchNorm2D(channels), nn.ReLU(),
        nn.Conv2D(channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))


def nothing():
    return 3


def batches():
    import numpy as np
    for seed in range(3):
        yield [np.random.RandomState(seed).rand(4, 1, 8, 8).astype("float32")]
"""

# (text to replace, replacement, line of the mistake, its key, words of the message)
MISTAKES = {
    "misspelt section": ("export:", "exports:", 23, "exports", ["'export'"]),
    "misspelt key": ("source: digits.npz", "sorce: digits.npz", 10, "data.calibration.sorce",
                     ["'source'"]),
    "wrong version": ("paddleq: 1", "paddleq: 2", 1, "paddleq", ["1", "2"]),
    "negative seed": ("seed: 5", "seed: -1", 2, "seed", ["-1"]),
    "text for a number": ("seed: 5", "seed: five", 2, "seed", ["an int", "'five'"]),
    "bool for a number": ("batch_size: 32", "batch_size: true", 12, "data.calibration.batch_size",
                          ["an int", "True"]),
    "zero batches": ("batches: 4", "batches: 0", 13, "data.calibration.batches",
                     ["at least 1", "0"]),
    "no function": ("zoo.py:build", "zoo.py", 4, "model.build", ["module:function"]),
    "two models": ("model:\n", "model:\n  path: net\n", 3, "model", ["build", "path"]),
    "list for a mapping": ("{channels: 6}", "[6]", 5, "model.arguments", ["a mapping"]),
    "bad shape": ("[null, 1, 8, 8]", "[null, 0, 8, 8]", 7, "model.input_spec[0].shape",
                  ["null where one is open"]),
    "bad dtype": ("name: image}", "dtype: float23}", 7, "model.input_spec[0].dtype",
                  ["'float32'", "'float23'"]),
    "unknown method": ("method: ptq", "method: ptqq", 15, "quantize.method", ["'ptq'"]),
    "unknown quantizer": ("name: HistQuantizer", "name: HistQuantiser", 16,
                          "quantize.activation_quantizer", ["'HistQuantizer'"]),
    "unknown argument": ("hist_percent: 0.999", "hist_precent: 0.999", 16,
                         "quantize.activation_quantizer", ["'hist_percent'"]),
    "argument out of range": ("hist_percent: 0.999", "hist_percent: 1.5", 16,
                              "quantize.activation_quantizer", ["hist_percent", "1.5"]),
    "activation quantizer for weights": (
        "weight_quantizer: Per", "weight_quantizer: KLQuantizer #", 17,
        "quantize.weight_quantizer", ["KLQuantizer", "PerChannelAbsmaxQuantizer"]),
    "number for a bool": ("fuse: true", "fuse: 1", 18, "quantize.fuse", ["a bool", "1"]),
    "rule without a key": ('{name: "0", skip: true}', "{skip: true}", 20, "quantize.rules[0]",
                           ["name, type, pattern"]),
    "rule with two keys": ('{name: "0", skip: true}', '{name: "0", type: Linear, skip: true}', 20,
                           "quantize.rules[0]", ["name and type"]),
    "rule without quantizers": ('{name: "0", skip: true}', '{name: "0"}', 20, "quantize.rules[0]",
                               ["skip"]),
    "rule that contradicts itself": (
        "{type: Linear,", "{type: Linear, skip: true,", 21, "quantize.rules[1].weight_quantizer",
        ["contradicts skip"]),
    "unknown layer type": ("type: Linear", "type: Lineer", 21, "quantize.rules[1].type",
                           ["'Linear'"]),
    "misspelt key of accuracy": (
        "fuse: true", "accuracy: {metric: error, max_dorp: 0.1}", 18, "quantize.accuracy",
        ["'max_drop'"]),
    "metric without a drop": ("fuse: true", "accuracy: {metric: error}", 18, "quantize.accuracy",
                              ["max_drop"]),
    "unknown metric": ("fuse: true", "accuracy: {metric: eror, max_drop: 0.1}", 18,
                       "quantize.accuracy", ["'error'"]),
    "unknown rounding": ("fuse: true", "round_type: adarond", 18, "quantize.round_type",
                         ["'adaround'"]),
    "argument of a rounding": (
        "fuse: true", "round_type: {name: adaround, iteration: 3}", 18, "quantize.round_type",
        ["'iterations'"]),
    "argument of rounding to nearest": (
        "fuse: true", "round_type: {name: round, iterations: 3}", 18, "quantize.round_type",
        ["iterations"]),
    "value of a rounding": (
        "fuse: true", "round_type: {name: adaround, iterations: -3}", 18, "quantize.round_type",
        ["iterations", "-3"]),
    "unknown bias correction": ("fuse: true", "bias_correction: fsat", 18,
                                "quantize.bias_correction", ["'fast'"]),
    "number for equalize": ("fuse: true", "equalize: 1", 18, "quantize.equalize", ["a bool"]),
    "scope of a Layer": ("fuse: true", "scope: full", 18, "quantize.scope", ["saved model"]),
    "unknown scope": ("fuse: true", "scope: ful", 18, "quantize.scope", ["'full'"]),
    "bad regular expression": ('"^3$"', '"(3"', 22, "quantize.rules[2].pattern",
                               ["regular expression"]),
    "unknown format": ("format: pdmodel", "format: pdmodle", 24, "export[0].format",
                       ["'pdmodel'"]),
    "nothing to export": ("  - {format: pdmodel, path: out/net}", "  []", 23, "export",
                          ["empty"]),
    "the same path twice": ("path: out/net}", "path: out/net}\n  - {path: out/net}", 23, "export",
                            ["out/net", "twice"]),
    "key of another method": ("  method: ptq\n", "  method: dynamic\n", 16,
                              "quantize.activation_quantizer", ["no effect", "dynamic"]),
    "no data": ("  calibration:\n", "  evaluation:\n", 8, "data", ["calibration"]),
    "training data": ("quantize:\n", "  training: {source: digits.npz}\nquantize:\n", 14,
                      "data.training", ["no effect", "ptq"]),
    "a key twice": ("seed: 5", "seed: 5\nseed: 6", 3, "seed", ["second time", "line 2"]),
    "an unknown check": ("export:", "checks: {top1_agrement: 0.9}\nexport:", 23,
                         "checks.top1_agrement", ["'top1_agreement'"]),
    "an unknown runtime": ("export:", "checks: {runtimes: [openvion]}\nexport:", 23,
                           "checks.runtimes", ["'openvino'"]),
    "no YAML": ("seed: 5", "seed: [5", 3, "the document", ["no YAML"]),
    "a tab": ("  method: ptq", "\tmethod: ptq", 15, "the document", ["no YAML"]),
}


@pytest.fixture
def folder(tmp_path, digits):
    """A folder with a recipe and the files that it names."""
    (tmp_path / "zoo.py").write_text(ZOO)
    (tmp_path / "recipe.yaml").write_text(GOOD)
    images, labels = digits.train
    np.savez(tmp_path / "digits.npz", x=images[:256], y=labels[:256])
    return tmp_path


def test_at_least_25_kinds_of_mistakes_are_tested():
    assert len(MISTAKES) >= 25


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistake_is_reported_with_line_key_and_valid_values(kind):
    old, new, line, key, words = MISTAKES[kind]
    assert GOOD.count(old) == 1, "the row replaces one place"
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(GOOD.replace(old, new), source="recipe.yaml")
    messages = str(caught.value).splitlines()
    mine = [text for text in messages if text.startswith(f"recipe.yaml:{line}: {key}: ")]
    assert mine, messages
    assert all(word in mine[0] for word in words), mine


def test_all_mistakes_are_reported_at_once():
    text = GOOD.replace("seed: 5", "seed: -1").replace("fuse: true", "fuse: 1").replace(
        "format: pdmodel", "format: pdmodle")
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, source="r.yaml")
    assert [line for line, _, _ in caught.value.problems] == [2, 18, 24]


def test_rules_of_a_saved_model_are_names_to_skip():
    text = ("paddleq: 1\nmodel: {path: net}\ndata: {calibration: {source: x.npy}}\n"
            "quantize:\n  rules:\n    - {name: w, skip: true}\n    - {pattern: w, skip: true}\n"
            "export: {path: out}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:7: quantize.rules\[1\]: .*a name of a tensor"):
        Recipe.parse(text, source="r.yaml")
    recipe = Recipe.parse(text.replace("pattern", "name"))
    assert [rule.name for rule in recipe.values.quantize.rules] == ["w", "w"]


def test_merge_keys():
    text = GOOD.replace("  calibration:\n", "  evaluation: &base {source: a.npy, batches: 9}\n"
                                            "  calibration:\n    <<: *base\n")
    data = Recipe.parse(text).values.data
    assert (data.calibration.source, data.calibration.batches) == ("digits.npz", 4)
    assert (data.evaluation.source, data.evaluation.batches) == ("a.npy", 9)
    with pytest.raises(RecipeError, match="r.yaml:16: data.calibration.batches: stands"):
        Recipe.parse(text.replace("    batches: 4\n", "    batches: 4\n    batches: 5\n"),
                     source="r.yaml")


def test_empty_and_missing_recipes(tmp_path):
    with pytest.raises(RecipeError, match="empty"):
        Recipe.parse("")
    with pytest.raises(RecipeError, match="mapping"):
        Recipe.parse("- 1")
    with pytest.raises(FormatError, match="nowhere"):
        Recipe.load(str(tmp_path / "nowhere.yaml"))


def test_recipe_quantizes_by_its_rules(folder, digits):
    result = run(Recipe.load(str(folder / "recipe.yaml")))
    assert [os.path.relpath(path, folder) for path in result.files] == [
        "out/net.pdmodel", "out/net.pdiparams", "out/net.paddleq.yaml"]
    rows = paddleq.summary(result.model)
    assert "excluded by name '0'" in rows and "folded into 0" in rows
    parts = {name: dict(layer.quantizers()) for name, layer in result.model.named_sublayers()
             if hasattr(layer, "quantizers")}
    assert sorted(parts) == ["3", "6"]
    assert str(parts["6"]["weight_quantizer"].spec) == "int8 per_tensor"
    assert str(parts["3"]["weight_quantizer"].spec) == "int8 per_channel(0)"
    assert parts["3"]["activation_quantizer"].observer.bins == 512
    assert type(parts["6"]["activation_quantizer"].observer).__name__ == "HistogramObserver"
    images = digits.test[0]
    found = paddle_inference(str(folder / "out" / "net"), [images])[0]
    assert relative_error(found, result.model(paddle.to_tensor(images)).numpy()) < 1e-6


def test_checks_run_the_export(folder):
    text = GOOD + "checks: {runtimes: [paddle, openvino], top1_agreement: 0.9}\n"
    result = run(Recipe.parse(text, folder=str(folder)))
    assert result.ok and len(result.reports) == 1
    result = run(Recipe.parse(text.replace("0.9}", "0.9, relative_error: 0}"), folder=str(folder)))
    assert not result.ok


def digests(folder):
    return {name: hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest()
            for name in ("net.pdmodel", "net.pdiparams")}


def test_provenance_file_reproduces_an_export_byte_for_byte(folder):
    """In this process, which has used parameter names already, and in a new one."""
    run(Recipe.load(str(folder / "recipe.yaml")))
    first = digests(folder)
    record = yaml.safe_load((folder / "out" / "net.paddleq.yaml").read_text())
    (record,) = record["exports"]
    assert record["files"] == first
    assert record["versions"]["paddle"] == paddle.__version__
    assert record["recipe"] == yaml.safe_load(GOOD)
    for name in first:
        (folder / "out" / name).unlink()
    paddle.nn.Linear(2, 2)
    run(Recipe.load(str(folder / "out" / "net.paddleq.yaml")))
    assert digests(folder) == first
    script = ("from paddleq.recipes import Recipe, run\n"
              "run(Recipe.load('out/net.paddleq.yaml'))")
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, env={
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"})
    assert digests(folder) == first


def test_recipe_keeps_the_random_state_of_the_caller(folder):
    paddle.seed(11)
    np.random.seed(11)
    expected = paddle.rand([3]).tolist(), np.random.rand(3).tolist()
    paddle.seed(11)
    np.random.seed(11)
    run(Recipe.load(str(folder / "recipe.yaml")))
    assert (paddle.rand([3]).tolist(), np.random.rand(3).tolist()) == expected


def test_the_whole_graph_of_a_saved_model(folder):
    class Sum(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = paddle.nn.Linear(8, 8), paddle.nn.Linear(8, 4)

        def forward(self, x):
            x = self.first(x)
            return self.second(paddle.nn.functional.relu(x + self.first(0.5 * x)))

    net = Sum()
    net.eval()
    paddle.jit.save(net, str(folder / "float" / "sum"), [
        paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    text = """\
        paddleq: 1
        model: {path: float/sum}
        data: {calibration: {source: digits.npz, labels: y}}
        quantize: {activation_quantizer: AbsmaxQuantizer, fuse: false, scope: SCOPE}
        export: {path: out/SCOPE}
        """
    ptq = paddleq.PTQ("AbsmaxQuantizer", scope="full")
    model = ptq.quantize(paddleq.SavedModel(str(folder / "float" / "sum")))
    with np.load(str(folder / "digits.npz")) as arrays:
        images = arrays[next(name for name in arrays if name != "y")]
    ptq.calibrate(model, [images])
    with paddle.no_grad():
        expected = model(paddle.to_tensor(images[:8])).numpy()
    counts, errors = {}, {}
    for scope in ("weighted", "full"):
        recipe = Recipe.parse(textwrap.dedent(text).replace("SCOPE", scope), folder=str(folder))
        run(recipe)
        path = str(folder / "out" / scope)
        errors[scope] = relative_error(paddle_inference(path, [images[:8]])[0], expected)
        (record,) = yaml.safe_load(pathlib.Path(f"{path}.paddleq.yaml").read_text())["exports"]
        assert record["recipe"]["quantize"]["scope"] == scope
        counts[scope] = len(sensitivities(recipe))
    assert errors["full"] < 1e-6 < 1e-4 < errors["weighted"]
    assert counts == {"weighted": 3, "full": 4}


@pytest.mark.parametrize("format", ["pdmodel", "onnx"])
def test_saved_models_with_ptq_and_dynamic_quantization(folder, digits, format):
    net = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(64, 32), paddle.nn.ReLU(),
                               paddle.nn.Linear(32, 10))
    net.eval()
    paddle.jit.save(net, str(folder / "float" / "net"), [
        paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    images = digits.test[0]
    expected = net(paddle.to_tensor(images)).numpy()
    for method, data in (
            ("ptq, activation_quantizer: AbsmaxQuantizer",
             "data: {calibration: {source: digits.npz, labels: y}}"), ("dynamic", "")):
        text = textwrap.dedent(f"""\
            paddleq: 1
            model: {{path: float/net}}
            {data}
            quantize: {{method: {method}}}
            export: {{path: out/{method[:3]}, format: {format}}}
            """)
        result = run(Recipe.parse(text, folder=str(folder)))
        path = str(folder / "out" / method[:3])
        found = (paddle_inference if format == "pdmodel" else onnxruntime)(path, [images])[0]
        assert 1e-4 < relative_error(found, expected) < 0.03
        assert result.files[-1] == f"{path}.paddleq.yaml"
        (record,) = yaml.safe_load((folder / "out" / f"{method[:3]}.paddleq.yaml").read_text())[
            "exports"]
        assert record["format"] == format and record["recipe"]["quantize"]["method"] == (
            method.split(",")[0])
        assert [row["type"] for row in record["layers"]] == ["matmul_v2"] * 2
        assert [sorted(row["quantizers"]) for row in record["layers"]] == [
            ["activation", "weight"] if method[:3] == "ptq" else ["weight"]] * 2
    name, most = {"pdmodel": ("ptq.pdiparams", 4500), "onnx": ("ptq.onnx", 5500)}[format]
    assert (folder / "out" / name).stat().st_size < most  # of float weights: 9,600 bytes and more


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("metric", ["error", "scaled_net.py:mean_is_kept"])
def test_layers_stay_float_until_the_drop_is_allowed(folder, digits, saved, metric):
    """One input of a Linear has a channel that is 100 times larger than the others."""
    (folder / "scaled_net.py").write_text(textwrap.dedent("""\
        import numpy as np
        import paddle
        from paddle import nn

        def build():
            paddle.seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            for layer, factor in ((net[1], 100.0), (net[3], 0.01)):
                value = layer.weight.numpy()
                value[(slice(None), 3) if factor > 1 else 3] *= factor
                layer.weight.set_value(value)
            net.eval()
            return net

        def mean_is_kept(model):
            x = paddle.to_tensor(np.load("digits.npz")["x"])
            return -float((model(x) - build()(x)).abs().max())
        """))
    sys.path.insert(0, str(folder))
    try:
        from scaled_net import build
        net = build()
    finally:
        sys.path.remove(str(folder))
        del sys.modules["scaled_net"]
    paddle.jit.save(net, str(folder / "float" / "net"), [
        paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    model = "path: float/net" if saved else "build: scaled_net.py:build"
    text = textwrap.dedent(f"""\
        paddleq: 1
        model: {{{model}}}
        data: {{calibration: {{source: digits.npz, labels: y}}}}
        quantize:
          method: ptq
          activation_quantizer: AbsmaxQuantizer
          accuracy: {{metric: "{metric}", max_drop: 0.02, cost: macs}}
        export: {{path: out/net}}
        """)
    before = os.getcwd()
    os.chdir(folder)
    try:
        run(Recipe.parse(text, folder=str(folder)))
    finally:
        os.chdir(before)
    images, path = digits.test[0], str(folder / "out" / "net")
    expected = net(paddle.to_tensor(images)).numpy()
    assert relative_error(paddle_inference(path, [images])[0], expected) < 0.02
    (record,) = yaml.safe_load((folder / "out" / "net.paddleq.yaml").read_text())["exports"]
    quantized = [row["name"] for row in record["layers"] if row.get("quantizers")]
    assert len(quantized) == 1, record["layers"]


ALGORITHMS = {
    "round_type": ("{name: adaround, iterations: 20}", AdaRound(iterations=20)),
    "bias_correction": ("full", "full"),
    "equalize": ("true", True)}


@pytest.mark.parametrize("key", ALGORITHMS)
@pytest.mark.parametrize("saved", [False, True], ids=["Layer", "saved model"])
def test_algorithms_write_the_files_of_the_python_interface(key, saved, folder, digits):
    """Rounding, bias correction and equalization; without them the files are others."""
    (folder / "scaled_head.py").write_text(textwrap.dedent("""\
        import paddle
        from paddle import nn

        class Head(nn.Layer):
            # The factor is a number, which only an export can fold.
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(64, 10)

            def forward(self, x):
                return self.linear(x) * 2.0

        def build():
            paddle.seed(5)
            net = nn.Sequential(nn.Conv2D(1, 6, 3), nn.BatchNorm2D(6), nn.ReLU(),
                                nn.Conv2D(6, 4, 3), nn.ReLU(), nn.Flatten(), Head())
            net[0].weight.set_value(net[0].weight * paddle.logspace(0, 1, 6).reshape(
                [-1, 1, 1, 1]))
            return net
        """))
    text, value = ALGORITHMS[key]
    spec = [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")]
    build = find_function("scaled_head.py:build", str(folder))
    net = build()
    net.eval()
    paddle.jit.save(net, str(folder / "float" / "net"), spec)
    model = "path: float/net" if saved else (
        "build: scaled_head.py:build, input_spec: [{name: x, shape: [null, 1, 8, 8]}]")
    arguments = {"path": f"model: {{{model}}}", "both": [f"{key}: {text}", ""]}
    for name, line in zip(("recipe", "plain"), arguments["both"]):
        run(Recipe.parse(textwrap.dedent(f"""\
            paddleq: 1
            {arguments["path"]}
            data: {{calibration: {{source: digits.npz, labels: y, batch_size: 16, batches: 3}}}}
            quantize:
              method: ptq
              activation_quantizer: AbsmaxQuantizer
              weight_quantizer: {{name: PerChannelAbsmaxQuantizer, quant_bits: 4}}
              {line}
            export: {{path: out/{name}}}
            """), folder=str(folder)))
    x = np.load(folder / "digits.npz")["x"]
    data = [x[i:i + 16] for i in range(0, 48, 16)]
    with seeded(0), paddle.utils.unique_name.guard():
        if saved:
            paddleq.quant_post_static(folder / "float", folder / "out", data, algo="abs_max",
                                      weight_bits=4, save_model_filename="python.pdmodel",
                                      save_params_filename="python.pdiparams", **{key: value})
        else:
            ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(4),
                              **{key: value})
            quantized = ptq.quantize(build(), fuse=True)
            ptq.calibrate(quantized, data)
            ptq.save_quantized_model(quantized, str(folder / "out" / "python"), spec)

    def files(name):
        return [(folder / "out" / f"{name}.{ending}").read_bytes()
                for ending in ("pdmodel", "pdiparams")]

    assert files("recipe") == files("python")
    assert files("recipe")[1] != files("plain")[1]


def test_both_formats_of_a_saved_model_agree(folder, digits):
    """One calibration, two formats at one path and one provenance file that reproduces both."""
    net = paddle.nn.Sequential(paddle.nn.Conv2D(1, 4, 3), paddle.nn.BatchNorm2D(4),
                               paddle.nn.ReLU(), paddle.nn.Flatten(), paddle.nn.Linear(144, 10))
    net.eval()
    paddle.jit.save(net, str(folder / "float" / "net"), [
        paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    run(Recipe.parse(textwrap.dedent("""\
        paddleq: 1
        model: {path: float/net}
        data: {calibration: {source: digits.npz, labels: y}}
        quantize: {method: ptq}
        export: [{path: out/net}, {path: out/net, format: onnx}]
        """), folder=str(folder)))
    images, path = digits.test[0], str(folder / "out" / "net")
    found = paddle_inference(path, [images])[0], onnxruntime(path, [images])[0]
    assert relative_error(*found) < 1e-5
    first = {each.name: each.read_bytes() for each in (folder / "out").iterdir()}
    assert sorted(first) == ["net.onnx", "net.paddleq.yaml", "net.pdiparams", "net.pdmodel"]
    (folder / "out" / "net.onnx").unlink()
    run(Recipe.load(path + ".paddleq.yaml"))
    assert {each.name: each.read_bytes() for each in (folder / "out").iterdir()} == first


def test_saved_models_are_not_exported_as_pir(folder):
    (folder / "float").mkdir()
    export = "export: [{path: out/a}, {path: out/b, format: pir}]\n"
    for source, quantize in (
            ("path: float/net", "data: {calibration: {source: digits.npz, labels: y}}\n"
                                "quantize: {method: ptq}\n"),
            ("build: zoo.py:build", "quantize: {method: dynamic}\n")):
        with pytest.raises(RecipeError, match=r"export\[1\].format: must be pdmodel, onnx or "
                                              "openvino for .*, but is pir"):
            run(Recipe.parse(f"paddleq: 1\nmodel: {{{source}}}\n{quantize}{export}",
                             folder=str(folder)))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("old, new, error, words", [
    ("zoo.py:build", "zoo.py:biuld", ConfigError, ["biuld", "'build'"]),
    ("zoo.py:build", "zoos.py:build", ConfigError, ["zoos.py"]),
    ("zoo.py:build", "zoo.py:nothing", ConfigError, ["nothing", "channels"]),
    ("{channels: 6}", "{chanels: 6}", ConfigError, ["chanels"]),
    ("source: digits.npz", "source: digit.npz", FormatError, ["digit.npz"]),
    ("labels: y", "labels: z", ConfigError, ["'z'", "x, y"]),
    ("source: digits.npz", "source: recipe.yaml", FormatError, ["recipe.yaml"]),
    ('{name: "0", skip: true}', '{name: "conv", skip: true}', RecipeError,
     ["recipe.yaml:20", "quantize.rules[0].name", "'conv'"]),
    ('"^3$"', '"^conv$"', ConfigError, ["'^conv$'", "matches no layer"]),
])
def test_mistakes_found_at_run_time(folder, old, new, error, words):
    assert GOOD.count(old) == 1
    (folder / "recipe.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(error) as caught:
        run(Recipe.load(str(folder / "recipe.yaml")))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (folder / "out").exists()


def test_function_that_returns_no_layer(folder):
    text = GOOD.replace("zoo.py:build", "zoo.py:nothing").replace("  arguments: {channels: 6}\n",
                                                                  "")
    with pytest.raises(ModelError, match="returns a int"):
        run(Recipe.parse(text, folder=str(folder)))


STACK = """\
import numpy as np
import paddle


class Stack(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        layer = paddle.nn.TransformerEncoderLayer(64, 4, 96, dropout=0.0, normalize_before=True)
        self.encoder = paddle.nn.TransformerEncoder(layer, num_layers=2)
        self.head = paddle.nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.encoder(x))


def batches():
    for seed in range(3):
        yield [np.random.RandomState(seed).randn(2, 8, 64).astype("float32")]
"""

TRANSFORMER = """\
paddleq: 1
model:
  build: stack.py:Stack
  input_spec: [{shape: [null, 8, 64], name: x}]
data: {calibration: {source: "stack.py:batches"}}
"""

GOLDEN_STICK = TRANSFORMER + """\
quantize:
  method: golden_stick
  config: {weight_quant_dtype: int8, opname_blacklist: [head], outliers_suppression: smooth,
           act_quant_dtype: int8, act_quant_granularity: per_token}
  layer_policies:
    ".*linear2$": {weight_quant_dtype: int4, weight_quant_granularity: per_group, group_size: 64,
                   precision_recovery: gptq}
    "encoder.layers.0.self_attn.out_proj": null
export:
  - {format: pdmodel, path: out/stack}
  - {format: checkpoint, path: out/kept}
"""

AMCT = TRANSFORMER + """\
quantize:
  method: amct
  config:
    batch_num: 2
    quant_cfg: {weights: {type: int8, symmetric: true, strategy: channel}}
    algorithm: awq
    skip_layers: head
export: {path: out/stack}
"""


@pytest.mark.parametrize("text, kinds", [
    (GOLDEN_STICK, {"SmoothQuant-W8-per_channel-A8-per_token": 9, "GPTQ-W4-per_group": 2}),
    (AMCT, {"AWQ-W8-per_channel": 12})], ids=["golden_stick", "amct"])
def test_transformer_with_golden_stick_and_amct(folder, text, kinds):
    (folder / "stack.py").write_text(STACK)
    result = run(Recipe.parse(text, folder=str(folder)))
    found = [layer.quant_type for layer in result.model.sublayers() if hasattr(layer, "quant_type")]
    assert {kind: found.count(kind) for kind in set(found)} == kinds
    x = np.random.RandomState(9).randn(3, 8, 64).astype("float32")
    expected = result.model(paddle.to_tensor(x)).numpy()
    (given,) = paddle_inference(str(folder / "out" / "stack"), [x])
    assert relative_error(given, expected) < 1e-6
    if text is GOLDEN_STICK:
        from paddleq.recipes.sources import find_function
        fresh = find_function("stack.py:Stack", str(folder))()
        paddleq.load_checkpoint(fresh, str(folder / "out" / "kept"))
        fresh.eval()
        np.testing.assert_array_equal(fresh(paddle.to_tensor(x)).numpy(), expected)


def test_a_checkpoint_of_ptq_loads_into_a_model_that_is_quantized_alike(folder):
    quantize = ("{method: ptq, activation_quantizer: AbsmaxQuantizer, equalize: true, "
                "round_type: {name: adaround, iterations: 20}}")
    text = textwrap.dedent(f"""\
        paddleq: 1
        model: {{build: zoo.py:build}}
        data: {{calibration: {{source: zoo.py:batches}}}}
        quantize: {quantize}
        export: {{format: checkpoint, path: out/kept}}
        """)
    with pytest.raises(RecipeError, match="export.format: checkpoint is for the methods ptq, "
                                          "golden_stick, amct"):
        Recipe.parse(text.replace(quantize, "{method: distill}"))
    result = run(Recipe.parse(text, folder=str(folder)))
    prefix, x = str(folder / "out" / "kept"), paddle.rand([5, 1, 8, 8])
    assert sorted(result.files) == [f"{prefix}.json", f"{prefix}.paddleq.yaml",
                                    f"{prefix}.safetensors"]
    paddle.seed(99)  # other weights
    net = find_function("zoo.py:build", str(folder))()
    loaded = paddleq.PTQ("AbsmaxQuantizer").quantize(net, fuse=True, inputs=x)
    paddleq.load_checkpoint(loaded, prefix)
    np.testing.assert_array_equal(loaded(x).numpy(), result.model(x).numpy())
    (entry,) = read_provenance(f"{prefix}.safetensors")
    assert entry["format"] == "checkpoint" and entry["recipe"]["export"]["path"] == "out/kept"


@pytest.mark.parametrize("text, old, new, line, key, words", [
    (GOLDEN_STICK, "int8, opname", "int9, opname", 8, "quantize.config",
     ["weight_quant_dtype", "int9"]),
    (GOLDEN_STICK, "opname_blacklist", "opname_blaklist", 8, "quantize.config",
     ["opname_blacklist"]),
    (GOLDEN_STICK, "group_size: 64", "group_size: 63", 10, "quantize.layer_policies", ["63"]),
    (GOLDEN_STICK, '".*linear2$"', '"(linear2"', 10, "quantize.layer_policies", ["(linear2"]),
    (AMCT, "type: int8", "type: int5", 8, "quantize.config", ["'int8'", "'int5'"]),
    (AMCT, "batch_num: 2", "batch_nmu: 2", 8, "quantize.config", ["'batch_num'"]),
    (AMCT, "build: stack.py:Stack\n  input_spec: [{shape: [null, 8, 64], name: x}]", "path: net",
     5, "quantize", ["model.build"]),
])
def test_vendor_configurations_are_checked(text, old, new, line, key, words):
    assert text.count(old) == 1
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text.replace(old, new), source="r.yaml")
    messages = str(caught.value).splitlines()
    mine = [each for each in messages if each.startswith(f"r.yaml:{line}: {key}: ")]
    assert mine and all(word in mine[0] for word in words), messages


def test_weights_of_a_file(folder):
    net = paddle.nn.Sequential(paddle.nn.Linear(3, 2))
    paddle.save(net.state_dict(), str(folder / "net.pdparams"))
    (folder / "small.py").write_text("from paddle import nn\n\n\ndef build():\n"
                                     "    return nn.Sequential(nn.Linear(3, 2))\n")
    np.save(folder / "x.npy", np.random.RandomState(0).randn(8, 3).astype("float32"))
    text = ("paddleq: 1\nmodel: {build: small.py:build, weights: net.pdparams}\n"
            "data: {calibration: {source: x.npy}}\nquantize: {}\nexport: {path: out/net}\n")
    result = run(Recipe.parse(text, folder=str(folder)))
    np.testing.assert_array_equal(result.model[0].weight.numpy(), net[0].weight.numpy())


def test_data_of_functions_arrays_and_images(folder):
    from PIL import Image

    batches = list(open_data("zoo.py:batches", str(folder), batches=2))
    assert len(batches) == 2 and batches[0][0].shape == (4, 1, 8, 8)
    data = open_data("digits.npz", str(folder), batch_size=100, keys=["x"], labels="y")
    assert len(data) == 3
    assert [[array.shape for array in batch] for batch in data] == [
        [(100, 1, 8, 8)], [(100, 1, 8, 8)], [(56, 1, 8, 8)]]
    for name, green in (("cat", 10), ("dog", 90)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 16), (number * 40, green, 200)).save(
                folder / "images" / name / f"{number}.png")
    data = open_data("images", str(folder), batch_size=4, labels=True, transform=[
        {"Resize": {"size": [12, 12]}}, "ToTensor", {"Normalize": {"mean": 0.5, "std": 0.5}}])
    first, second = data
    assert first[0].shape == (4, 3, 12, 12) and second[0].shape == (2, 3, 12, 12)
    assert first[0].dtype == np.float32
    assert len(np.unique(first[0][:, 1])) == 2  # images of both classes
    assert first[0].min() >= -1.0 and abs(first[0][0, 2].max() - (200 / 255 - 0.5) / 0.5) < 1e-6
    with pytest.raises(ConfigError, match="one shape"):
        list(open_data("images", str(folder), batch_size=6))
    with pytest.raises(ConfigError, match="folder for each class"):
        open_data("images/cat", str(folder), labels=True)
    (folder / "images" / "cat" / "9.png").write_bytes(b"no image")
    with pytest.raises(FormatError, match=r"9\.png"):
        list(open_data("images/cat", str(folder), batch_size=1))


def test_images_are_read_as_by_paddle_datasets(tmp_path):
    """Gray, colour, palette and transparent images have three channels."""
    from paddle.vision import transforms
    from paddle.vision.datasets import DatasetFolder
    from PIL import Image

    (tmp_path / "images" / "cat").mkdir(parents=True)
    noise = np.random.RandomState(0).randint(0, 256, [6, 5, 3], dtype=np.uint8)
    for mode in ("L", "P", "RGB", "RGBA", "1"):
        Image.fromarray(noise).convert(mode).save(tmp_path / "images" / "cat" / f"{mode}.png")
    found, = open_data("images", str(tmp_path), labels=True)
    expected = np.stack([np.asarray(image) for image, _ in DatasetFolder(
        str(tmp_path / "images"), transform=transforms.ToTensor())])
    assert expected.shape == (5, 3, 6, 5)
    assert sorted(map(bytes, found[0])) == sorted(map(bytes, expected))
    grey = open_data("images", str(tmp_path), labels=True, transform=["Grayscale"])
    assert [batch[0].shape for batch in grey] == [(5, 1, 6, 5)]


def test_invalid_array_files(folder):
    np.savez(folder / "bad.npz", x=np.zeros([3, 2]), y=np.zeros([2]))
    with pytest.raises(FormatError, match="same number"):
        open_data("bad.npz", str(folder))
    np.save(folder / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="object.npy"):
        open_data("object.npy", str(folder))
    (folder / "broken.npz").write_bytes((folder / "digits.npz").read_bytes()[:1000])
    with pytest.raises(FormatError, match="broken.npz"):
        open_data("broken.npz", str(folder))


def test_unknown_transforms():
    with pytest.raises(ConfigError, match="'Resize'"):
        image_transform(["Resise"])
    with pytest.raises(ConfigError, match="CenterCrop"):
        image_transform([{"CenterCrop": {"sizes": 3}}])


DISTILL = """\
paddleq: 1
model: {build: zoo.py:build}
data:
  calibration: {source: digits.npz, labels: y, batch_size: 32, batches: 4}
  training: {source: digits.npz, labels: y, batch_size: 32}
  evaluation: {source: digits.npz, labels: y, batch_size: 64}
quantize:
  method: distill
  config: {weight_bits: 4}
  losses: [{loss: relative_l2}, {loss: cosine, node: ["3"], alpha: 0.5}]
  train: {epochs: 1, learning_rate: 0.001, eval_iter: 4}
  skip: ["^6$"]
export: {path: out/net}
"""


def test_distillation_of_a_layer_and_of_a_saved_model(folder, digits):
    (folder / "recipe.yaml").write_text(DISTILL)
    result = run(Recipe.load(str(folder / "recipe.yaml")))
    images = digits.test[0][:64]
    (found,) = paddle_inference(str(folder / "out/net"), [images])
    with paddle.no_grad():
        simulated = result.model(paddle.to_tensor(images)).numpy()
    assert relative_error(found, simulated) < 1e-6
    assert type(result.model[6]) is paddle.nn.Linear
    net = find_function("zoo.py:build", str(folder))()
    net.eval()
    paddle.jit.save(net, str(folder / "float/net"),
                    [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    text = DISTILL.replace("build: zoo.py:build", "path: float/net").replace(
        ', {loss: cosine, node: ["3"], alpha: 0.5}', "").replace('  skip: ["^6$"]\n', "")
    files = []
    for _ in range(2):
        result = run(Recipe.parse(text, str(folder)))
        files.append([pathlib.Path(each).read_bytes() for each in result.files])
    assert isinstance(result.model, paddleq.SavedModel)
    assert files[0] == files[1]


@pytest.mark.parametrize("old, new, line, key, word", [
    ("weight_bits: 4", "weight_bit: 4", 9, "quantize.config", "weight_bits"),
    ("loss: cosine", "loss: cosines", 10, "quantize.losses", "'cosine'"),
    ("epochs: 1", "epoch: 1", 11, "quantize.train", "'epochs'"),
    ("learning_rate: 0.001", "learning_rate: {type: Cosine}", 11, "quantize.train",
     "CosineAnnealingDecay"),
])
def test_mistakes_of_distillation(old, new, line, key, word):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(DISTILL.replace(old, new), source="recipe.yaml")
    assert any(text.startswith(f"recipe.yaml:{line}: {key}: ") and word in text
               for text in str(caught.value).splitlines()), caught.value
