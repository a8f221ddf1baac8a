"""What a result was made with."""

import platform

import numpy as np
import paddle


def versions():
    """Versions of what takes part in an export or a measurement."""
    from . import __version__

    return {"paddleq": __version__, "paddle": paddle.__version__, "numpy": np.__version__,
            "python": platform.python_version()}
