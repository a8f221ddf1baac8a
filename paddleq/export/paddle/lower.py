"""Lower markers to quantize and dequantize operators of a ProgramDesc (``.pdmodel``)."""

import numpy as np

from ...errors import ExportError
from ...spec import QuantSpec
from ..formats import Format, register_format
from ..markers import MarkerLowering, marker_number, simulated_weight
from ..program.op_builder import OpBuilder
from ..program.op_desc import (
    all_inputs,
    all_outputs,
    attribute,
    inputs,
    outputs,
    rename_inputs,
    replace_ops,
)


@register_format("pdmodel")
class PdmodelFormat(Format):
    """``path.pdmodel`` and ``path.pdiparams``, which every runtime of Paddle reads."""

    endings = (".pdmodel", ".pdiparams")

    def check_spec(self, name, spec, is_weight):
        if not spec.symmetric:
            raise ExportError(
                f"{name} is quantized with a zero point, which Paddle Inference and OpenVINO do "
                "not take from a .pdmodel; make it symmetric (symmetric=True, a qscheme that ends "
                "in _symmetric, or 'lsq' in place of 'lsq_plus'), or write format='onnx', which "
                "holds zero points")
        # The integers of a weight are in the file already: a narrow range changes nothing.
        plain = QuantSpec(spec.bits, narrow_range=is_weight and spec.narrow_range)
        if (spec.quant_min, spec.quant_max) != (plain.quant_min, plain.quant_max):
            raise ExportError(
                f"{name} is quantized to [{spec.quant_min}, {spec.quant_max}], but the operators "
                f"of a .pdmodel quantize to [{plain.quant_min}, {plain.quant_max}]; use signed "
                "integers and all of their range, or write format='onnx'")

    def stores_integers_of(self, layer):
        return layer.quantized_linearly

    def write(self, program, marks, path, provenance=None, onnx_format=True):
        lower_markers(program, marks, onnx_format)
        program.save(path + ".pdmodel", path + ".pdiparams", provenance)


def lower_markers(program, marks, onnx_format=True):
    """Replace the markers of ``program`` by operators, in place.

    Args:
        onnx_format: ``quantize_linear`` and ``dequantize_linear`` with integer weights, or
            ``fake_*`` operators with float weights.
    """
    _ProgramLowering(program, marks, onnx_format).run()


def remove_markers(program, marks):
    """Restore the float program: remove markers of activations and store weights as floats.

    Weights get their values before quantization; those of which only integers are known are
    dequantized.
    """
    _MarkerRemoval(program, marks, onnx_format=True).run()


class _ProgramLowering(MarkerLowering):
    def __init__(self, program, marks, onnx_format):
        super().__init__(marks)
        self.program, self.onnx_format = program, onnx_format
        self.builder = OpBuilder(program)

    def quantize_dequantize(self, marker):
        mark, (_, _, block, source, target) = marker.mark, marker
        if not self.onnx_format:
            return self.builder.fake_quantize(source, target, mark.abs_max, mark.spec.bits)
        return self.builder.quantize_dequantize(block, source, target, mark.abs_max,
                                                mark.spec.bits)

    def sign(self, marker, size):
        return self.builder.sign(marker.block, marker.source, marker.target, size)

    def integer_weight(self, marker):
        mark = marker.mark
        bits, axis = mark.spec.bits, mark.spec.channel_axis
        if self.onnx_format:
            name = self.store(marker, mark.integers, ".integers")
            abs_max = self.builder.parameter(f"{name}.scale", mark.abs_max)
            return self.builder.dequantize_weight(marker.block, name, abs_max, marker.target, bits,
                                                  axis)
        if mark.spec.binary or not mark.dynamic:
            # fake_* operators compute max|weight|; a weight with another abs_max is stored
            # quantized and dequantized.
            return self.float_weight(marker, simulated_weight(mark))
        name = self.store(marker, mark.value, self.float_suffix)
        return self.builder.fake_quantize_weight(name, marker.target, mark.abs_max, bits, axis)

    set_operations = staticmethod(replace_ops)
    inputs_of = staticmethod(all_inputs)
    outputs_of = staticmethod(all_outputs)

    def blocks(self):
        return [(block, block.ops) for block in self.program.desc.blocks]

    def rename_inputs(self, ops):
        rename_inputs(ops, self.renamed)

    def marker_of(self, op):
        number = (marker_number(attribute(op, "scale"), attribute(op, "bias"))
                  if op.type == "scale" else None)
        return None if number is None else (number, inputs(op, "X")[0], outputs(op, "Out")[0])

    def parameter_name(self, source):
        return source if source in self.program.arrays else None

    def add_parameter(self, name, array):
        return self.builder.parameter(name, array)

    def set_parameter(self, source, array):
        self.program.set_parameter(source, array)

    def run(self):
        super().run()
        self.program.remove_unused_parameters()


class _MarkerRemoval(_ProgramLowering):
    def activation(self, marker):
        self.renamed[marker.target] = marker.source
        return []

    def weight(self, marker):
        mark = marker.mark
        value = simulated_weight(mark) if mark.value is None else mark.value
        if np.array_equal(self.program.arrays.get(marker.source), value):  # not stored twice
            self.renamed[marker.target] = marker.source
            return []
        return self.float_weight(marker, value)
