"""Who makes and who reads each variable."""


class Links:
    """Of some operators, as they are when this is made.

    Attributes:
        makers: variable -> the operator that makes it.
        readers: variable -> list of the operators that read it, twice if one reads it twice.
    """

    def __init__(self, ops):
        self.makers, self.readers = {}, {}
        for op in ops:
            self.makers.update((name, op) for slot in op.outputs for name in slot.arguments)
            for slot in op.inputs:
                for name in slot.arguments:
                    self.readers.setdefault(name, []).append(op)


def replace(slots, parameter, name):
    """Put the variable ``name`` into a slot of ``op.inputs`` or ``op.outputs``."""
    for slot in slots:
        if slot.parameter == parameter:
            slot.arguments[0] = name
