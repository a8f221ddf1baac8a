"""Recipes: one YAML file that says model, data, quantization, export and checks."""

from .recipe import Recipe
from .run import Done, run

__all__ = ["Done", "Recipe", "run"]
