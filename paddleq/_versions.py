"""Versions of packages."""

import platform

import numpy as np
import paddle


def versions():
    """Return the versions of the packages that every export and measurement depends on."""
    from . import __version__

    return {"paddleq": __version__, "paddle": paddle.__version__, "numpy": np.__version__,
            "python": platform.python_version()}
