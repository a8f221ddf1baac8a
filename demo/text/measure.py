"""Perplexity of a trained model with each quantization algorithm, and its expected order."""

import paddle
from paddle import nn

from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, RoundToNearest, SmoothQuant, quantize_layer_by_layer
from paddleq.config import LayerConfig, QuantConfig
from paddleq.nn import KVCache

from .data import calibration_batches, held_out_tokens
from .evaluation import perplexity
from .helper import DecoderHelper
from .outliers import plant_outliers
from .trained import trained

VARIANTS = ("plain", "outliers")
FLOAT = "float"
WEIGHTS = {
    "W4 g64": QuantSpec(4, granularity=PerGroup(64)),
    "W4": QuantSpec(4, granularity=PerChannel(1)),
    "W3 g64": QuantSpec(3, granularity=PerGroup(64)),
    "W3": QuantSpec(3, granularity=PerChannel(1)),
}
METHODS = {
    "RTN": (None, RoundToNearest()),
    "AWQ": (AWQ(), RoundToNearest()),
    "GPTQ": (None, GPTQ()),
    "GPTQ act-order": (None, GPTQ(act_order=True)),
    "AWQ + GPTQ": (AWQ(), GPTQ()),
}
ACTIVATIONS = {"W8A8": QuantSpec(granularity=PerTensor()),
               "W8A8 per token": QuantSpec(granularity=PerToken())}
STRENGTHS = (0.3, 0.5, 0.7, 0.9)

RECOVERED = ("W4", "W3", "W3 g64")  # schemes whose loss GPTQ reduces

_SMOOTHED = "W8A8 per token SmoothQuant 0.5"
_CACHES = ("KV int8 per_channel", "KV int8 per_token")
EXPECTED = {
    "plain": {FLOAT, *_CACHES, *(f"{scheme} {method}" for scheme in RECOVERED
                                 for method in ("RTN", "GPTQ"))},
    "outliers": {FLOAT, *_CACHES, "W4 g64 RTN", "W4 g64 AWQ", "W8A8", _SMOOTHED},
}
"""The rows of each variant that :func:`expectations` are about."""


def rows():
    """Name of a row -> (LayerConfig or None, kind of KV cache or None), in their order."""
    found = {FLOAT: (None, None)}
    for scheme, spec in WEIGHTS.items():
        for method, (smoother, rounder) in METHODS.items():
            found[f"{scheme} {method}"] = LayerConfig(
                spec, smoother=smoother, rounder=rounder), None
    weight = QuantSpec(granularity=PerChannel(1))
    for scheme, activation in ACTIVATIONS.items():
        found[scheme] = LayerConfig(weight, activation), None
        for strength in STRENGTHS:
            found[f"{scheme} SmoothQuant {strength}"] = LayerConfig(
                weight, activation, SmoothQuant(strength)), None
    for kind in ("per_channel", "per_token"):
        found[f"KV int8 {kind}"] = None, kind
    return found


def measure(name, seed, characters, only=None):
    """Perplexity of the modules held out, {variant: {row: perplexity}}.

    All Linears of the decoder layers are quantized, in the plain model and in one with outliers.

    Args:
        name, seed: of the trained model.
        characters: about how much of the text.
        only: names of the rows by variant; all by default.
    """
    tokens = held_out_tokens(characters)
    batches = [paddle.to_tensor(batch) for batch in calibration_batches(8, seed=seed)]
    found = {variant: {} for variant in VARIANTS}
    for variant in VARIANTS:
        for row, (policy, cache) in rows().items():
            if only is not None and row not in only[variant]:
                continue
            model = trained(name, seed)
            if variant == "outliers":
                plant_outliers(model)
            if row != FLOAT:
                quantize_layer_by_layer(
                    model, DecoderHelper(), _rules(policy, cache), batches, progress=False)
            found[variant][row] = perplexity(model, tokens)
    return found


def _rules(policy, cache):
    """Rules for the decoder layers alone."""
    rules = QuantConfig()
    rules.add_type(nn.Linear, policy)
    rules.add_type(KVCache, LayerConfig(kv_cache=cache))
    rules.add_pattern(r"^(?!layers\.)", None)
    return rules


def expectations(found, recovery=0.5):
    """Check the perplexities of :func:`measure`.

    Args:
        found: perplexities, of one model or means of several.
        recovery: the largest loss of GPTQ, as a part of the loss of rounding to nearest.

    Returns:
        A list of (expectation, value, True if it holds).
    """
    lost = {variant: {row: value - each[FLOAT] for row, value in each.items()}
            for variant, each in found.items()}
    percent = {variant: {row: 100.0 * value / found[variant][FLOAT] for row, value in each.items()}
               for variant, each in lost.items()}
    plain, outliers = lost["plain"], lost["outliers"]
    checks = []

    def expect(text, value, holds, unit=""):
        checks.append((text, f"{value:.3f}{unit}", holds))

    for scheme in RECOVERED:
        ratio = plain[f"{scheme} GPTQ"] / plain[f"{scheme} RTN"]
        expect(f"{scheme}: GPTQ loses at most {recovery} of what RTN loses", ratio,
               ratio <= recovery)
    ratio = outliers["W4 g64 AWQ"] / outliers["W4 g64 RTN"]
    expect("outliers, W4 g64: AWQ loses at most 0.5 of what RTN loses", ratio, ratio <= 0.5)
    value = percent["outliers"]["W8A8"]
    expect("outliers, W8A8: loses more than 10%", value, value > 10.0, "%")
    value = percent["outliers"][_SMOOTHED]
    expect(f"outliers, {_SMOOTHED}: within 0.5% of float", value, abs(value) <= 0.5, "%")
    for variant in VARIANTS:
        for row in _CACHES:
            value = percent[variant][row]
            expect(f"{variant}, {row}: within 0.2% of float", value, abs(value) <= 0.2, "%")
    return checks


