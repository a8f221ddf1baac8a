"""Vendors' interfaces to the quantization engine."""
