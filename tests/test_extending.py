"""Extensions from outside of the package: one of each kind, used through the public interfaces."""

import copy
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

import paddleq
from paddleq import QuantSpec
from paddleq.algorithms import ALGORITHMS, quantize_linears
from paddleq.cli.main import main
from paddleq.config import LayerConfig
from paddleq.deploy import Predictor
from paddleq.deploy.runtimes import RUNTIMES
from paddleq.errors import ConfigError
from paddleq.export.formats import FORMATS
from paddleq.export.program.program import Program
from paddleq.nn.layer_types import LAYER_TYPES
from paddleq.observers import OBSERVERS
from paddleq.recipes import Recipe, run

FILES = {
    "observer.py": '''
from paddleq.observers import AbsMaxObserver, register_observer

@register_observer("doubled")
class DoubledObserver(AbsMaxObserver):
    """Twice the largest magnitude."""

    def abs_max(self):
        return 2.0 * super().abs_max()
''',
    "layer.py": '''
import paddle
import paddleq

class Scaled(paddle.nn.Layer):
    """A product with a square kernel."""

    def __init__(self, size):
        super().__init__()
        self.kernel = self.create_parameter([size, size])

    def forward(self, x):
        return paddle.matmul(x, self.kernel)

paddleq.register_layer(Scaled, weights={"kernel": 1})
''',
    "algorithm.py": '''
import paddle
from paddleq.algorithms import RoundToNearest, Rounder, register_algorithm

@register_algorithm("toward_zero")
class TowardZero(Rounder):
    """Quantizes a weight that is 1 % smaller, so that magnitudes shrink."""

    name = "toward_zero"

    def quantize_all(self, weights, spec, stats=None, clips=None):
        return RoundToNearest().quantize_all([0.99 * weight for weight in weights], spec, stats,
                                             clips)
''',
    "format.py": '''
import numpy as np
from paddleq.export.formats import Format, register_format

@register_format("weights")
class Weights(Format):
    """The quantized weights as .npz."""

    endings = (".npz",)

    def write(self, program, marks, path, provenance=None, **options):
        np.savez(path, **{mark.layer: mark.integers for mark in marks
                          if getattr(mark, "integers", None) is not None})
''',
    "runtime.py": '''
import numpy as np
from paddleq.deploy.model_file import TensorInfo
from paddleq.deploy.runtimes import Runtime, Session, register_runtime

class Product(Session):
    def __init__(self, file):
        self.weights = np.load(file.path)
        self.inputs, self.outputs = [TensorInfo("x", "float32", None)], ["y"]

    def run(self, arrays):
        (weight,) = self.weights.values()
        return [arrays[0] @ weight.astype("float32")]

    def clone(self):
        return self

@register_runtime("numpy")
class Numpy(Runtime):
    """Multiplies by the integers of a model with one weight."""

    title, module, kinds = "numpy", "numpy", (".npz",)

    def version(self):
        return np.__version__

    def load(self, file, threads, as_is=False):
        return Product(file)
''',
}
NAMES = {"observers": "doubled", "layer types": "Scaled", "algorithms": "toward_zero",
         "formats": "weights", "runtimes": "numpy"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of five modules in a temporary folder, one for each extension point."""
    folder = tmp_path_factory.mktemp("site") / "paddleq_more"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    modules = ", ".join(name[:-3] for name in FILES)
    (folder / "__init__.py").write_text(f"from . import {modules}\n", encoding="utf-8")
    sys.path.insert(0, str(folder.parent))
    import paddleq_more
    yield paddleq_more
    sys.path.remove(str(folder.parent))
    for registry, kind in ((OBSERVERS, "observers"), (LAYER_TYPES, "layer types"),
                           (ALGORITHMS, "algorithms"), (FORMATS, "formats"),
                           (RUNTIMES, "runtimes")):
        registry.unregister(NAMES[kind])


LINEAR = {"weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
          "inputs": {"type": "int8", "symmetric": True, "strategy": "tensor"}}


def quantized(package, activation="doubled"):
    """(PTQ, quantized model with the layer of the package, input)."""
    x = paddle.rand([8, 6])
    ptq = paddleq.PTQ(activation)
    net = ptq.quantize(nn.Sequential(package.layer.Scaled(6)))
    ptq.calibrate(net, [x])
    return ptq, net, x


def test_observer_by_name(package):
    _, net, x = quantized(package)
    abs_max = net[0].activation_quantizer.abs_max.item()
    np.testing.assert_allclose(abs_max, 2.0 * x.abs().max().item(), rtol=1e-6)


@pytest.fixture
def saved(tmp_path):
    """(saved Linear, its layer, the largest magnitude of its calibration data, tmp_path)."""
    paddle.seed(0)
    net, x = nn.Sequential(nn.Linear(6, 4)), paddle.rand([8, 6])
    net.eval()
    paddle.jit.save(net, str(tmp_path / "float" / "net"), [InputSpec([None, 6], "float32", "x")])
    np.save(tmp_path / "x.npy", x.numpy())
    return net, x, x.abs().max().item(), tmp_path


def exported_step(prefix):
    """The scale of the only quantized activation of a .pdmodel."""
    program = Program.load(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    op = next(op for op in program.desc.blocks[0].ops if op.type == "quantize_linear")
    (name,) = next(each.arguments for each in op.inputs if each.parameter == "Scale")
    return float(program.arrays[name].reshape(-1)[0]) / 127


def test_observer_in_quant_post_static(package, saved):
    _, x, largest, folder = saved
    paddleq.quant_post_static(str(folder / "float"), str(folder / "out"), [x], algo="doubled")
    np.testing.assert_allclose(exported_step(folder / "out/model"), 2.0 * largest / 127, rtol=1e-6)
    with pytest.raises(ConfigError, match="algo must be one of .*did you mean 'doubled'"):
        paddleq.quant_post_static(str(folder / "float"), str(folder / "no"), [x], algo="double")


@pytest.mark.parametrize("model", ["path: float/net",
                                   "build: 'paddle.nn:Linear'\n  arguments: "
                                   "{in_features: 6, out_features: 4}"])
def test_observer_in_a_recipe(package, saved, model):
    *_, largest, folder = saved
    recipe = folder / "recipe.yaml"
    spec = "\n  input_spec: [{shape: [null, 6], name: x}]" if "build" in model else ""
    recipe.write_text(f"paddleq: 1\nmodel:\n  {model}{spec}\n"
                      "data: {calibration: {source: x.npy}}\n"
                      "quantize: {method: ptq, activation_quantizer: doubled}\n"
                      "export: {path: out/net}\n", encoding="utf-8")
    assert run(Recipe.load(str(recipe))).files
    np.testing.assert_allclose(exported_step(folder / "out/net"), 2.0 * largest / 127, rtol=1e-6)
    recipe.write_text(recipe.read_text().replace("doubled", "dubled"))
    with pytest.raises(ConfigError, match="did you mean 'doubled'"):
        Recipe.load(str(recipe))


def test_observer_on_the_command_line(package, saved, monkeypatch, capsys):
    *_, largest, folder = saved
    monkeypatch.chdir(folder)
    arguments = ["--import", "paddleq_more", "ptq", "float/net", "-d", "x.npy", "-o", "out/net",
                 "--algo"]
    assert main([*arguments, "doubled"]) == 0
    np.testing.assert_allclose(exported_step(folder / "out/net"), 2.0 * largest / 127, rtol=1e-6)
    assert main([*arguments, "double"]) == 2
    assert "did you mean 'doubled'" in capsys.readouterr().err


def test_observer_in_qat(package, saved):
    net, x, largest, _ = saved
    qat = paddleq.QAT({"activation_quantize_type": "doubled"})
    qat.quantize(net)
    net.train()
    net(x)
    threshold = net[0].activation_quantizer.abs_max.item()
    np.testing.assert_allclose(threshold, 2.0 * largest, rtol=1e-6)
    with pytest.raises(ConfigError, match="did you mean 'doubled'"):
        paddleq.QAT({"activation_quantize_type": "double"})


def test_observer_in_golden_stick_and_amct(package, saved):
    net, x, largest, _ = saved
    config = {"act_quant_dtype": "int8", "algo_args": {"observer": "doubled"}}
    ptq = paddleq.golden_stick.PTQ(config)
    first = ptq.apply(nn.Sequential(copy.deepcopy(net)), datasets=[x])[0][0]
    paddleq.amct.quantize(net, {"batch_num": 1, "quant_cfg": LINEAR,
                                "algorithm": {"minmax": {"observer": "doubled"}}})
    net(x)
    paddleq.amct.convert(net)
    for layer in (first, net[0]):
        np.testing.assert_allclose(layer.activation_scale.item(), 2.0 * largest / 127, rtol=1e-6)


def test_algorithm_in_golden_stick_and_amct(package, saved):
    net, x, *_ = saved
    weight = net[0].weight.numpy()
    ptq = paddleq.golden_stick.PTQ({"precision_recovery": "toward_zero"})
    first = ptq.apply(nn.Sequential(copy.deepcopy(net)), datasets=[x])
    assert "toward_zero-W8-per_channel" in ptq.summary(first)
    paddleq.amct.quantize(net, {"batch_num": 1, "quant_cfg": LINEAR, "algorithm": "toward_zero"})
    net(x)
    paddleq.amct.convert(net)
    step = np.abs(0.99 * weight).max(0) / 127
    for layer in (first[0][0], net[0]):
        found = layer.dequantized_weight().numpy() - 0.99 * weight
        assert (np.abs(found) <= 0.51 * step).all()
    with pytest.raises(ConfigError, match="precision_recovery .*did you mean 'toward_zero'"):
        paddleq.golden_stick.PTQConfig(precision_recovery="towardzero")
    with pytest.raises(ConfigError, match="algorithm.*did you mean 'toward_zero'"):
        paddleq.amct.quantize(net, {"batch_num": 1, "quant_cfg": LINEAR,
                                    "algorithm": "towardzero"})


@pytest.mark.parametrize("quantize", [
    {"method": "golden_stick", "config": {"precision_recovery": "toward_zero"}},
    {"method": "amct", "config": {"batch_num": 1, "quant_cfg": LINEAR, "algorithm": "toward_zero"}},
], ids=["golden_stick", "amct"])
def test_algorithm_in_a_recipe(package, quantize):
    sections = {"paddleq": 1, "model": {"build": "zoo.py:build"}, "quantize": quantize,
                "data": {"calibration": {"source": "x.npy"}}, "export": {"path": "net"}}
    assert Recipe.from_dict(sections, "test").values.quantize.config == quantize["config"]
    key = "precision_recovery" if "precision_recovery" in quantize["config"] else "algorithm"
    quantize = {**quantize, "config": {**quantize["config"], key: "towardzero"}}
    with pytest.raises(ConfigError, match="did you mean 'toward_zero'"):
        Recipe.from_dict({**sections, "quantize": quantize}, "test")


def test_layer_type_is_quantized_and_exported(package, tmp_path):
    ptq, net, x = quantized(package)
    path = str(tmp_path / "net")
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(net, path, [InputSpec([None, 6], "float32")], format=format)
    for runtime in ("onnxruntime", "openvino"):
        with Predictor(path, runtime, threads=1) as predictor:
            found = predictor.run(x.numpy())[0]
        np.testing.assert_allclose(found, net(x).numpy(), rtol=1e-4, atol=1e-5)


def test_algorithm_by_name(package):
    config = LayerConfig(QuantSpec(8), rounder="toward_zero")
    assert config.algorithm == "toward_zero"
    weight = np.random.randn(6, 5).astype("float32")
    outcome = quantize_linears([paddle.to_tensor(weight)], config, None)
    found = outcome.weights[0].dequantize().numpy()
    step = np.abs(0.99 * weight).max() / 127
    np.testing.assert_allclose(found, 0.99 * weight, atol=0.51 * step)
    with pytest.raises(ConfigError, match="did you mean 'toward_zero'"):
        LayerConfig(QuantSpec(8), rounder="towards_zero")


def test_format_and_runtime_by_name(package, tmp_path):
    ptq, net, x = quantized(package)
    path = str(tmp_path / "net")
    paddleq.export.save(net, path, [InputSpec([None, 6], "float32")], format="weights")
    kernel = net[0].kernel.numpy()
    integers = np.rint(kernel / np.abs(kernel).max(0) * 127)
    with Predictor(path, "numpy", threads=1) as predictor:
        assert predictor.runtime == "numpy" and predictor.file == path + ".npz"
        np.testing.assert_allclose(predictor.run(x.numpy())[0], x.numpy() @ integers, rtol=1e-5)


def test_command_line_lists_extensions(package, capsys):
    assert main(["--import", "paddleq_more", "extensions"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {kind: name for kind, name in NAMES.items() if name in lines[kind].split(", ")} == NAMES
    assert main(["--import", "no_such_module", "extensions"]) == 2
