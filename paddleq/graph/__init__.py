"""Data flow of a model on example inputs, and the fusion that depends on it."""

from .blocks import Structure, find_structure
from .fold_batch_norm import FoldedNorm, check_fuse_list, fuse

__all__ = ["FoldedNorm", "Structure", "check_fuse_list", "find_structure", "fuse"]
