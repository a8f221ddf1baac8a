"""Use-def view of a graph, and the names in it."""

from collections import Counter

from .op_desc import all_inputs, all_outputs, direct_inputs, inputs, outputs


class GraphView:
    """Producers and consumers of the variables of some operators, as of its creation.

    An operator with sub-blocks (``while``, ``conditional_block``) lists the variables that
    its blocks read and assign among its inputs and outputs: the view of one block includes them.

    Args:
        ops: operators in order.
        inputs_of, outputs_of: functions that return the variables of an operator.
        results: variables that the graph returns, as uses by the operator None.
    """

    def __init__(self, ops, inputs_of=all_inputs, outputs_of=all_outputs, results=()):
        self.producers = {}  # variable -> the last operator that writes it
        self.consumers = {}  # variable -> operators that read it, with one entry for each use
        self.rewritten = set()  # variables that several operators write
        for op in ops:
            made = dict.fromkeys(outputs_of(op), op)
            self.rewritten.update(made.keys() & self.producers.keys())
            self.producers.update(made)
            for name in inputs_of(op):
                self.consumers.setdefault(name, []).append(op)
        for name in results:
            self.consumers.setdefault(name, []).append(None)

    @classmethod
    def of_program(cls, program):
        """View of all blocks of a :class:`~.program.Program`."""
        return cls([op for block in program.desc.blocks for op in block.ops], direct_inputs)

    def source(self, op, slot, kind=None):
        """The operator, of type ``kind`` if given, that writes the first variable of a slot."""
        names = inputs(op, slot)
        found = self.producers.get(names[0]) if names else None
        return found if found is not None and kind in (None, found.type) else None

    def sole_consumer(self, name):
        """The operator that reads ``name`` if it is read exactly once, else None."""
        consumers = self.consumers.get(name, ())
        return consumers[0] if len(consumers) == 1 else None

    def readers_of_quantized(self, quantize):
        """The operators that read what ``dequantize_linear`` makes of the output of a quantizer."""
        dequantize = self.sole_consumer(outputs(quantize, "Y")[0])
        return [] if dequantize is None else [
            op for op in self.consumers.get(outputs(dequantize, "Y")[0], ()) if op is not None]


class Names(set):
    """Names in use in a graph."""

    def __init__(self, names):
        super().__init__(names)
        self._numbers = Counter()

    def fresh(self, name):
        """Reserve and return ``name``, with a number appended if it is in use."""
        unique = name
        while unique in self:
            self._numbers[name] += 1
            unique = f"{name}_{self._numbers[name]}"
        self.add(unique)
        return unique
