"""``python -m demo.text NAME SEED FILE`` trains a model and leaves its weights in a file.

:mod:`.trained` does so, in a process whose threads do not depend on the caller's.
"""

import sys

import numpy as np

from .training import RECIPES, train

if __name__ == "__main__":
    name, seed, path = sys.argv[1:]
    model = train(RECIPES[name], int(seed), quiet=False)
    np.savez(path, **{key: value.numpy() for key, value in model.state_dict().items()})
