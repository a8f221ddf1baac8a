"""Recipes: YAML files with a model, data, quantization, exports and checks."""

from .recipe import Recipe
from .run import RecipeResult, run

__all__ = ["Recipe", "RecipeResult", "run"]
