"""Putting other layers into a model in place of its own."""


def replace_layers(model, replacements):
    """Put layers in place of others, wherever ``model`` holds them, in place.

    Args:
        model: a ``paddle.nn.Layer``.
        replacements: (layer of the model, what takes its place) pairs. A layer that several
            parents hold, or one under several names, is replaced in all of these places.

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
    # The old layers are kept by the pairs, so that no other one gets their ids.
    pairs = {id(old): (old, new) for old, new in replacements}
    places = [(parent, name, child) for parent in model.sublayers(include_self=True)
              for name, child in parent._sub_layers.items() if id(child) in pairs]
    for parent, name, child in places:
        parent._sub_layers[name] = pairs[id(child)][1]

    def undo():
        for parent, name, child in places:
            parent._sub_layers[name] = child

    return undo
