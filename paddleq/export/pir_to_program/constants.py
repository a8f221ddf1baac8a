"""Constants of a PIR program. In the legacy format most of them are attributes."""

import math
from dataclasses import dataclass

from .attributes import op
from .pir_graph import Value


@dataclass
class Constant:
    """Tensor that is known before the program runs.

    Attributes:
        value: :class:`~.pir_graph.Value` in the PIR program.
        shape: list of dimensions.
        numbers: one number for all elements, or one for each element.
        place: position of the operator that writes it, if one is needed.
        kind: type of the legacy operator that writes it: "fill_constant" (one number) or
            "assign_value" (a number for each element).
    """

    value: Value
    shape: list
    numbers: list
    place: object
    kind: str

    def op(self, name):
        """Create the legacy operator that writes it to the variable ``name``."""
        if self.kind == "assign_value":
            return assign_value(name, self.value.dtype, self.shape, self.numbers)
        return fill_constant(name, self.value.dtype, self.shape, self.numbers[0])


def fill_constant(name, dtype, shape, number, ins=None):
    """Create an operator that fills a tensor with one number."""
    text = _text(number, dtype)  # exact where a float32 is not
    number = float(number)
    if math.isfinite(number) and abs(number) > 3.4028234663852886e38:
        number = math.copysign(math.inf, number)
    return op("fill_constant", ins or {}, {"Out": name}, {
        "shape": ("longs", shape), "dtype": ("dtype", dtype), "value": ("float", number),
        "str_value": ("str", text), "force_cpu": ("bool", False), "place_type": ("int", -1)})


def _text(number, dtype):
    if not math.isfinite(number):
        return str(float(number))  # nan, inf, -inf
    if dtype == "bool":
        return str(int(bool(number)))
    return repr(float(number)) if dtype.startswith(("float", "bfloat")) else str(int(number))


_SLOTS = {"bool": ("bool_values", "ints", int), "float32": ("fp32_values", "floats", float),
          "float64": ("fp64_values", "float64s", float), "int32": ("int32_values", "ints", int),
          "int64": ("int64_values", "longs", int)}


def assign_value(name, dtype, shape, numbers):
    """Create an operator that writes a number for each element."""
    values = {slot: (kind, list(map(read, numbers)) if each == dtype else [])
              for each, (slot, kind, read) in _SLOTS.items()}
    return op("assign_value", {}, {"Out": name},
              {"shape": ("ints", shape), "dtype": ("dtype", dtype), **values})
