"""Lower markers to quantize and dequantize operators of a ProgramDesc (``.pdmodel``)."""

import numpy as np

from ...errors import ExportError
from ...spec import QuantSpec
from ..formats import Format, register_format
from ..markers import MarkerLowering, marker_number, simulated_weight
from ..program.op_builder import BOOL, FLOAT32, OpBuilder, linear_op
from ..program.op_desc import (
    all_outputs,
    attribute,
    direct_inputs,
    inputs,
    make_op,
    outputs,
    rename_inputs,
    replace_ops,
)
from ..program.passes.activation_steps import quantize_in_steps
from ..program.passes.runtime_workarounds import apply_runtime_workarounds
from .int8_kernels import use_int8_kernels


@register_format("pdmodel")
class PdmodelFormat(Format):
    """``path.pdmodel`` and ``path.pdiparams``, which every runtime of Paddle reads."""

    endings = (".pdmodel", ".pdiparams")
    targets = ("any", "paddle_int8")

    def check_spec(self, name, spec, is_weight):
        if not spec.symmetric:
            raise ExportError(
                f"{name} is quantized with a zero point, which Paddle Inference and OpenVINO do "
                "not take from a .pdmodel; make it symmetric (symmetric=True, a qscheme that ends "
                "in _symmetric, or 'lsq' in place of 'lsq_plus'), or write format='onnx' or "
                "'openvino', which hold zero points")
        # The integers of a weight are in the file already: a narrow range changes nothing.
        plain = QuantSpec(spec.bits, narrow_range=is_weight and spec.narrow_range)
        if (spec.quant_min, spec.quant_max) != (plain.quant_min, plain.quant_max):
            raise ExportError(
                f"{name} is quantized to [{spec.quant_min}, {spec.quant_max}], but the operators "
                f"of a .pdmodel quantize to [{plain.quant_min}, {plain.quant_max}]; use signed "
                "integers and all of their range, or write format='onnx'")

    def stores_integers_of(self, layer):
        return layer.quantized_linearly

    def write(self, program, marks, path, provenance=None, onnx_format=True, target="any"):
        ProgramLowering(program, marks, onnx_format).run()
        save_for(target, program, path + ".pdmodel", path + ".pdiparams", provenance)


def save_for(target, program, model_path, params_path, provenance=None):
    """Write a lowered program for a target of :class:`PdmodelFormat`."""
    if target == "paddle_int8":
        apply_runtime_workarounds(program)
        use_int8_kernels(program)
    program.save(model_path, params_path, provenance, workarounds=target != "paddle_int8")


class ProgramLowering(MarkerLowering):
    """Replace the markers of a program by operators, in place.

    ``onnx_format`` is that of :func:`paddleq.export.save`.
    """

    def __init__(self, program, marks, onnx_format=True):
        super().__init__(marks, direct_inputs, all_outputs)
        self.program, self.onnx_format = program, onnx_format
        self.builder = OpBuilder(program)

    def quantize_dequantize(self, marker):
        _, mark, block, source, target = marker
        scale = self.builder.parameter(f"{target}.scale", mark.abs_max)
        if not self.onnx_format:
            return [make_op("fake_quantize_dequantize_moving_average_abs_max",
                            {"X": source, "InScale": scale}, {"Out": target, "OutScale": scale},
                            bit_length=mark.spec.bits, moving_rate=0.9, is_test=True,
                            round_type=0)]
        if mark.spec.bits != 8:
            return quantize_in_steps(self.builder, block, source, target, scale, mark.spec.bits)
        quantized = self.builder.variable_like(block, target, f"{target}.quantized")
        zero = self._zero()
        return [linear_op("quantize_linear", source, scale, zero, quantized, mark.spec.bits),
                linear_op("dequantize_linear", quantized, scale, zero, target, mark.spec.bits)]

    def sign(self, marker, size):
        _, _, block, source, target = marker
        above = self.builder.variable_like(block, target, f"{target}.above", "bool")
        number = self.builder.variable_like(block, target, f"{target}.number")
        return [
            make_op("greater_equal", {"X": source, "Y": self._zero()}, {"Out": above}, axis=-1,
                    force_cpu=False),
            make_op("cast", {"X": above}, {"Out": number}, in_dtype=BOOL, out_dtype=FLOAT32),
            make_op("scale", {"X": number}, {"Out": target}, scale=2.0 * size, bias=-size,
                    bias_after_scale=True),
        ]

    def integer_weight(self, marker):
        mark, target = marker.mark, marker.target
        axis = -1 if mark.spec.channel_axis is None else mark.spec.channel_axis
        if not self.onnx_format:
            return self.fake_weight(marker, axis)
        name = self.store(marker, mark.integers, ".integers")
        abs_max = self.builder.parameter(f"{name}.scale", mark.abs_max)
        bits = max(mark.spec.bits, 2)  # which dequantizes binary weights, -1 and +1, correctly
        if mark.integers.dtype == np.int16:
            # Paddle has no dequantize_linear kernel for int16.
            return self.builder.multiply_weight(marker.block, name, abs_max, target, bits, axis)
        # One zero point per weight: Paddle-Lite removes it together with the operator, and aborts
        # if another weight shares it.
        zero = self.builder.parameter(f"{target}.zero_point",
                                      np.zeros([len(mark.abs_max)], np.float32))
        return [linear_op("dequantize_linear", name, abs_max, zero, target, bits, axis)]

    def fake_weight(self, marker, axis):
        mark, target = marker.mark, marker.target
        if mark.spec.binary or not mark.dynamic:
            # fake_* operators compute max|weight|; a weight with another abs_max is stored
            # quantized and dequantized.
            return self.float_weight(marker, simulated_weight(mark))
        name = self.store(marker, mark.value, self.float_suffix)
        # Paddle computes the scale into this variable; Paddle-Lite reads it from the file.
        scale = self.builder.parameter(f"{target}.scale", mark.abs_max)
        kind, channels = (("fake_quantize_dequantize_abs_max", {}) if axis < 0 else
                          ("fake_channel_wise_quantize_dequantize_abs_max", {"quant_axis": axis}))
        return [make_op(kind, {"X": name}, {"Out": target, "OutScale": scale},
                        bit_length=mark.spec.bits, **channels, round_type=0)]

    def _zero(self):
        return self.builder.constant("paddleq.zero_point", 0)

    set_operations = staticmethod(replace_ops)

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


class MarkerRemoval(ProgramLowering):
    """Restore the float program: remove markers of activations and store weights as floats.

    Weights get their values before quantization, or else their dequantized integers.
    """

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
