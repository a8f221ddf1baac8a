"""Which opset a model gets."""

from ...errors import ExportError, UnsupportedOperatorError

LOWEST, USUAL, HIGHEST = 13, 17, 21  # 13: the first with a scale for each channel
CONVERTER_HIGHEST = 19  # of paddle2onnx
# From 20 on, by the names that it had before.
_MODES = {b"bilinear": b"linear", b"bicubic": b"cubic"}


def raise_opset(model):
    """Make a model of opset 19 one of opset 21, in place.

    Of what paddle2onnx writes, only GridSample changed by more than the types that it takes.
    """
    version = model.opset_import[0].version
    if version < CONVERTER_HIGHEST:
        raise ExportError(f"cannot raise a model of opset {version}")
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            raise UnsupportedOperatorError("GroupNormalization changed its meaning in opset 21; "
                                           "use opset 19 or lower", "group_norm")
        for attribute in node.attribute:
            if node.op_type == "GridSample" and attribute.name == "mode":
                attribute.s = _MODES.get(attribute.s, attribute.s)
