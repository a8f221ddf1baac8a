"""Outliers in the activations of a model, as large language models have them (arXiv:2208.07339):
some channels behind a norm are large, and the weights that read them are small.
"""

import numpy as np
import paddle


def plant_outliers(model, channels=3, factor=64.0, seed=0):
    """Multiply channels of norms by a power of two, and divide by it the rows of the weights that
    read them: all layers get outliers, and the output stays the same.

    Args:
        model: a :class:`~.models.LanguageModel`; changed in place, and returned.
        channels: how many of each norm.
        factor: a power of two, so that nothing is rounded.
        seed: of which channels.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = [each for name, each in mlp.named_children() if name in (
            "gate_proj", "up_proj", "fc_in")]
        for norm, linears in (
                (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
                (layer.post_attention_layernorm, readers)):
            large = np.ones(norm.weight.shape[0], dtype="float32")
            large[rng.choice(len(large), channels, replace=False)] = factor
            large = paddle.to_tensor(large)
            norm.weight.set_value(norm.weight * large)
            if getattr(norm, "bias", None) is not None:
                norm.bias.set_value(norm.bias * large)
            for linear in linears:
                linear.weight.set_value(linear.weight / large.unsqueeze(1))
    return model
