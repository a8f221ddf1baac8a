"""HTML report of a quantized model."""
