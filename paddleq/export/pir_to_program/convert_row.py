"""Conversion of an operation by its row of the operator table."""

from ...errors import FormatError
from . import attributes

# Attributes that Paddle adds to any operation and no runtime reads.
IGNORED = {"struct_name", "op_callstack", "place", "op_role", "op_dist_attr", "op_namescope",
           "chunk_id", "symbol", "stop_gradient", "persistable", "origin_id", "comp_op_name"}
_IN_INT32 = {"OutSize", "SizeTensor"}  # tensors that Paddle 2.6 reads as int32


def write_by_row(converter, operation, row, in_place=False):
    given = dict(operation.attributes)
    operands = _Operands(converter, operation, row, given)
    values = {**operands.attributes, **attributes.of_row(row, operation, given)}
    if row.pir in attributes.HOOKS:
        attributes.HOOKS[row.pir](converter, operation, values)
    left = set(given) - IGNORED
    if left:
        raise operation.unsupported("has attributes that its row does not know: "
                                     f"{', '.join(sorted(left))}")
    outs = _outputs(converter, operation, row, in_place, operands.by_name)
    converter.write(row.legacy, operands.inputs, outs, values)


class _Operands:
    """Operands of an operation as inputs and attributes of the legacy operator."""

    def __init__(self, converter, operation, row, given):
        self._converter, self._operation = converter, operation
        self.inputs = {}  # slot of the legacy operator -> variables
        self.attributes = {}  # operands that become attributes, name -> (type, value)
        self.by_name = {}  # name of an operand in the row -> value
        left = list(operation.operands)
        for slot in row.inputs:
            if slot.pir in given:  # an attribute in this version of Paddle, an operand in others
                self.attributes[slot.legacy] = slot.type, attributes.plain(given.pop(slot.pir))
                continue
            if not left:
                if slot.optional:
                    continue
                raise FormatError(f"the operand {slot.pir!r} is missing")
            self._operand(slot, left.pop(0))
        if any(left):
            raise FormatError(f"has {len(operation.operands)} operands, more than its row knows")

    def _operand(self, slot, number):
        converter = self._converter
        self.by_name[slot.pir] = number
        if slot.legacy == "-" or number == 0 and slot.optional:
            return
        if number == 0:
            raise FormatError(f"the operand {slot.pir!r} is empty")
        if slot.legacy in _IN_INT32:
            self.inputs[slot.legacy] = [converter.counted(each, "ints")
                                        for each in converter.lists.get(number) or [number]]
        elif slot.type is not None:
            self._number(slot, number)
        elif slot.many:
            self.inputs[slot.legacy] = converter.names_of(number)
        else:
            self.inputs[slot.legacy] = [converter.name_of(number)]

    def _number(self, slot, number):
        """Convert an operand that is an attribute of the legacy operator if it is constant."""
        converter = self._converter
        numbers = converter.numbers(number)
        if numbers is not None and not (slot.type == "float" and slot.tensor
                                        and converter.is_rounded(number)):
            self.attributes[slot.legacy] = slot.type, numbers
            return
        known, parts = converter.known(number), converter.parts(number)
        if slot.tensors and parts:
            self.inputs[slot.tensors] = [converter.part(each, slot.type) for each in parts]
            self.attributes[slot.legacy] = slot.type, known
        elif slot.tensor and number not in converter.lists:
            self.inputs[slot.tensor] = [converter.counted(number, slot.type)]
            if slot.type in ("ints", "longs"):  # longs would take precedence over the tensor
                self.attributes[slot.legacy] = slot.type, known if slot.type == "ints" else []
        elif slot.tensors and known:
            self.inputs[slot.tensors] = converter.apart(number,
                                                        converter.counted(number, slot.type))
            self.attributes[slot.legacy] = slot.type, known
        else:
            raise self._operation.unsupported(f"has a computed {slot.pir!r}, which the legacy "
                                               "operator only takes as a number")


def _outputs(converter, operation, row, in_place, operands):
    outs, label = {}, f"{row.legacy}_{converter.next()}.tmp"
    results = list(operation.results)
    for i, slot in enumerate(row.outputs):
        if not slot.pir:
            # XShape, the shape of the input, which nothing reads in inference
            source = converter.types[operation.operands[0]]
            outs[slot.legacy] = [converter.builder.variable(
                converter.scope.desc, f"{label}_{i}", [0, *(source.shape or [])], source.dtype)]
            continue
        if not results:
            continue  # older versions had fewer, or this one is not written
        value = results.pop(0)
        if value.number == 0 or slot.legacy == "-":
            continue
        alias = slot.alias
        if in_place and i == 0 and converter.read_later(operation.operands[0]):
            alias = row.inputs[0].pir
        if alias is not None:
            converter.overwrite(operation, value, operands[alias])
            outs[slot.legacy] = [converter.names[value.number]]
        elif slot.many:
            outs[slot.legacy] = converter.define_list(value, f"{label}_{i}")
        elif value.dtype is None:
            raise FormatError(f"the result {slot.pir!r} is a list")
        else:
            outs[slot.legacy] = [converter.define(value, f"{label}_{i}")]
    return outs
