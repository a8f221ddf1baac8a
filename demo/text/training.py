"""Training of the models: some minutes on one core, the same weights each time."""

import math
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from tqdm import tqdm

from . import models
from .data import random_windows, training_tokens


@dataclass(frozen=True)
class Recipe:
    """Recipe to create and train a model.

    Attributes:
        maker: name of the class in :mod:`.models`.
        sizes: its arguments, as pairs; those left out have its defaults.
        steps, batch: the training. The learning rate rises over its first twentieth and ends at 0.
        rate: the highest learning rate, of AdamW.
        decay: weight decay of matrices.
    """

    maker: str
    sizes: tuple = ()
    steps: int = 4000
    batch: int = 4
    rate: float = 2e-3
    decay: float = 0.1

    def make(self):
        """A new model."""
        return getattr(models, self.maker)(**dict(self.sizes))


RECIPES = {
    "gpt": Recipe("GPT"),
    "llama": Recipe("Llama", steps=2200, rate=3e-3),
    # For tests that compare runtimes.
    "gpt-short": Recipe("GPT", steps=1000, rate=4e-3),
    # For tests: trained in seconds, it knows words but not what they are for.
    "tiny": Recipe("Llama", (("layers", 2), ("width", 64), ("hidden", 128), ("heads", 4),
                             ("context", 64)), steps=600, rate=5e-3),
}


def initialize(model, rng):
    """Normal weights. A Linear halves the size of what it reads; those that add to the residual
    stream are smaller, the more of them there are (as in GPT-2), so that the embedding, which is
    all that the model has at first, is not drowned in them.
    """
    adders = 2 * len(model.layers)
    for name, parameter in model.named_parameters():
        if len(parameter.shape) < 2:
            continue
        deviation = 0.5 if "embed" in name else 0.5 * parameter.shape[0] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "fc_out.weight")):
            deviation /= math.sqrt(adders)
        parameter.set_value((deviation * rng.standard_normal(parameter.shape)).astype("float32"))


def train(recipe, seed, quiet=True):
    """A trained model; if not ``quiet``, a terminal sees progress."""
    rng, model = np.random.default_rng(seed), recipe.make()
    initialize(model, rng)
    rising = max(1, recipe.steps // 20)
    falling = paddle.optimizer.lr.CosineAnnealingDecay(recipe.rate, recipe.steps - rising)
    rate = paddle.optimizer.lr.LinearWarmup(falling, rising, start_lr=0.0, end_lr=recipe.rate)
    matrices = {each.name for each in model.parameters() if len(each.shape) > 1}
    optimizer = paddle.optimizer.AdamW(
        rate, beta1=0.9, beta2=0.99, parameters=model.parameters(), weight_decay=recipe.decay,
        apply_decay_param_fun=matrices.__contains__, grad_clip=nn.ClipGradByGlobalNorm(1.0))
    model.train()
    steps = tqdm(range(recipe.steps), f"training {recipe.maker}", disable=quiet or None)
    for _ in steps:
        windows = random_windows(training_tokens(), recipe.batch, model.context + 1, rng)
        loss = F.cross_entropy(model(paddle.to_tensor(windows[:, :-1])),
                               paddle.to_tensor(windows[:, 1:]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
        if not steps.disable:
            steps.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    model.eval()
    return model
