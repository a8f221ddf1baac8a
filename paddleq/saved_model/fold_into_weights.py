"""Move affine maps into the parameters of weighted operators of a program."""

from dataclasses import replace
from typing import Dict, Optional, Tuple

import numpy as np

from ..export.markers import WeightMark
from .affine import Affine, Refused
from .layers import LayerBinding, ProgramGraph
from .reshaped_axes import dimensions, merged, moved_axis

_PRODUCTS = ("mul", "matmul", "matmul_v2")
_NORMS = ("batch_norm", "layer_norm")
# Ratio of the largest to the smallest factor of channels that a quantizer sees afterwards without
# them: the ranges of the channels may then differ by as much, which costs bits (16: up to 4 of 8).
_LARGEST_SPREAD = 16.0


class WeightFolding:
    """An affine map that a weighted operator takes into its parameters.

    Args:
        graph: the program.
        binding: the operator.
        affine: the map.
        of_input: True if it maps the data of the operator, False if it maps its output.

    Raises:
        Refused: the operator cannot take it; gives the reason.
    """

    def __init__(self, graph: ProgramGraph, binding: LayerBinding, affine: Affine,
                 of_input: bool) -> None:
        self.binding, self.of_input = binding, of_input
        self._type = binding.operator.type
        self._kernel = graph.arrays[binding.weight].shape[2:]
        self._check_parameters(graph)
        self.affine = self._of_channels(graph, affine)

    def new_parameters(self, graph: ProgramGraph) -> Tuple[Dict[str, np.ndarray],
                                                           Optional[np.ndarray]]:
        """Return new values of parameters, and the bias of an operator that had none.

        Raises:
            Refused: a value is too large for float32.
        """
        weight, bias = self._weight_and_bias(graph)
        weight, bias = (self._input_folded if self.of_input else self._output_folded)(weight, bias)
        name = self.binding.parameters.get("bias")
        values = {self.binding.weight: weight}
        if name is not None:
            values[name] = bias
        arrays = {key: value.astype(graph.arrays[key].dtype).reshape(graph.arrays[key].shape)
                  for key, value in values.items()}
        added = None
        if name is None and bias.any():
            added = bias.astype(graph.arrays[self.binding.weight].dtype)
        if not all(np.isfinite(each).all() for each in [*arrays.values(), bias.astype("f4")]):
            raise Refused(f"the parameters of {self.binding.weight} would overflow")
        return arrays, added

    def scaled_mark(self, mark: WeightMark) -> WeightMark:
        """Return the mark of the quantized weight with folded factors; its integers stay.

        Raises:
            Refused: the scales of the mark are not those of the output channels, or the integers
                of a channel with a negative factor cannot change their sign.
        """
        scale, name = self.affine.scale, self.binding.weight
        if self._type in _NORMS or mark.spec is None or mark.abs_max is None or not scale.all():
            raise Refused(f"{name} has no scales that can take factors")
        negative = (scale < 0).any()
        if negative and (mark.zero_point is not None or mark.spec.binary or (
                mark.integers is not None and mark.integers.min() < -mark.spec.quant_max)):
            raise Refused(f"the integers of {name} cannot change their sign")
        if scale.size > 1 and mark.abs_max.size != scale.size:
            raise Refused(f"{name} has {mark.abs_max.size} scales, not one for each channel")
        channels = scale.size if scale.size > 1 else 1
        factor, sign = scale, np.sign(scale)
        if channels == 1:
            scaled = [each if each is None else each * value for each, value in (
                (mark.value, factor[0]), (mark.integers, sign[0]))]
        else:
            scaled = [each if each is None else self._along_outputs(each, value)
                      for each, value in ((mark.value, factor), (mark.integers, sign))]
        value, integers = (None if old is None or new is None else new.astype(old.dtype)
                           for new, old in zip(scaled, (mark.value, mark.integers)))
        abs_max = mark.abs_max * np.abs(factor).reshape(
            mark.abs_max.shape if channels > 1 else [1] * mark.abs_max.ndim)
        return replace(mark, value=value, integers=integers,
                       abs_max=abs_max.astype(mark.abs_max.dtype))

    def _check_parameters(self, graph):
        if self._type == "rnn" or self.of_input and self._type in (*_NORMS, "lookup_table_v2"):
            raise Refused(f"{self._type} with the weight {self.binding.weight} cannot take it")
        for attribute, name in self.binding.parameters.items():
            if attribute in ("weight", "bias"):
                if len(graph.consumers[name]) != 1:
                    raise Refused(f"the parameter {name} has several readers")
                if graph.arrays[name].dtype not in (np.float32, np.float64):
                    raise Refused(f"{name} is {graph.arrays[name].dtype}, not float32")

    def _of_channels(self, graph, affine):
        """Return the map along the channels of the weight, after checks."""
        op, binding = self.binding.operator, self.binding
        name = op.input(binding.source) if self.of_input else binding.target
        shape = dimensions(graph, name)
        if self._type in _PRODUCTS:
            if self.of_input and binding.flattened is not None:
                rows = binding.flattened
                flat = [*shape[:rows], merged(shape[rows:])]
                affine, shape = moved_axis(shape, flat, affine), flat
            axis = len(shape) - 1
        elif self._type == "batch_norm":
            axis = _channel_axis(op.get("data_layout", "NCHW"), len(shape))
        elif self._type in ("layer_norm", "lookup_table_v2"):
            axis = len(shape) - 1
        else:
            axis = _channel_axis(op.get("data_format", "NCHW"), len(shape))
        if affine.axis not in (None, axis):
            raise Refused(f"its channels are on axis {affine.axis}, those of {binding.weight} on "
                          f"{axis}")
        if affine.adds and (self._type == "lookup_table_v2" and op.get("padding_idx", -1) != -1
                            or self._type in _PRODUCTS and len(shape) < 2):
            raise Refused(f"{binding.weight} has no place for an addition")
        if self.of_input:
            self._check_input(affine)
        return affine

    def _check_input(self, affine):
        magnitudes = np.abs(affine.scale)
        if not magnitudes.min() or magnitudes.max() > _LARGEST_SPREAD * magnitudes.min():
            raise Refused(
                f"without its factors, from {magnitudes.min():.3g} to {magnitudes.max():.3g}, the "
                f"channels that {self.binding.weight} reads may have too different ranges for one "
                "scale")
        if affine.adds and self._type not in _PRODUCTS and not self._adds_exactly():
            raise Refused(f"the addition does not reach the padding of {self.binding.weight}")

    def _adds_exactly(self):
        """Return True if each output of the convolution reads all elements of its kernel."""
        op = self.binding.operator
        kernel_is_one = all(size == 1 for size in self._kernel) and all(
            stride == 1 for stride in op.get("strides", [1]))
        algorithm = op.get("padding_algorithm", "EXPLICIT")
        if "transpose" in self._type:
            return kernel_is_one and not any(op.get("paddings", [])) and not any(
                op.get("output_padding") or []) and algorithm != "SAME"
        return (algorithm == "VALID" or algorithm == "SAME" and kernel_is_one
                or algorithm == "EXPLICIT" and not any(op.get("paddings", [])))

    def _weight_and_bias(self, graph):
        weight = graph.arrays[self.binding.weight].astype(np.float64)
        if self._type in _NORMS:
            channels = weight.size
        elif self._type in _PRODUCTS or self._type == "lookup_table_v2":
            channels = weight.shape[0 if self.binding.transposed else 1]
        elif "transpose" in self._type:
            channels = weight.shape[1] * self._groups
        else:
            channels = weight.shape[0]
        name = self.binding.parameters.get("bias")
        bias = (np.zeros(channels) if name is None
                else graph.arrays[name].astype(np.float64).reshape(-1))
        return weight, bias

    @property
    def _groups(self):
        return self.binding.operator.get("groups", 1) or 1

    def _output_folded(self, weight, bias):
        scale, shift = self.affine.per_channel(bias.size)
        if self._type == "lookup_table_v2":  # it has no bias
            return weight * scale + shift, np.zeros(1)
        return self._along_outputs(weight, scale), bias * scale + shift

    def _along_outputs(self, weight, factor):
        if self._type in _NORMS:
            return weight * factor
        if self._type in _PRODUCTS or self._type == "lookup_table_v2":
            return weight * (factor[:, None] if self.binding.transposed else factor)
        ones = [1] * (weight.ndim - 2)
        if "transpose" in self._type:
            grouped = weight.reshape([self._groups, -1, *weight.shape[1:]])
            return (grouped * factor.reshape([self._groups, 1, -1, *ones])).reshape(weight.shape)
        return weight * factor.reshape([-1, 1, *ones])

    def _input_folded(self, weight, bias):
        by_input = self._input_axis_last(weight)  # [groups, outputs, elements, inputs]
        scale, shift = self.affine.per_channel(by_input.shape[0] * by_input.shape[-1])
        added = np.einsum("goei,gi->go", by_input, shift.reshape([by_input.shape[0], -1]))
        return self._along_inputs(weight, scale), bias + added.reshape(-1)

    def _input_axis_last(self, weight):
        if self._type in _PRODUCTS:
            weight = weight if self.binding.transposed else weight.T
            return weight[None, :, None]
        if "transpose" in self._type:  # inputs, outputs of a group, kernel
            grouped = weight.reshape([self._groups, -1, weight.shape[1],
                                      int(np.prod(weight.shape[2:]))])
            return grouped.transpose([0, 2, 3, 1])
        grouped = weight.reshape([self._groups, -1, weight.shape[1],
                                  int(np.prod(weight.shape[2:]))])
        return grouped.transpose([0, 1, 3, 2])

    def _along_inputs(self, weight, factor):
        if self._type in _PRODUCTS:
            return weight * (factor if self.binding.transposed else factor[:, None])
        ones = [1] * (weight.ndim - 2)
        if "transpose" in self._type:
            return weight * factor.reshape([-1, 1, *ones])
        grouped = weight.reshape([self._groups, -1, *weight.shape[1:]])
        return (grouped * factor.reshape([self._groups, 1, -1, *ones])).reshape(weight.shape)


def _channel_axis(layout, rank):
    return rank - 1 if str(layout).endswith("C") else 1
