"""Checkpoints: read, write and load the tensors and the structure of quantized models."""

from .formats import CHECKPOINT_FORMATS, CheckpointFormat, register_checkpoint_format
from .restricted_unpickler import load_state, read_state
from .save_load import load_checkpoint, save_checkpoint

__all__ = ["CHECKPOINT_FORMATS", "CheckpointFormat", "load_checkpoint", "load_state", "read_state",
           "register_checkpoint_format", "save_checkpoint"]
