"""Static post-training quantization of Layers and saved models: a plan and its steps."""

from .plan import PostTrainingPlan, calibrate, prepare, run

__all__ = ["PostTrainingPlan", "calibrate", "prepare", "run"]
