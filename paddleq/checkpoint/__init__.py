"""Checkpoints: read, write and load the tensors and the structure of quantized models."""

from .restricted_unpickler import load_state, read_state
from .save_load import load_checkpoint, save_checkpoint

__all__ = ["load_checkpoint", "load_state", "read_state", "save_checkpoint"]
