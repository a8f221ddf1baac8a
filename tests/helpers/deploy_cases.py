"""Trained models that are quantized by PTQ and compared in every runtime and both formats."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import vision
import zoo
from trained import TRAINING, Recipe
from trained import train as training

import paddleq
from demo import common
from demo.common import DigitsNet, batches, digits, trained_net
from demo.text import held_out_tokens, trained
from demo.text.kept import kept
from paddleq.deploy import verify

# Includes images of the training set: agreement of runtimes does not depend on generalization.
COMPARED = np.arange(TRAINING - 600, 1797)
CONTEXT, WINDOWS = 128, 32


@dataclass
class Case:
    """A float network, its calibration data, and the inputs that runtimes are compared on.

    Attributes:
        layer_types: types that PTQ quantizes.
        timed_samples: samples of a timed run.
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
    state = kept("DigitsNet", [Path(common.__file__).read_bytes()], lambda path: np.savez(path, **{
        key: value.numpy() for key, value in trained_net(train_x, train_y).state_dict().items()}))
    net = DigitsNet()
    net.set_state_dict(state)
    # The overhead of operator calls dominates a run of a single 8x8 image.
    return Case(net, batches(train_x[:512]), test_x, timed_samples=64)


@dataclass(frozen=True)
class WideViT(Recipe):
    """The zoo's ViT, large enough for its weights to dominate the file size."""

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
    return Case(trained("gpt-short"), [tokens[0]], tokens[1], fuse=False,
                layer_types=("Linear", "Embedding"))


CASES = {"MobileNetV1": lambda: of_vision("MobileNetV1"), "ResNet18": lambda: of_vision("ResNet18"),
         "demo": demo, "ViT": vit, "GPT": gpt}


def export(name, folder):
    """Quantize the net of a case and write both formats; return (case, quantized net, prefix)."""
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
    return case, quantized, path


def compare(case, quantized, path, seconds=1.0):
    """Return the report of :func:`paddleq.deploy.verify` for the files of :func:`export`."""
    return verify(path, quantized, np.array_split(case.compared, 4), seconds=seconds,
                  timed_samples=case.timed_samples)
