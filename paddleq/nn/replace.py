"""Putting other layers into a model in place of its own."""

from .._paddle_compat import FORWARD_HOOKS


def replace_layers(model, replacements):
    """Put layers in place of others, wherever those are held, in place.

    The old layer object becomes what the new one is: it gets its class and its attributes. So it
    is replaced for whoever holds it: two parents, a plain list, a hook. Its own hooks stay.

    Args:
        model: a ``paddle.nn.Layer``.
        replacements: (layer of the model, what takes its place) pairs. The latter is not to be
            used by itself any more.

    Returns:
        A function without arguments that puts the old layers back.

    Examples:
        >>> import paddle
        >>> from paddleq.nn.replace import replace_layers
        >>> model = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.ReLU())
        >>> undo = replace_layers(model, [(model[1], paddle.nn.GELU())])
        >>> type(model[1]).__name__
        'GELU'
        >>> undo()
        >>> type(model[1]).__name__
        'ReLU'
    """
    before = []
    for old, new in replacements:
        before.append((old, type(old), old.__dict__))
        hooks = {name: old.__dict__[name] for name in FORWARD_HOOKS}
        _become(old, type(new), {**new.__dict__, **hooks})

    def undo():
        for old, cls, attributes in reversed(before):
            _become(old, cls, attributes)

    return undo


def _become(layer, cls, attributes):
    layer.__class__ = cls
    # Not layer.__dict__ = ...: that goes through the layer's own rules for attributes.
    object.__setattr__(layer, "__dict__", attributes)
