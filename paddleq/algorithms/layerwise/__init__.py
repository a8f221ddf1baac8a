"""Quantize a network one decoder layer at a time."""
