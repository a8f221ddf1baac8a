"""Post-training quantization of a saved program, for which no Python class is needed."""

import os
import tempfile
from collections import Counter
from typing import NamedTuple

import numpy as np
import paddle

from ..._checks import hint
from ...errors import CalibrationError, ConfigError, ModelError, NonFiniteError
from .op_builder import OpBuilder
from .op_desc import attribute, inputs, make_op, outputs, replace_ops
from .passes.stored_weights import WEIGHTED_OPS, channel_axis, quantize_array
from .program import Program

_DATA_SLOT = {"mul": "X", "matmul": "X", "matmul_v2": "X"}  # of the others: Input


class StaticQuantizer:
    """Quantizes inputs and weights of the weighted operators of a program.

    It is told batches with :meth:`update`; :meth:`finish` then puts the integers in.

    Args:
        program: a :class:`~paddleq.export.program.program.Program`. It is changed by :meth:`finish`.
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
        self._weight_bits, self._per_channel = weight_bits, per_channel
        self._targets = _targets(program, op_types, skip)
        if not self._targets:
            raise ModelError("the model has no weight of the op types "
                             f"{', '.join(sorted(op_types))} to quantize")
        self.observers = {name: make_observer() for name in
                          dict.fromkeys(target.source for target in self._targets)}
        self._runner = _Runner(program, list(self.observers))

    @property
    def feeds(self):
        """Names of the program's inputs, in their order."""
        return self._runner.feeds

    def update(self, arrays):
        """Run one batch: arrays in the order of :attr:`feeds`.

        Raises:
            NonFiniteError: NaN or infinity arrived somewhere; names the tensor.
        """
        for (name, observer), value in zip(self.observers.items(), self._runner.run(arrays)):
            if not np.isfinite(value).all():
                raise NonFiniteError(f"the tensor {name} has NaN or infinity")
            observer.update(paddle.to_tensor(value))

    def finish(self):
        """Put quantize and dequantize operators and integer weights into the program.

        Returns:
            Names of the weights that are integers now.

        Raises:
            CalibrationError: there was no batch.
        """
        self._insert(self.program, self._targets, self._thresholds())
        return sorted({target.weight for target in self._targets})

    def alone(self):
        """For each operator, a program in which nothing but it is quantized.

        Yields:
            (name of its weight, its type, program).

        Raises:
            CalibrationError: there was no batch.
        """
        thresholds = self._thresholds()
        for target in self._targets:
            program = copy_of(self.program)
            kind = program.desc.blocks[0].ops[target.position].type
            self._insert(program, [target], thresholds)
            yield target.weight, kind, program

    def _thresholds(self):
        silent = [name for name, observer in self.observers.items() if not observer.num_batches]
        if silent:
            raise CalibrationError(f"no calibration batch reached {', '.join(silent)}")
        return {name: observer.threshold().numpy().astype(np.float32)
                for name, observer in self.observers.items()}

    def _insert(self, program, targets, thresholds):
        block, emit, ops = program.desc.blocks[0], OpBuilder(program), []
        weights = _Weights(program, emit, self._weight_bits, self._per_channel)
        at = {target.position: target for target in targets}
        for position, op in enumerate(block.ops):
            if position in at:
                source, slot = at[position].source, at[position].slot
                result = emit.variable_like(block, source, f"{source}.dequantized")
                ops += emit.quantize_dequantize(block, source, result, thresholds[source],
                                                self.observers[source].spec.bits)
                _rename(op, slot, source, result)
                ops += weights.quantize(op)
            ops.append(op)
        replace_ops(block, [*weights.front, *ops])
        program.remove_unused_parameters()


class _Target(NamedTuple):
    """An operator to quantize."""

    position: int
    source: str  # name of the data
    slot: str  # where it goes in
    weight: str


def _targets(program, op_types, skip):
    block = program.desc.blocks[0]
    reshaped, found, known = _reshaped(block), [], set()
    for position, op in enumerate(block.ops):
        if op.type not in op_types or op.type == "lookup_table_v2":
            continue
        reader, weight_slot = _reader_of_weight(op, reshaped)
        (weight,), slot = inputs(reader, weight_slot), _DATA_SLOT.get(op.type, "Input")
        array = program.arrays.get(weight)
        if array is None or array.dtype != np.float32 or array.ndim < 2:
            continue
        (source,) = inputs(op, slot)
        names = {weight, source, *(name for each in op.outputs for name in each.arguments)}
        known |= names
        if not names & set(skip):
            found.append(_Target(position, source, slot, weight))
    for name in skip:
        if name not in known:
            raise ConfigError(f"skip_tensor_list has {name!r}{hint(name, known)}, which is no "
                              "weight, input or output of an operator that would be quantized")
    return found


def _reshaped(block):
    """What these operators give; Conv1D's weight goes through them, its first axes left alone."""
    return {outputs(op, "Out")[0]: op for op in block.ops if op.type in ("unsqueeze2", "assign")}


def _reader_of_weight(op, reshaped):
    """(operator, its slot) that reads the parameter which is the weight of ``op``."""
    slot = WEIGHTED_OPS[op.type][0]
    while inputs(op, slot)[0] in reshaped:
        op, slot = reshaped[inputs(op, slot)[0]], "X"
    return op, slot


class _Weights:
    """Puts the integers of weights in the place of their floats."""

    def __init__(self, program, emit, bits, per_channel):
        self.front = []  # operators for the beginning of the program
        self._program, self._emit, self._bits, self._per_channel = (
            program, emit, bits, per_channel)
        self._reshaped = _reshaped(program.desc.blocks[0])
        self._floats = {}  # weight that several operators read -> its value
        self._readers = Counter(name for block in program.desc.blocks for op in block.ops
                                for slot in op.inputs for name in slot.arguments)

    def quantize(self, op):
        """Operators that make the weight of ``op``, to stand before it."""
        program, emit = self._program, self._emit
        reader, slot = _reader_of_weight(op, self._reshaped)
        (weight,) = inputs(reader, slot)
        if weight not in program.arrays:
            return []  # what one unsqueeze gives is read by two convolutions
        array = self._floats.get(weight, program.arrays[weight])
        axis = WEIGHTED_OPS[op.type][1]
        axis = channel_axis(op, axis, array) if self._per_channel else None
        integers, threshold = quantize_array(array, self._bits, axis)
        # A weight that is read twice is stored twice: see rewrite.store.
        if self._readers[weight] == 1:
            program.set_parameter(weight, integers)
            name = weight
        else:
            self._floats[weight] = array
            name = emit.parameter(f"{weight}.integers", integers)
        scale = emit.parameter(f"{name}.scale", threshold)
        block = program.desc.blocks[0]
        target = emit.variable(block, f"{name}.dequantized", array.shape)
        _rename(reader, slot, weight, target)
        ops = emit.dequantize_weight(block, name, scale, target, self._bits, axis)
        if reader is op:
            return ops
        self.front += ops
        return []


def copy_of(program):
    """A copy whose operators can be changed; arrays are shared until they are replaced."""
    return Program(type(program.desc).FromString(program.desc.SerializeToString()),
                   dict(program.arrays))


def run_program(program, batches):
    """Yields the outputs of a program for each batch, a list of arrays in its inputs' order."""
    block = program.desc.blocks[0]
    fetches = sorted((attribute(op, "col", 0), inputs(op, "X")[0]) for op in block.ops
                     if op.type == "fetch")
    runner = _Runner(program, [name for _, name in fetches])
    for arrays in batches:
        yield runner.run(arrays)


class _Runner:
    """Runs a program in Paddle Inference and returns values from inside of it."""

    def __init__(self, program, names):
        import paddle.inference as inference

        copy = copy_of(program)
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
            copy.save(*paths, workarounds=False)
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


