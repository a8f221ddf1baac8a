"""Models that read Python's own source text, character by character: the data, a GPT and a Llama,
their training, outliers planted in them, perplexity and generation.

The demo of transformers, its benchmark and the tests quantize them.
"""

from .data import calibration_batches, decode, encode, held_out_tokens, training_tokens
from .evaluation import generate, perplexity
from .helper import DecoderHelper
from .models import GPT, Llama, RMSNorm
from .outliers import plant_outliers
from .trained import trained

__all__ = ["GPT", "DecoderHelper", "Llama", "RMSNorm", "calibration_batches", "decode", "encode",
           "generate", "held_out_tokens", "perplexity", "plant_outliers", "trained",
           "training_tokens"]
