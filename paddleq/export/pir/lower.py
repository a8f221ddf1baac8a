"""``format="pir"``: the simulated model as the PIR program that Paddle 3 itself loads.

The same markers as in the other format are replaced, in the JSON this time. PIR has no integer
path: its ``quantize_linear`` takes float weights only, ``paddle.jit.load`` computes it wrongly and
Paddle Inference drops the pair. So weights are stored as the floats that quantization leaves, and
activations go through ``fake_quantize_dequantize_moving_average_abs_max``.
"""

import json

import numpy as np

from ..._atomic_write import write_bytes
from ..._paddle_compat import framework_proto
from ...errors import ExportError
from ...nn.tracing import MARKER_FACTOR
from ..paddle.lower import ActivationMark, mark_of, simulated_weight
from ..pir_to_program.pir_graph import PirProgram
from ..program import pdiparams as params
from ..provenance_file import write_export

_FAKE = "1.fake_quantize_dequantize_moving_average_abs_max"


class PirFiles:
    """A PIR program as Paddle saved it, to be edited.

    Attributes:
        content: the parsed JSON.
        arrays: parameter name -> numpy array.
    """

    def __init__(self, content, arrays, dtypes):
        self.content, self.arrays, self.dtypes = content, arrays, dtypes
        self.added = []  # parameters for the front of the program
        (self.top,) = content["program"]["regions"][0]["blocks"]
        self.last = max(value["%"] for op in _operations(self.top) for value in _results(op))

    @classmethod
    def load(cls, model_path, params_path):
        """Read what ``paddle.jit.save`` wrote.

        Raises:
            ExportError: it is no PIR program, because this Paddle cannot write any.
            FormatError: a file is damaged.
        """
        if not model_path.endswith(".json"):
            raise ExportError("format='pir' needs Paddle 3: earlier versions cannot write PIR")
        dtypes = PirProgram.load(model_path).stored_parameters()
        arrays = {}
        if params_path is not None:
            arrays = params.read(params_path, {name: value.dtype for name, value
                                               in dtypes.items()}, framework_proto())
        with open(model_path, encoding="utf-8") as file:
            content = json.load(file)
        return cls(content, arrays, {name: value.dtype for name, value in dtypes.items()})

    def save(self, model_path, params_path, record=None):
        """Write both files; see :func:`..provenance_file.write_export`."""
        proto = framework_proto()
        write_export(model_path, {
            params_path: lambda path: params.write(path, self.arrays, self.dtypes, proto),
            model_path: write_bytes(json.dumps(self.content).encode()),
        }, record)

    def value(self, tensor):
        """A new value of the type of ``tensor``."""
        self.last += 1
        return {"%": self.last, "TT": tensor}

    def parameter(self, name, array):
        """Add a parameter; returns the number of its value."""
        while name in self.arrays:
            name += "_"
        self.arrays[name], self.dtypes[name] = array, array.dtype.name
        value = self.value(_tensor_type(list(array.shape)))
        self.added.append({"#": "p", "A": [0, 1, 1, name], "DA": [], "O": value,
                           "OA": [1, 1, 0], "QA": []})
        return value["%"]


def rewrite_pir(files, marks):
    """Replace the markers of ``files`` by what ``marks`` says they stand for, in place."""
    _Rewriter(files, marks).run()


class _Rewriter:
    def __init__(self, files, marks):
        self.files, self.marks = files, marks
        self.constants, self.names, float_uses = {}, {}, set()
        for op in _operations(files.top):
            if op["#"] == "1.full":
                self.constants[op["O"][0]["%"]] = _attribute(op, "value")
            if op["#"] == "p":
                self.names[op["O"]["%"]] = op["A"][3]
        for op in _operations(files.top):
            if self.number(op) is None:
                float_uses.update(value["%"] for value in op.get("I", ()))
        self.taken = float_uses  # parameters whose value something else needs as it is
        self.renamed = {}
        self.placeholders = set()  # constants in the places of weights that are integers

    def number(self, op):
        """The number of a marker, None for any other operation."""
        if op["#"] != "1.scale" or self.constants.get(op["I"][1]["%"]) != MARKER_FACTOR:
            return None
        return mark_of(_attribute(op, "bias"))

    def run(self):
        for block in list(_blocks(self.files.top)):
            block["ops"] = [new for op in block["ops"] for new in self.replace(op)]
        for block in _blocks(self.files.top):
            block["ops"] = [op for op in block["ops"] if not self.makes_placeholder(op)]
        self.files.top["ops"][:0] = self.files.added
        for op in _operations(self.files.top):
            for value in op.get("I", ()):
                value["%"] = self.renamed.get(value["%"], value["%"])

    def makes_placeholder(self, op):
        return any(value["%"] in self.placeholders for value in _results(op))

    def replace(self, op):
        number = self.number(op)
        if number is None:
            return [op]
        mark, source, target = self.marks[number - 1], op["I"][0]["%"], op["O"][0]
        if not isinstance(mark, ActivationMark):
            self.weight(mark, source, target["%"])
            return []
        name = f"{mark.layer or 'model'}.scale_{number}"
        if mark.spec.binary:
            return self.sign(source, target, float(mark.threshold[0]))
        scale = self.files.parameter(name, mark.threshold.reshape([1]))
        outputs = [target, *(self.files.value(_tensor_type([1])) for _ in range(3))]
        return [_op(_FAKE, [source, scale, scale, scale], outputs,
                    moving_rate=_typed("0.a_f32", 0.9), bit_length=_typed("0.a_i32",
                                                                          mark.spec.bits),
                    is_test=_typed("0.a_bool", True), round_type=_typed("0.a_i32", 0))]

    def weight(self, mark, source, target):
        value = simulated_weight(mark)
        if source not in self.names:
            self.placeholders.add(source)
            self.renamed[target] = self.files.parameter(f"{mark.layer}.weight", value)
            return
        if source in self.taken:
            self.renamed[target] = self.files.parameter(f"{self.names[source]}.simulated", value)
            return
        self.taken.add(source)
        self.files.arrays[self.names[source]] = value
        self.renamed[target] = source

    def sign(self, source, target, size):
        """-size below 0, +size from 0 on."""
        shape = target["TT"]["D"][1]
        zero, above, number, factor = (
            self.files.value(_tensor_type(*each)) for each in
            (([1],), (shape, "t_bool"), (shape,), ([1],)))
        return [
            _full(zero, 0.0),
            _op("1.greater_equal", [source, zero["%"]], [above]),
            _op("1.cast", [above["%"]], [number], dtype=_typed("1.a_dtype", "float32")),
            _full(factor, 2.0 * size),
            _op("1.scale", [number["%"], factor["%"]], [target], bias=_typed("0.a_f32", -size),
                bias_after_scale=_typed("0.a_bool", True)),
        ]


def _blocks(block):
    yield block
    for op in block["ops"]:
        for region in op.get("regions", ()):
            for inner in region["blocks"]:
                yield from _blocks(inner)


def _operations(block):
    return (op for each in _blocks(block) for op in each["ops"])


def _results(op):
    return [op["O"]] if op["#"] == "p" else op["O"]


def _attribute(op, name):
    return next((each["AT"].get("D") for each in op["A"] if each["N"] == name), None)


def _typed(kind, value):
    return {"#": kind, "D": value}


def _tensor_type(shape, element="t_f32"):
    return {"#": "0.t_dtensor", "D": [{"#": f"0.{element}"}, shape, "NCHW", [], 0]}


def _op(name, operands, results, **attributes):
    stop = _typed("0.a_array", [_typed("0.a_bool", False) for _ in results])
    return {"#": name, "A": [{"N": key, "AT": value} for key, value in attributes.items()],
            "I": [{"%": number} for number in operands], "O": results,
            "OA": [{"N": "stop_gradient", "AT": stop}]}


def _full(result, number):
    return _op("1.full", [], [result], shape=_typed("1.a_intarray", [1]),
               value=_typed("0.a_f64", float(np.float32(number))),
               dtype=_typed("1.a_dtype", "float32"), place=_typed("1.a_place", [1, 0, ""]))
