"""From a network in training to the one that is deployed: batch norms folded, scales fixed."""

import copy

from ..graph.fold_batch_norm import fold
from ..nn.block import Block
from .fuse_blocks import blocks_of
from .state import check_quantized, finalize, set_state


def convert(model):
    """Fold the batch norms of fused blocks and fix all scales, in place.

    Scales of weights are computed from the folded weights, scales of activations from their
    observers. The model is in evaluation mode afterwards.

    Returns:
        The model.

    Raises:
        ModelError: there is no quantized layer.
        CalibrationError: names the quantizers that observed no data.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddleq.QAT().quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> _ = net(paddle.to_tensor([[0.5, -3.0]]))
        >>> paddleq.convert(net)[0].activation_quantizer.state
        <State.VALIDATION: 'validation'>
    """
    check_quantized(model)
    set_state(model, "validation")
    finalize(model)
    model.eval()
    names = {id(layer): name for name, layer in model.named_sublayers(include_self=True)}
    for block in blocks_of(model):
        if block.norm is None:
            continue
        producer, norm, relu = block.producer, block.norm, block.relu
        block.dissolve()
        if getattr(producer, "norm_folding", None) is not None:
            producer.drop_part("norm_folding")
        fold(producer, norm, names[id(producer)])
        if relu is not None:
            Block(producer, None, relu).join()
    return model


def copy_of(model):
    """A copy of the model whose parameters keep their names, so that its export shows them."""
    copied = copy.deepcopy(model)
    for (_, mine), (_, theirs) in zip(copied.named_parameters(), model.named_parameters()):
        mine.name = theirs.name
    for (_, mine), (_, theirs) in zip(copied.named_buffers(), model.named_buffers()):
        mine.name = theirs.name
    return copied
