"""Saved models as layers."""

from . import fold_traced_affines  # noqa: F401 (registers its pass)
from .saved_model import SavedModel

__all__ = ["SavedModel"]
