"""Where the parts of the decoders are, for ``paddleq``'s PTQ."""

from paddleq.frontends.golden_stick import NetworkHelper


class DecoderHelper(NetworkHelper):
    """Of :class:`~.models.Llama` and :class:`~.models.GPT`, and of any network whose decoder
    layers are in its ``layers``, as PaddleNLP's ``LlamaModel`` has them.

    The attention of such a layer calls a :class:`paddleq.nn.KVCache`, which needs no help to be
    found. One that keeps its cache elsewhere says where by ``kv_caches``.
    """

    def decoder_layers(self, network):
        return [(f"layers.{number}", layer) for number, layer in enumerate(network.layers)]
