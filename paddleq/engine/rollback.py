"""Rollback of structural changes to a model."""

from contextlib import contextmanager

from .._paddle_compat import LAYER_CONTAINERS


@contextmanager
def rollback_on_error(model):
    """Roll back structural changes of ``model`` if the block raises.

    Class, sublayers, parameters and attributes of each layer are restored, not tensor values.
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
            # layer.__dict__ = ... would call Layer.__setattr__.
            object.__setattr__(layer, "__dict__", attributes)
        raise


def _values(layer):
    values = dict(layer.__dict__)
    if "_paddleq" in values:
        values["_paddleq"] = values["_paddleq"].copy()
    return values
