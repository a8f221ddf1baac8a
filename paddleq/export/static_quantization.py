"""Post-training quantization of a saved program, for which no Python class is needed."""

import os
import tempfile
from collections import Counter

import numpy as np
import paddle

from ..errors import CalibrationError, ConfigError, ModelError, NonFiniteError
from .emit import Emitter, replace_ops
from .program import Program, attribute, inputs, make_op, outputs
from .weight_only import WEIGHTED_OPS, channel_axis, quantize_array

_DATA_SLOT = {"mul": "X", "matmul": "X", "matmul_v2": "X"}  # of the others: Input


class StaticQuantizer:
    """Quantizes inputs and weights of the weighted operators of a program.

    It is told batches with :meth:`observe`; :meth:`finish` then puts the integers in.

    Args:
        program: a :class:`~paddleq.export.program.Program`. It is changed by :meth:`finish`.
        op_types: which operators.
        make_observer: called for each input, returns an :class:`~paddleq.observers.Observer`.
        weight_bits: 2 to 8.
        per_channel: a scale for each output channel of a weight.
        skip: names of weights, inputs or outputs whose operators stay float.

    Raises:
        ModelError: there is no such operator with a weight.
        ConfigError: a name in ``skip`` is in no such operator.
    """

    def __init__(self, program, op_types, make_observer, weight_bits=8, per_channel=True, skip=()):
        self.program = program
        self._block = program.desc.blocks[0]
        self.weight_bits, self.per_channel = weight_bits, per_channel
        self._targets = self._find(op_types, skip)
        if not self._targets:
            raise ModelError("the model has no weight of the op types "
                             f"{', '.join(sorted(op_types))} to quantize")
        self.observers = {name: make_observer() for name in
                          dict.fromkeys(source for _, source, _ in self._targets)}
        self._runner = _Runner(program, list(self.observers))

    @property
    def feeds(self):
        """Names of the program's inputs, in their order."""
        return self._runner.feeds

    def observe(self, arrays):
        """Run one batch: arrays in the order of :attr:`feeds`.

        Raises:
            NonFiniteError: NaN or infinity arrived somewhere; names the tensor.
        """
        for (name, observer), value in zip(self.observers.items(), self._runner.run(arrays)):
            if not np.isfinite(value).all():
                raise NonFiniteError(f"the tensor {name} has NaN or infinity")
            observer.observe(paddle.to_tensor(value))

    def finish(self):
        """Put quantize and dequantize operators and integer weights into the program.

        Returns:
            Names of the weights that are integers now.

        Raises:
            CalibrationError: there was no batch.
        """
        silent = [name for name, observer in self.observers.items() if not observer.seen]
        if silent:
            raise CalibrationError(f"no calibration batch reached {', '.join(silent)}")
        thresholds = {name: observer.threshold().numpy().astype(np.float32)
                      for name, observer in self.observers.items()}
        emit, ops, weights = Emitter(self.program), [], _Weights(self)
        targets = {position: (source, slot) for position, source, slot in self._targets}
        for position, op in enumerate(self._block.ops):
            if position in targets:
                source, slot = targets[position]
                target = emit.variable_like(self._block, source, f"{source}.dequantized")
                ops += emit.quantize_dequantize(self._block, source, target, thresholds[source],
                                                self.observers[source].spec.bits)
                _rename(op, slot, source, target)
                ops += weights.quantize(emit, op)
            ops.append(op)
        replace_ops(self._block, [*weights.front, *ops])
        self.program.remove_unused_parameters()
        return sorted(weights.names)

    def reader_of_weight(self, op):
        """(operator, its slot) that reads the parameter which is the weight of ``op``."""
        slot = WEIGHTED_OPS[op.type][0]
        while inputs(op, slot)[0] in self._reshaped:
            op, slot = self._reshaped[inputs(op, slot)[0]], "X"
        return op, slot

    def _find(self, op_types, skip):
        """(position, name of the data, its slot) of each operator to quantize."""
        # Conv1D's weight goes through these, which leave its first axes alone.
        self._reshaped = {outputs(op, "Out")[0]: op for op in self._block.ops
                          if op.type in ("unsqueeze2", "assign")}
        found, known = [], set()
        for position, op in enumerate(self._block.ops):
            if op.type not in op_types or op.type == "lookup_table_v2":
                continue
            holder, holder_slot = self.reader_of_weight(op)
            (weight,), slot = inputs(holder, holder_slot), _DATA_SLOT.get(op.type, "Input")
            array = self.program.arrays.get(weight)
            if array is None or array.dtype != np.float32 or array.ndim < 2:
                continue
            (source,) = inputs(op, slot)
            names = {weight, source, *(name for each in op.outputs for name in each.arguments)}
            known |= names
            if not names & set(skip):
                found.append((position, source, slot))
        for name in skip:
            if name not in known:
                raise ConfigError(f"skip_tensor_list has {name!r}, which is no weight, input or "
                                  "output of an operator that would be quantized; there are "
                                  f"{', '.join(sorted(known)[:12])}...")
        return found


class _Weights:
    """Puts the integers of weights in the place of their floats."""

    def __init__(self, quantizer):
        self.names, self.front = set(), []
        self._of = quantizer
        self._floats = {}  # weight that several operators read -> its value
        self._readers = Counter(name for block in quantizer.program.desc.blocks
                                for op in block.ops for slot in op.inputs
                                for name in slot.arguments)

    def quantize(self, emit, op):
        """Operators that make the weight of ``op``, to stand before it."""
        of = self._of
        reader, slot = of.reader_of_weight(op)
        (weight,) = inputs(reader, slot)
        if reader is not op and weight in self.names:
            return []  # two convolutions read what one unsqueeze gives
        array = self._floats.get(weight, of.program.arrays[weight])
        axis = WEIGHTED_OPS[op.type][1]
        axis = channel_axis(op, axis, array) if of.per_channel else None
        integers, threshold = quantize_array(array, of.weight_bits, axis)
        # A weight that is read twice is stored twice: see rewrite.store.
        if self._readers[weight] == 1:
            of.program.set_parameter(weight, integers)
            name = weight
        else:
            self._floats[weight] = array
            name = emit.parameter(f"{weight}.integers", integers)
        self.names.add(weight)
        scale = emit.parameter(f"{name}.scale", threshold)
        block = of.program.desc.blocks[0]
        target = emit.variable(block, f"{name}.dequantized", array.shape)
        _rename(reader, slot, weight, target)
        ops = emit.dequantize_weight(block, name, scale, target, of.weight_bits, axis)
        if reader is op:
            return ops
        self.front += ops
        return []


class _Runner:
    """Runs a program in Paddle Inference and returns values from inside of it."""

    def __init__(self, program, names):
        import paddle.inference as inference

        copy = Program(type(program.desc).FromString(program.desc.SerializeToString()),
                       dict(program.arrays))
        block = copy.desc.blocks[0]
        own = [op for op in block.ops if op.type == "fetch"]
        ops = [op for op in block.ops if op.type != "fetch"]
        # The names that are fetched come first: what the model returns does not matter here.
        fetches = [make_op("fetch", {"X": name}, {"Out": outputs(own[0], "Out")[0]}, col=number)
                   for number, name in enumerate(names)]
        replace_ops(block, [*ops, *fetches])
        self._names = names
        with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
            paths = [os.path.join(folder, name) for name in ("m.pdmodel", "m.pdiparams")]
            copy.save(*paths)
            config = inference.Config(*paths)
            config.disable_glog_info()
            config.switch_ir_optim(False)
            self._predictor = inference.create_predictor(config)
        feeds = {attribute(op, "col", 0): outputs(op, "Out")[0] for op in block.ops
                 if op.type == "feed"}
        self.feeds = [feeds[number] for number in sorted(feeds)]

    def run(self, arrays):
        for name, array in zip(self.feeds, arrays):
            self._predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(array))
        self._predictor.run()
        return [self._predictor.get_output_handle(name).copy_to_cpu()
                for name in self._predictor.get_output_names()]


def _rename(op, slot, old, new):
    for entry in op.inputs:
        if entry.parameter == slot:
            for i, name in enumerate(entry.arguments):
                if name == old:
                    entry.arguments[i] = new


