"""Lower markers to ``fake_*`` operators of a PIR program (``.json``), which Paddle 3 loads.

PIR has no integer path: its ``quantize_linear`` takes float weights only, ``paddle.jit.load``
computes it incorrectly and Paddle Inference removes it together with ``dequantize_linear``. So
weights are stored as floats after quantization, and activations are quantized by
``fake_quantize_dequantize_moving_average_abs_max``.
"""

import json

import numpy as np

from ..._atomic_write import write_bytes
from ...errors import ExportError
from ..formats import register_format
from ..markers import MarkerLowering, marker_number, simulated_weight
from ..paddle.lower import PdmodelFormat
from ..pir_to_program.pir_graph import read_pir
from ..program import pdiparams
from ..provenance_file import write_export

_FAKE = "1.fake_quantize_dequantize_moving_average_abs_max"


@register_format("pir")
class PirFormat(PdmodelFormat):
    """``path.json`` and ``path.pdiparams``, which Paddle 3 loads itself."""

    endings = (".json", ".pdiparams")
    targets = ()

    @staticmethod
    def read(model_path, params_path):
        return PirFiles(model_path, params_path)

    def lowering(self, program, marks):
        return _PirLowering(program, marks)

    def write(self, program, marks, path, provenance=None):
        self.lowering(program, marks).run()
        model_path, params_path = (path + ending for ending in self.endings)
        write_export(model_path, {
            params_path: lambda path: pdiparams.write(path, program.arrays, program.dtypes),
            model_path: write_bytes(json.dumps(program.content).encode()),
        }, provenance)


class PirFiles:
    """Editable PIR program that ``paddle.jit.save`` wrote, and its parameters."""

    def __init__(self, model_path, params_path):
        if not model_path.endswith(".json"):
            raise ExportError("format='pir' needs Paddle 3: earlier versions cannot write PIR")
        stored = read_pir(model_path).stored_parameters()
        self.dtypes = {name: value.dtype for name, value in stored.items()}
        self.arrays = {} if params_path is None else pdiparams.read(params_path, self.dtypes)
        with open(model_path, encoding="utf-8") as file:
            self.content = json.load(file)
        self.added = []  # operations of new parameters, for the front of the program
        (self.top,) = self.content["program"]["regions"][0]["blocks"]
        self.last = max(number for op in _operations(self.top) for number in _made(op))

    def value(self, tensor):
        self.last += 1
        return {"%": self.last, "TT": tensor}

    def parameter(self, name, array):
        """Add a parameter and return the number of its value."""
        while name in self.arrays:
            name += "_"
        self.arrays[name], self.dtypes[name] = array, array.dtype.name
        value = self.value(_tensor_type(list(array.shape)))
        self.added.append({"#": "p", "A": [0, 1, 1, name], "DA": [], "O": value,
                           "OA": [1, 1, 0], "QA": []})
        return value["%"]


class _PirLowering(MarkerLowering):
    float_suffix = ".simulated"

    def __init__(self, files, marks):
        super().__init__(marks, _operands, _made)
        self.files, self.constants, self.names, self.values = files, {}, {}, {}
        for op in _operations(files.top):
            if op["#"] == "1.full":
                self.constants[op["O"][0]["%"]] = _attribute(op, "value")
            elif op["#"] == "p":
                self.names[op["O"]["%"]] = op["A"][3]
            elif op["#"] == "1.scale":
                self.values[op["O"][0]["%"]] = op["O"][0]

    def quantize_dequantize(self, marker):
        mark, files = marker.mark, self.files
        scale = files.parameter(f"{mark.layer or 'model'}.scale_{marker.number}",
                                mark.abs_max.reshape([1]))
        outputs = [self.values[marker.target], *(files.value(_tensor_type([1])) for _ in range(3))]
        return [_op(_FAKE, [marker.source, scale, scale, scale], outputs, moving_rate=0.9,
                    bit_length=mark.spec.bits, is_test=True, round_type=0)]

    def sign(self, marker, size):
        target = self.values[marker.target]
        shape = target["TT"]["D"][1]
        zero, above, number, factor = map(self.files.value, (
            _tensor_type([1]), _tensor_type(shape, "t_bool"), _tensor_type(shape),
            _tensor_type([1])))
        return [
            _full(zero, 0.0),
            _op("1.greater_equal", [marker.source, zero["%"]], [above]),
            _op("1.cast", [above["%"]], [number], dtype=_FLOAT32),
            _full(factor, 2.0 * size),
            _op("1.scale", [number["%"], factor["%"]], [target], bias=-size,
                bias_after_scale=True),
        ]

    def integer_weight(self, marker):
        return self.float_weight(marker, simulated_weight(marker.mark))

    def blocks(self):
        return [(block["ops"], block["ops"]) for block in _blocks(self.files.top)]

    def rename_inputs(self, ops):
        for op in ops:
            for value in op.get("I", ()):
                value["%"] = self.renamed.get(value["%"], value["%"])

    def marker_of(self, op):
        if op["#"] != "1.scale":
            return None
        number = marker_number(self.constants.get(op["I"][1]["%"]), _attribute(op, "bias"))
        return None if number is None else (number, op["I"][0]["%"], op["O"][0]["%"])

    def parameter_name(self, source):
        return self.names.get(source)

    def add_parameter(self, name, array):
        return self.files.parameter(name, array)

    def set_parameter(self, source, array):
        self.files.arrays[self.names[source]] = array

    def run(self):
        super().run()
        self.files.top["ops"][:0] = self.files.added


def _blocks(block):
    yield block
    for op in block["ops"]:
        for region in op.get("regions", ()):
            for inner in region["blocks"]:
                yield from _blocks(inner)


def _operations(block):
    return (op for each in _blocks(block) for op in each["ops"])


def _operands(op):
    return [value["%"] for value in op.get("I", ())]


def _made(op):
    return [value["%"] for value in ([op["O"]] if op["#"] == "p" else op["O"])]


def _attribute(op, name):
    return next((each["AT"].get("D") for each in op["A"] if each["N"] == name), None)


def _typed(kind, value):
    return {"#": kind, "D": value}


_KINDS = {bool: "0.a_bool", int: "0.a_i32", float: "0.a_f32"}
_FLOAT32 = _typed("1.a_dtype", "float32")


def _tensor_type(shape, element="t_f32"):
    return {"#": "0.t_dtensor", "D": [{"#": f"0.{element}"}, shape, "NCHW", [], 0]}


def _op(name, operands, results, **attributes):
    """Create an operation; attributes are Python numbers or have a type already."""
    for key, value in attributes.items():
        if type(value) in _KINDS:
            attributes[key] = _typed(_KINDS[type(value)], value)
    stop = _typed("0.a_array", [_typed("0.a_bool", False) for _ in results])
    return {"#": name, "A": [{"N": key, "AT": value} for key, value in attributes.items()],
            "I": [{"%": number} for number in operands], "O": results,
            "OA": [{"N": "stop_gradient", "AT": stop}]}


def _full(result, number):
    return _op("1.full", [], [result], shape=_typed("1.a_intarray", [1]),
               value=_typed("0.a_f64", float(np.float32(number))), dtype=_FLOAT32,
               place=_typed("1.a_place", [1, 0, ""]))
