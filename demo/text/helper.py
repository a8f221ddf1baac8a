"""Network helper of the decoders for PTQ of Golden Stick."""

from paddleq.golden_stick import NetworkHelper


class DecoderHelper(NetworkHelper):
    """Helper for networks with decoder layers in ``layers``, such as :class:`~.models.Llama`,
    :class:`~.models.GPT` and ``LlamaModel`` of PaddleNLP.

    Their attentions call a :class:`paddleq.nn.KVCache`, which is found automatically. Networks with
    other caches override ``kv_caches``.
    """

    def decoder_layers(self, network):
        return [(f"layers.{number}", layer) for number, layer in enumerate(network.layers)]
