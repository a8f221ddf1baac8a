"""Disk cache of arrays that take minutes to compute: under ``.test-cache``, or the folder that
``PADDLEQ_TEST_CACHE`` names. Git does not see them.
"""

import hashlib
import os
import uuid
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def folder():
    """Return the folder of the cache, and create it if it is missing."""
    found = Path(os.environ.get("PADDLEQ_TEST_CACHE", ROOT / ".test-cache"))
    found.mkdir(parents=True, exist_ok=True)
    (found / ".gitignore").write_text("*\n")
    return found


def kept(name, reasons, make):
    """Arrays by name, from disk if they are there.

    Args:
        name: how their file's name begins.
        reasons: bytes objects, all that the arrays depend on: with others, they are made again.
        make: called with a path that ends with .npz, where it saves them.
    """
    digest = hashlib.sha256(b"".join(reasons)).hexdigest()
    path = folder() / f"{name}-{digest[:16]}.npz"
    if not path.exists():
        # Renamed when complete, so that no process reads a partial file.
        beside = path.with_name(f"{uuid.uuid4().hex}.tmp.npz")
        try:
            make(beside)
            os.replace(beside, path)
        finally:
            if beside.exists():
                beside.unlink()
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
