"""HTML report of a quantized model, and the plots in it."""
