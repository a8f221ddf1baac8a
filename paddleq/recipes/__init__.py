"""Recipes: one YAML file that says model, data, quantization, export and checks."""

from .recipe import Recipe

__all__ = ["Recipe"]
