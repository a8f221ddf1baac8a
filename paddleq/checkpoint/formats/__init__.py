"""Formats of quantized checkpoints that inference servers load, one file each."""

from . import awq, compressed_tensors, gptq, paddlenlp  # noqa: F401  (register themselves)
from .base import CHECKPOINT_FORMATS, CheckpointFormat, register_checkpoint_format
from .folder import is_folder, load_folder, save_folder
from .linear_weight import LinearWeight, Scheme

__all__ = ["CHECKPOINT_FORMATS", "CheckpointFormat", "LinearWeight", "Scheme", "is_folder",
           "load_folder", "register_checkpoint_format", "save_folder"]
