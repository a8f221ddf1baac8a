"""Trained models, quantized by PTQ, in both formats and every runtime, against the simulation.

As a script it prints the tables: python tests/test_deploy_models.py [--models MobileNetV1,GPT].
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT))

import vision
import zoo
from trained import TRAINING, Recipe
from trained import train as training

import paddleq
from demo.common import DigitsNet, batches, digits, train
from demo.text import held_out_tokens, trained
from demo.text.kept import kept
from paddleq.deploy import verify

pytestmark = pytest.mark.slow
# Whether two runtimes agree is no matter of what was learned: also images that training saw.
COMPARED = np.arange(TRAINING - 600, 1797)
CONTEXT, WINDOWS = 128, 32


@dataclass
class Case:
    """A float network, what it is calibrated with, and what runtimes are compared on.

    Attributes:
        layer_types: more than PTQ quantizes by itself.
        timed_samples: of the run that is timed.
    """

    net: paddle.nn.Layer
    calibration: list
    compared: np.ndarray
    fuse: bool = True
    layer_types: tuple = ("Conv2D", "Linear")
    timed_samples: int = 1


def of_vision(name):
    rng = np.random.RandomState(1)
    recipe = vision.MODELS[name]
    return Case(vision.network(name), [recipe.draw(rng)[0] for _ in range(4)],
                recipe.pictures(COMPARED).numpy())


def demo():
    train_x, train_y, test_x, _ = digits()
    net = DigitsNet()
    train(net, train_x, train_y, epochs=12, learning_rate=3e-3)
    # Of one image of 8 x 8, a run is calls of operators and nothing else.
    return Case(net, batches(train_x[:512]), test_x, timed_samples=64)


@dataclass(frozen=True)
class WideViT(Recipe):
    """The zoo's, large enough for its weights to be most of its file."""

    def make(self):
        return zoo.ViT(width=128, heads=4, depth=4)


def vit():
    recipe = WideViT("ViT", 500, batch=16, rate=2e-3, channels=1, size=16)
    net = recipe.make()
    net.set_state_dict(kept("ViT", [Path(zoo.__file__).read_bytes(), repr(recipe).encode()],
                            lambda path: np.savez(path, **training(recipe, seed=0))))
    return Case(net, [recipe.pictures(np.arange(128))], recipe.pictures(COMPARED).numpy(),
                fuse=False, timed_samples=16)


def gpt():
    tokens = held_out_tokens()[:2 * WINDOWS * CONTEXT].reshape(2, WINDOWS, CONTEXT)
    return Case(trained("gpt"), [tokens[0]], tokens[1], fuse=False,
                layer_types=("Linear", "Embedding"))


CASES = {"MobileNetV1": lambda: of_vision("MobileNetV1"), "ResNet18": lambda: of_vision("ResNet18"),
         "demo": demo, "ViT": vit, "GPT": gpt}


def report(name, folder, seconds=1.0):
    """What :func:`paddleq.deploy.verify` says of a model, its files in ``folder``."""
    paddle.seed(0)
    case, path = CASES[name](), os.path.join(folder, name)
    case.net.eval()
    ptq = paddleq.PTQ("HistQuantizer")
    quantized = ptq.quantize(case.net, fuse=case.fuse,
                             quantizable_layer_type=list(case.layer_types))
    ptq.calibrate(quantized, case.calibration)
    dtype = case.compared.dtype.name
    spec = [paddle.static.InputSpec([None, *case.compared.shape[1:]], dtype, "x")]
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(quantized, path, spec, format=format)
    return verify(path, quantized, np.array_split(case.compared, 4), seconds=seconds,
                  timed_samples=case.timed_samples)


@pytest.mark.parametrize("name", CASES)
def test_every_runtime_agrees_with_the_simulation(name, tmp_path):
    found = report(name, tmp_path)
    print(found)
    assert len(found.rows) == 6 and found.ok, str(found)
    for row in found.rows:
        assert row.top1 >= 0.99
        if row.runtime == "as it stands" and row.file.endswith(".pdmodel"):
            assert row.error <= 1e-6
        if row.runtime == "onnxruntime":
            assert row.size <= 0.3 * row.float_size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing in each runtime")
    options = parser.parse_args()
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(f"\nPaddle {paddle.__version__}, {name}")
            print(report(name, folder, options.seconds), flush=True)


if __name__ == "__main__":
    main()
