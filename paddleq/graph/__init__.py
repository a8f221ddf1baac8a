"""What a model really does with an example input, and the fusion that rests on it."""

from .fusion import FoldedNorm, check_fuse_list, fuse

__all__ = ["FoldedNorm", "check_fuse_list", "fuse"]
