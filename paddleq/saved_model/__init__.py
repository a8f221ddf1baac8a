"""Saved models as layers."""

from .saved_model import SavedModel

__all__ = ["SavedModel"]
