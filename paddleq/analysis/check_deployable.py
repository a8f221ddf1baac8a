"""Whether a quantized model computes what it will when it is deployed."""

from ..engine import check_quantized, fake_quantizers
from ..errors import CalibrationError
from ..fake_quant.fake_quantize import State


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
