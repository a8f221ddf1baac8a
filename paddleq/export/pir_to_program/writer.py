"""Writer of blocks, operators and variables of the converted program."""

from dataclasses import dataclass
from typing import List

from ..program.op_builder import OpBuilder
from ..program.op_desc import make_op
from ..program.program import Program
from .attributes import op


@dataclass
class Place:
    """Position of an operator that may be needed later."""

    block: object
    ops: List[object]


class Scope:
    """Block that is being written: its description and its operators so far."""

    def __init__(self, desc):
        self.desc = desc
        self.ops = []

    def placeholder(self):
        """Reserve the position of the next operator; operators may be added there later."""
        later = []
        self.ops.append(later)
        return Place(self, later)

    def finish(self):
        """Write the operators to the description."""
        for entry in self.ops:
            self.desc.ops.extend(entry if isinstance(entry, list) else [entry])


class Writer:
    """Add operators and variables to a program.

    Attributes:
        program: the :class:`~paddleq.export.program.program.Program` that is being written.
        builder: creates its variables.
        scope: the block that is being written.
        versions: operator -> version, for operators whose version a runtime checks.
    """

    def __init__(self, parameters):
        self.program = Program.empty()
        for name, (array, dtype) in parameters.items():
            self.program.add_parameter(name, array, dtype)
        self.builder = OpBuilder(self.program)
        self.scope = Scope(self.program.desc.blocks[0])
        self.versions = {}
        self._inputs = 0
        self._made = 0

    def open_block(self):
        """Open a block inside the current one."""
        return Scope(self.program.add_block(self.scope.desc))

    def next(self):
        """Return a number for the variables of the next operator."""
        self._made += 1
        return self._made - 1

    def temporary(self, kind, dtype, shape):
        """Add a variable that corresponds to no value of the PIR program."""
        return self.builder.variable(self.scope.desc, f"{kind}.{self.next()}", shape, dtype)

    def write(self, made):
        """Add an operator to the current block."""
        self.scope.ops.append(made)

    def cast(self, source, source_type, target, target_type):
        self.write(op("cast", {"X": [source]}, {"Out": [target]},
                      [("in_dtype", "dtype", source_type), ("out_dtype", "dtype", target_type)]))

    def add_input(self, name):
        """Add the feed of the next input of the model."""
        self.write(make_op("feed", {"X": "feed"}, {"Out": name}, col=self._inputs))
        self._inputs += 1

    def finish(self):
        """Complete the main block and return the program."""
        self.scope.finish()
        for name, version in sorted(self.versions.items()):
            pair = self.program.desc.op_version_map.pair.add()
            pair.op_name, pair.op_version.version = name, version
        return self.program
