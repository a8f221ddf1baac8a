"""Running a layer's own forward on other weights than it holds."""

from contextlib import contextmanager


@contextmanager
def substituted(layer, weights):
    """While open, ``layer.<name>`` is ``weights[name]``.

    An instance attribute hides the parameter of that name from the layer's own forward, and
    from nobody else: ``parameters()`` and ``state_dict()`` do not see it.
    """
    # A bias that is not there is an instance attribute already: None.
    own = {name: layer.__dict__[name] for name in weights if name in layer.__dict__}
    try:
        layer.__dict__.update(weights)
        yield
    finally:
        for name in weights:
            layer.__dict__.pop(name, None)
        layer.__dict__.update(own)
