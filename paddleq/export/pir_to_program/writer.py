"""Blocks that are being written, and what is put into them."""

from dataclasses import dataclass
from typing import List

from ..program.op_builder import OpBuilder
from ..program.op_desc import make_op
from ..program.program import Program
from .attributes import op


@dataclass
class Place:
    """Where an operator goes that may or may not be needed later on."""

    block: object
    ops: List[object]


class Scope:
    """A block that is being written: its description, and its operators so far."""

    def __init__(self, desc):
        self.desc = desc
        self.ops = []

    def placeholder(self):
        """A list in the place of the next operator; what it will hold, comes here."""
        later = []
        self.ops.append(later)
        return Place(self, later)

    def finish(self):
        """Move the operators into the description."""
        for entry in self.ops:
            self.desc.ops.extend(entry if isinstance(entry, list) else [entry])


class Writer:
    """Adds operators and variables to a program.

    Attributes:
        program: the :class:`~paddleq.export.program.program.Program` that is being written.
        emit: makes its variables.
        scope: the block that is being written.
        versions: operator -> its version, where a runtime must know.
    """

    def __init__(self, parameters):
        self.program = Program.empty()
        for name, (array, dtype) in parameters.items():
            self.program.add_parameter(name, array, dtype)
        self.emit = OpBuilder(self.program)
        self.scope = Scope(self.program.desc.blocks[0])
        self.versions = {}
        self._inputs = 0
        self._made = 0

    def open_block(self):
        """A block inside of the one that is being written."""
        return Scope(self.program.add_block(self.scope.desc))

    def next(self):
        """A number for the next operator's variables."""
        self._made += 1
        return self._made - 1

    def temporary(self, kind, dtype, shape):
        """A new variable that no value of the PIR program stands for."""
        return self.emit.variable(self.scope.desc, f"{kind}.{self.next()}", shape, dtype)

    def write(self, made):
        """Add an operator to the block that is being written."""
        self.scope.ops.append(made)

    def cast(self, source, source_type, target, target_type):
        """Add the operator that changes an element type."""
        self.write(op("cast", {"X": [source]}, {"Out": [target]},
                      [("in_dtype", "dtype", source_type), ("out_dtype", "dtype", target_type)]))

    def add_input(self, name):
        """Add the operator that takes the next input of the model."""
        self.write(make_op("feed", {"X": "feed"}, {"Out": name}, col=self._inputs))
        self._inputs += 1

    def finish(self):
        """The program, when its outermost block is complete."""
        self.scope.finish()
        for name, version in sorted(self.versions.items()):
            pair = self.program.desc.op_version_map.pair.add()
            pair.op_name, pair.op_version.version = name, version
        return self.program
