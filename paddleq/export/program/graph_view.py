"""Use-def view of a ProgramDesc."""

from .op_desc import all_inputs, all_outputs, inputs


class GraphView:
    """Producers and consumers of the variables of some operators, as of its creation.

    An operator with sub-blocks (``while``, ``conditional_block``) lists the variables that
    its blocks read and assign among its inputs and outputs: the view of one block includes them.

    Args:
        ops: operators in order, usually ``block.ops``.

    Attributes:
        producers: variable -> the last operator that writes it.
        consumers: variable -> list of the operators that read it, with one entry for each use.
    """

    def __init__(self, ops):
        self.producers, self.consumers = {}, {}
        for op in ops:
            self.producers.update(dict.fromkeys(all_outputs(op), op))
            for name in all_inputs(op):
                self.consumers.setdefault(name, []).append(op)

    @classmethod
    def of_program(cls, program):
        """View of all blocks of a :class:`~.program.Program`."""
        return cls([op for block in program.desc.blocks for op in block.ops])

    def source(self, op, slot, kind=None):
        """The operator that writes the first variable of an input slot, None if there is none.

        Args:
            kind: return None for operators of another type. Default: any type.
        """
        names = inputs(op, slot)
        found = self.producers.get(names[0]) if names else None
        return found if found is not None and kind in (None, found.type) else None

    def sole_consumer(self, name):
        """The operator that reads ``name`` if it is read exactly once, else None."""
        consumers = self.consumers.get(name, ())
        return consumers[0] if len(consumers) == 1 else None

    def dependents(self, names):
        """The set of ``names`` and of all variables that depend on them."""
        found = set(names)
        left = list(found)
        while left:
            made = {name for op in self.consumers.get(left.pop(), ()) for name in all_outputs(op)}
            left.extend(made - found)
            found |= made
        return found
