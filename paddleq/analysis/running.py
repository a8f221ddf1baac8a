"""Running a quantized model so that it can be looked into."""

from contextlib import ExitStack, contextmanager

import paddle
from paddle.jit.dy2static.program_translator import ProgramTranslator

from ..engine import check_quantized, evaluation, fake_quantizers
from ..errors import CalibrationError
from ..fake_quantize import State


def check_simulates(model):
    """Raise unless ``model`` is quantized and all its quantizers have a scale and use it.

    Raises:
        ModelError, ConfigTypeError: it is no quantized model.
        CalibrationError: names the quantizers that are not calibrated.
    """
    check_quantized(model)
    found = fake_quantizers(model)
    idle = [name for name, quantizer in found
            if not quantizer.initialized or quantizer.state is State.CALIBRATION]
    if idle:
        raise CalibrationError(
            f"{len(idle)} of {len(found)} quantizers are not calibrated: {', '.join(idle)}; run "
            "calibrate() (PTQ) or training steps (QAT) that reach these layers first")


@contextmanager
def looking(*models):
    """While open, the models are in evaluation mode, without gradients, and not compiled.

    (In a program of ``to_static`` no layer can be looked at.)
    """
    compiles = ProgramTranslator().enable_to_static
    with ExitStack() as stack:
        stack.callback(paddle.jit.enable_to_static, compiles)
        paddle.jit.enable_to_static(False)
        for model in models:
            stack.enter_context(evaluation(model))
        stack.enter_context(paddle.no_grad())
        yield


@contextmanager
def intercepted(layers, see):
    """While open, ``see(name, args, kwargs, output)`` is called after each call of a layer.

    Args:
        layers: name -> layer.
        see: what it returns is not used; it must not change what it is given.
    """
    # In the place of the forward, not a hook: hooks are not told of keyword arguments.
    kept = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    calls = {name: layer.forward for name, layer in layers.items()}

    def seen(name):
        def forward(*args, **kwargs):
            output = calls[name](*args, **kwargs)
            see(name, args, kwargs, output)
            return output
        return forward

    try:
        for name, layer in layers.items():
            layer.__dict__["forward"] = seen(name)
        yield
    finally:
        for name, layer in layers.items():
            layer.__dict__.pop("forward", None)
            if kept[name] is not None:
                layer.__dict__["forward"] = kept[name]
