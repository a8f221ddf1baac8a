"""What the formats of files can hold, and what is said where they cannot."""

import abc

from ..errors import ExportError
from ..spec import QuantSpec


class Target(abc.ABC):
    """A format of files, as the trace has to know it."""

    @abc.abstractmethod
    def check(self, what, spec, weight):
        """Raise :class:`ExportError` for a :class:`~paddleq.QuantSpec` that it does not hold."""

    @abc.abstractmethod
    def holds_weight_of(self, layer):
        """Whether it has the weight of an IntegerLinear as integers and scales.

        Otherwise the operators that make the weight are traced.
        """


class PaddleTarget(Target):
    """``quantize_linear`` and ``dequantize_linear`` of Paddle."""

    def check(self, what, spec, weight):
        if not spec.symmetric:
            raise ExportError(
                f"{what} is quantized with a zero point, which Paddle Inference and OpenVINO do "
                "not take from a .pdmodel; make it symmetric (symmetric=True, a qscheme that ends "
                "in _symmetric, or 'lsq' in place of 'lsq_plus'), or write format='onnx', which "
                "holds zero points")
        # The integers of a weight are in the file already: leaving one out changes nothing.
        plain = QuantSpec(spec.bits, narrow_range=weight and spec.narrow_range)
        if (spec.quant_min, spec.quant_max) != (plain.quant_min, plain.quant_max):
            raise ExportError(
                f"{what} is quantized to [{spec.quant_min}, {spec.quant_max}], but the operators of a "
                f".pdmodel quantize to [{plain.quant_min}, "
                f"{plain.quant_max}]; use signed integers and all "
                "of their range, or write format='onnx'")

    def holds_weight_of(self, layer):
        return layer.quantized_linearly


class OnnxTarget(Target):
    """``QuantizeLinear`` and ``DequantizeLinear`` of ONNX. What depends on the opset is checked
    when it is known."""

    def check(self, what, spec, weight):
        return None

    def holds_weight_of(self, layer):
        return True
