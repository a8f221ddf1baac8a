"""The trained models, from disk where they were trained before."""

import subprocess
import sys
from pathlib import Path

from . import attention, data, models, training
from .data import training_tokens
from .kept import kept
from .process import environment
from .training import RECIPES


def trained_state(name, seed=0):
    """Weights of a trained model, arrays by name.

    Args:
        name: one of :data:`~.training.RECIPES`.
        seed: of the first weights and of the order of the text.
    """
    sources = [Path(module.__file__).read_bytes()
               for module in (attention, data, models, training)]
    reasons = [*sources, repr(RECIPES[name]).encode(), training_tokens().tobytes()]
    return kept(f"{name}-{seed}", reasons, lambda path: subprocess.run(
        [sys.executable, "-m", "demo.text", name, str(seed), str(path)],
        env=environment(), check=True))


def trained(name, seed=0):
    """A trained model, in evaluation mode: see :func:`trained_state`."""
    model = RECIPES[name].make()
    model.set_state_dict(trained_state(name, seed))
    model.eval()
    return model
