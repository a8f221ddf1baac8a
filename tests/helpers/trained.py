"""Float networks trained on scikit-learn's digits, kept on disk: minutes are spent once, although
the same networks are wanted under several versions of Paddle.

All of this file is hashed into the names of the files that it keeps, as is the recipe: after a
change of either, they are not found and the training runs again.
"""

import functools
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.vision import models
from sklearn.datasets import load_digits

from demo.text.kept import kept
from demo.text.process import environment

TRAINING = 1500  # of the 1797 digits; training draws from no others
SETTLING = 10  # batches for the statistics of norms, after the training


@dataclass(frozen=True)
class Recipe:
    """Recipe to create and train a network.

    Attributes:
        maker: name of the function in ``paddle.vision.models``.
        steps, batch: the training. The learning rate rises over its first tenth and ends at 0.
        rate: the highest learning rate, of AdamW.
        channels, size: shape of the pictures.
        scaled: scale the first weights until each layer's output has a deviation of 1 (a network
            without norms starts with outputs that vanish). Biases start at 0 then.
    """

    maker: str
    steps: int
    batch: int = 32
    rate: float = 3e-3
    channels: int = 3
    size: int = 32
    scaled: bool = False

    def make(self):
        """A new network with the weights that Paddle draws."""
        classes = {} if self.maker == "LeNet" else {"num_classes": 10}
        return getattr(models, self.maker)(**classes)

    def pictures(self, indices):
        """These digits, in [-1, 1], bilinear."""
        pictures = F.interpolate(paddle.to_tensor(_digits()[0][indices]),
                                 size=[self.size, self.size], mode="bilinear")
        return pictures.expand([-1, self.channels, -1, -1]).contiguous()

    def draw(self, rng):
        """A batch of training pictures and their labels."""
        indices = rng.choice(TRAINING, self.batch)
        return self.pictures(indices), paddle.to_tensor(labels(indices))


@functools.lru_cache(maxsize=None)
def _digits():
    digits = load_digits()
    return (digits.images / 8 - 1).astype("float32")[:, None], digits.target.astype("int64")


def labels(indices):
    """Labels of these digits."""
    return _digits()[1][indices]


def first(output):
    """The output that counts: GoogLeNet returns those of its auxiliary heads too."""
    return output[0] if isinstance(output, (list, tuple)) else output


def scale_layers(net, x):
    """Scale the weights until the output of each layer has a standard deviation of 1."""
    def scale(layer, _, output):
        deviation = output.std().item()
        layer.weight.set_value(layer.weight / deviation)
        return output / deviation

    layers = [each for each in net.sublayers() if isinstance(each, (nn.Conv2D, nn.Linear))]
    for layer in layers:
        if layer.bias is not None:
            layer.bias.set_value(paddle.zeros_like(layer.bias))
    hooks = [layer.register_forward_post_hook(scale) for layer in layers]
    with paddle.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()


def settle_norms(net, batches):
    """Set the statistics of norms to their mean over ``batches``.

    In training they lag behind, those of MobileNetV3 by hundreds of steps.
    """
    norms = [layer for layer in net.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    if not norms:
        return
    with paddle.no_grad():
        for count, x in enumerate(batches):
            for layer in norms:
                layer._momentum = count / (count + 1)
            net(x)


def _loss(outputs, y):
    """Auxiliary heads count 0.3 times, as GoogLeNet's paper has it (arXiv:1409.4842)."""
    losses = [F.cross_entropy(each, y)
              for each in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
    return losses[0] + 0.3 * sum(losses[1:]) if losses[1:] else losses[0]


def train(recipe, seed):
    """Weights and buffers, arrays by name."""
    paddle.seed(seed)
    rng, net = np.random.RandomState(seed), recipe.make()
    net.train()
    if recipe.scaled:
        scale_layers(net, recipe.draw(rng)[0])
    rate = paddle.optimizer.lr.OneCycleLR(recipe.rate, recipe.steps + 1, phase_pct=0.1)
    optimizer = paddle.optimizer.AdamW(rate, parameters=net.parameters(), weight_decay=0.05,
                                       grad_clip=nn.ClipGradByGlobalNorm(1.0))
    for _ in range(recipe.steps):
        x, y = recipe.draw(rng)
        _loss(net(x), y).backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
    settle_norms(net, [recipe.draw(rng)[0] for _ in range(SETTLING)])
    return {key: value.numpy() for key, value in net.state_dict().items()}


@functools.lru_cache(maxsize=1)
def trained_state(name, recipe, seed=0):
    """Return the result of :func:`train`, from disk if it is there.

    Otherwise a new process trains, whose threads and memory do not depend on the caller's.
    """
    return kept(f"{name}-{seed}", [Path(__file__).read_bytes(), repr(recipe).encode()],
                lambda path: subprocess.run(
                    [sys.executable, __file__, json.dumps(asdict(recipe)), str(seed), str(path)],
                    env=environment(), check=True))


if __name__ == "__main__":
    given, number, target = sys.argv[1:]
    np.savez(target, **train(Recipe(**json.loads(given)), int(number)))
