"""Distillation: training of a quantized model towards the outputs of its float teacher."""

from .losses import DISTILL_LOSSES, DistillLoss, register_distill_loss
from .train_config import DistillResult, TrainConfig
from .training import seeded, train

__all__ = ["DISTILL_LOSSES", "DistillLoss", "DistillResult", "TrainConfig",
           "register_distill_loss", "seeded", "train"]
