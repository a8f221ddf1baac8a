"""Outliers in the activations of a model, as large language models have them (arXiv:2208.07339):
some channels behind a norm are large, and the weights that read them are small.
"""

import paddle


def plant_outliers(model, channels=4, factor=64.0):
    """Multiply channels of norms by a power of two, and divide by it the rows of the weights that
    read them: all layers get outliers, and the output stays the same.

    The channels are those that matter most, by their weights: such outliers are.

    Args:
        model: a :class:`~.models.LanguageModel`; changed in place, and returned.
        channels: how many of each norm in a decoder layer.
        factor: a power of two, so that nothing is rounded.
    """
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = [each for name, each in mlp.named_children() if name in (
            "gate_proj", "up_proj", "fc_in")]
        for norm, linears in (
                (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
                (layer.post_attention_layernorm, readers)):
            rows = paddle.add_n([(linear.weight ** 2).sum(axis=1) for linear in linears])
            chosen = paddle.argsort(norm.weight ** 2 * rows, descending=True)[:channels]
            large = paddle.ones_like(norm.weight)
            large[chosen] = factor
            norm.weight.set_value(norm.weight * large)
            if getattr(norm, "bias", None) is not None:
                norm.bias.set_value(norm.bias * large)
            for linear in linears:
                linear.weight.set_value(linear.weight / large.unsqueeze(1))
    return model
