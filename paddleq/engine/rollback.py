"""Changes to a model's structure that are taken back when something goes wrong."""

from contextlib import contextmanager

from .._paddle_compat import LAYER_CONTAINERS


@contextmanager
def whole_or_not_at_all(model):
    """While open, layers of ``model`` may be replaced, or get another class or other parts.

    If an exception leaves the context, every layer is what it was. (Values of tensors are not
    looked at.)
    """
    before = [(layer, type(layer), layer.__dict__, _values(layer),
               {name: layer.__dict__[name].copy() for name in LAYER_CONTAINERS
                if name in layer.__dict__})
              for layer in model.sublayers(include_self=True)]
    try:
        yield
    except BaseException:
        for layer, cls, attributes, values, holders in before:
            layer.__class__ = cls
            for name, copy in holders.items():
                values[name].clear()
                values[name].update(copy)
            attributes.clear()
            attributes.update(values)
            # (layer.__dict__ = ... goes through the layer's own rules for attributes.)
            object.__setattr__(layer, "__dict__", attributes)
        raise


def _values(layer):
    values = dict(layer.__dict__)
    if "_paddleq" in values:
        values["_paddleq"] = values["_paddleq"].copy()
    return values
