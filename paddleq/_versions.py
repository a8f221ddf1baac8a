"""What a result was made with."""

import platform
from importlib import metadata

import numpy as np
import paddle


def versions(*packages):
    """Versions of what takes part in an export or a measurement, and of more ``packages``."""
    from . import __version__

    return {"paddleq": __version__, "paddle": paddle.__version__, "numpy": np.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages}}
