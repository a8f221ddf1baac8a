"""Subclasses of Paddle's layer classes that a layer gets in place of its own class.

The layer stays the same object with the same parameters; to Paddle's tools it looks as before.
"""

import inspect

import paddle

from .._paddle_compat import copy_flops_counter, skip_bytecode_translation


def subclass(prefix, mixin, base, forward, **attributes):
    """``base`` with ``mixin`` before it, its name behind ``prefix``.

    Args:
        forward: called as ``forward(layer, args, kwargs)``; the class's forward, with the
            arguments of that of ``base``: Paddle's tracers ask for them by name.
    """
    @paddle.jit.not_to_static
    def like_base(self, *args, **kwargs):
        return forward(self, args, kwargs)

    like_base.__signature__ = inspect.signature(base.forward)
    like_base.__doc__ = base.forward.__doc__
    cls = type(prefix + base.__name__, (mixin, base),
               {**attributes, "_paddleq_float_class": base, "forward": like_base,
                "__doc__": f"{prefix} {base.__name__}.", "__module__": mixin.__module__})
    copy_flops_counter(cls, base)
    skip_bytecode_translation(cls)
    return cls
