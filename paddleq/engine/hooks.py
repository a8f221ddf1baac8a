"""Running a model so that it can be looked into."""

from contextlib import ExitStack, contextmanager

import paddle

from .._paddle_compat import is_to_static_enabled
from .state import evaluation


@contextmanager
def eager_evaluation(*models):
    """While open, the models are in evaluation mode, without gradients, and not compiled.

    (In a program of ``to_static`` no layer can be looked at.)
    """
    compiles = is_to_static_enabled()
    with ExitStack() as stack:
        stack.callback(paddle.jit.enable_to_static, compiles)
        paddle.jit.enable_to_static(False)
        for model in models:
            stack.enter_context(evaluation(model))
        stack.enter_context(paddle.no_grad())
        yield


@contextmanager
def patched_forward(layer, forward):
    """While open, ``layer`` calls ``forward(original, *args, **kwargs)``.

    In the place of the forward, not a hook: hooks are not told of keyword arguments.
    """
    own = layer.__dict__.get("forward")
    original = layer.forward

    def patch(*args, **kwargs):
        return forward(original, *args, **kwargs)

    layer.__dict__["forward"] = patch
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if own is not None:
            layer.__dict__["forward"] = own


@contextmanager
def capture_calls(layers, see):
    """While open, ``see(name, args, kwargs, output)`` is called after each call of a layer.

    Args:
        layers: name -> layer.
        see: what it returns is not used; it must not change what it is given.
    """
    def seeing(name):
        def forward(original, *args, **kwargs):
            output = original(*args, **kwargs)
            see(name, args, kwargs, output)
            return output
        return forward

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(patched_forward(layer, seeing(name)))
        yield


@contextmanager
def capture_inputs(layers, saw):
    """While open, ``saw(name, x)`` is called with the first argument before each call of a layer.

    Args:
        layers: name -> layer.
    """
    def watching(name):
        def forward(original, *args, **kwargs):
            saw(name, args[0] if args else next(iter(kwargs.values())))
            return original(*args, **kwargs)
        return forward

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(patched_forward(layer, watching(name)))
        yield
