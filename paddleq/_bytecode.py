"""Layers that ``paddle.jit.to_static`` is not to take apart."""

import paddle


def keep_from_translation(cls):
    """Let to_static trace the layer as one of Paddle's own, by calling it on symbols.

    Its forward is right in dynamic and in static mode as it is, and is to be decorated with
    ``paddle.jit.not_to_static``, all that Paddle 2.6 has. The bytecode translator of
    Paddle 3 would take it apart, lose what observers write into their buffers, and (3.3) reuse
    what it made of a quantizer with other limits.

    Args:
        cls: a subclass of ``paddle.nn.Layer``.

    Returns:
        ``cls``, so that it may stand as a decorator.
    """
    marker = getattr(paddle.jit, "marker", None)
    if hasattr(marker, "unified"):
        marker.unified(cls)
    return cls
