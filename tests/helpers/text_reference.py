"""Reference of the decoders of demo.text in float64 numpy, one token and one head at a time."""

import numpy as np
from scipy.special import erf


def weights_of(model):
    """Parameters by name, float64."""
    return {key: value.numpy().astype("float64") for key, value in model.state_dict().items()}


def _linear(x, w, name):
    return x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)


def _layer_norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def _rms_norm(x, w, name):
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]


def _rotated(vector, position, base):
    """Each pair (i, i + half) as a complex number, turned by its angle."""
    half = len(vector) // 2
    angles = position * base ** (-np.arange(half) / half)
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


def _attention(x, w, name, heads, kv_heads, base):
    q, k, v = (_linear(x, w, f"{name}.{each}_proj") for each in "qkv")
    dim, out = q.shape[1] // heads, np.zeros_like(q)
    for head in range(heads):
        other = head // (heads // kv_heads)
        own, theirs = slice(head * dim, (head + 1) * dim), slice(other * dim, (other + 1) * dim)
        queries, keys = q[:, own], k[:, theirs]
        if base is not None:
            queries, keys = (np.array([_rotated(row, i, base) for i, row in enumerate(each)])
                             for each in (queries, keys))
        for token in range(len(x)):
            scores = keys[:token + 1] @ queries[token] / np.sqrt(dim)
            shares = np.exp(scores - scores.max())
            out[token, own] = shares / shares.sum() @ v[:token + 1, theirs]
    return _linear(out, w, f"{name}.o_proj")


def _decoder(x, w, norm, attention, mlp):
    layers = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("layers."))
    for layer in (f"layers.{i}" for i in range(layers)):
        x = x + attention(norm(x, w, f"{layer}.input_layernorm"), w, f"{layer}.self_attn")
        x = x + mlp(norm(x, w, f"{layer}.post_attention_layernorm"), w, f"{layer}.mlp")
    x = norm(x, w, "norm")
    return _linear(x, w, "lm_head") if "lm_head.weight" in w else x @ w["embed_tokens.weight"].T


def llama(w, tokens, heads, kv_heads, base=10000.0):
    """Logits [tokens, vocabulary] of tokens [tokens]; without ``lm_head``, by the embedding."""
    def mlp(x, w, name):
        gate = _linear(x, w, f"{name}.gate_proj")
        up = _linear(x, w, f"{name}.up_proj")
        return _linear(gate / (1.0 + np.exp(-gate)) * up, w, f"{name}.down_proj")

    return _decoder(w["embed_tokens.weight"][tokens], w, _rms_norm,
                    lambda x, w, name: _attention(x, w, name, heads, kv_heads, base), mlp)


def gpt(w, tokens, heads):
    """Logits [tokens, vocabulary] of tokens [tokens]."""
    def mlp(x, w, name):
        x = _linear(x, w, f"{name}.fc_in")
        return _linear(x * (1.0 + erf(x / np.sqrt(2.0))) / 2.0, w, f"{name}.fc_out")

    start = w["embed_tokens.weight"][tokens] + w["embed_positions.weight"][:len(tokens)]
    return _decoder(start, w, _layer_norm,
                    lambda x, w, name: _attention(x, w, name, heads, heads, None), mlp)
