"""Extensions from outside of the package: one of each kind, used through the public interfaces."""

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
from paddleq.nn.layer_types import LAYER_TYPES
from paddleq.observers import OBSERVERS

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
