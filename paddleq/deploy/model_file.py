"""Files of a saved model."""

import contextlib
import functools
import os
from xml.etree import ElementTree

import numpy as np

from .._checks import check_path
from ..errors import FormatError
from ..export.onnx.float_graph import require_onnx
from ..export.pir_to_program import load_program
from ..export.program.op_desc import inputs, outputs
from ..export.provenance_file import PADDLE_MODELS, check_files, paddle_models
from ..saved_model.inputs import TensorInfo

_HIGHEST_OPSET = 1000  # versions of ONNX are far below
_PARAMETERS = {".pdmodel": ".pdiparams", ".json": ".pdiparams", ".xml": ".bin"}
_PREFIX = "the prefix of a saved model such as 'out/model'"


class ModelFile:
    """File of a model, with its parameters beside it; ``kind`` is its ending.

    ``.pdmodel`` and ``.json`` have a ``.pdiparams``, ``.xml`` has a ``.bin``.
    """

    def __init__(self, path, trusted=False):
        self.path, self.kind = path, os.path.splitext(path)[1]
        self._trusted = trusted  # written by this process, perhaps without shapes
        params = os.path.splitext(path)[0] + _PARAMETERS.get(self.kind, "")
        self.params = params if self.kind in _PARAMETERS and os.path.exists(params) else None

    @property
    def size(self):
        """Size of the files in bytes."""
        return sum(os.path.getsize(each) for each in (self.path, self.params) if each)

    def check(self):
        """Read the file, because runtimes may abort the process on a damaged one."""
        if not os.path.getsize(self.path):
            raise FormatError(f"{self.path} is empty")
        if self.kind in (".pdmodel", ".json"):
            return self.program
        check_files(self.path, self.params)
        if self.kind == ".xml":
            self._check_xml()
            return None
        with contextlib.suppress(ImportError):  # without the package, the runtime checks
            import onnx

            try:
                if not self._trusted:
                    self._check_opsets(onnx)
                    onnx.checker.check_model(self.path)
            except FormatError:
                raise
            except Exception as error:  # of several unrelated classes
                message = str(error).strip().splitlines() or [type(error).__name__]
                raise FormatError(f"{self.path} is damaged: {message[0]}") from error
        return None

    def _check_opsets(self, onnx):
        # Runtimes visit all versions up to it.
        model = onnx.load(self.path, load_external_data=False)
        for each in model.opset_import:
            if not 0 < each.version <= _HIGHEST_OPSET:
                raise FormatError(f"{self.path} is damaged: its opset is {each.version}")

    def _check_xml(self):
        """Raise FormatError unless the ``.bin`` holds all constants of an ``.xml``."""
        if self.params is None:
            raise FormatError(f"{self.path} is incomplete: there is no "
                              f"{os.path.splitext(self.path)[0]}.bin")
        size = os.path.getsize(self.params)
        for node in self._xml.iter("data"):
            offset, length = node.get("offset"), node.get("size")
            if offset and length and not (offset.isdigit() and length.isdigit()
                                          and int(offset) + int(length) <= size):
                raise FormatError(f"{self.path} is damaged: a constant of {length} bytes at "
                                  f"{offset} is not in {self.params}, which has {size} bytes")

    def _xml_input(self, layer):
        data, names = layer.find("data"), [port.get("names") or layer.get("name", "")
                                           for port in layer.iter("port")]
        name = min(names[0].split(","), key=len) if names else layer.get("name", "")
        found = {} if data is None else data.attrib
        if found.get("element_type") not in _XML_TYPES or "shape" not in found:
            raise FormatError(f"{self.path} is damaged: its input {name!r} must have a shape and "
                              f"an element_type of {', '.join(_XML_TYPES)}, but has "
                              f"{found.get('shape')!r} and {found.get('element_type')!r}")
        sizes = [size for size in found["shape"].split(",") if size]
        dims = tuple(int(size) if size.isdigit() else None for size in sizes)
        return TensorInfo(name, _XML_TYPES[found["element_type"]], dims)

    @functools.cached_property
    def _xml(self):
        try:
            root = ElementTree.parse(self.path).getroot()
        except ElementTree.ParseError as error:
            raise FormatError(f"{self.path} is damaged: {error}") from error
        if root.tag != "net":
            raise FormatError(f"{self.path} is no model of OpenVINO: its element is {root.tag!r}, "
                              "not 'net'")
        return root

    @functools.cached_property
    def program(self):
        """The :class:`~paddleq.export.program.program.Program` of a Paddle file."""
        return load_program(self.path, self.params)

    def onnx_model(self):
        """Read the ``onnx.ModelProto`` of an ``.onnx``."""
        return require_onnx().load(self.path)

    @functools.cached_property
    def quantized(self):
        """True if a Paddle file has quantized operators."""
        return any(op.type == "quantize_linear" or op.type.startswith("fake_quantize")
                   for block in self.program.desc.blocks for op in block.ops)

    @functools.cached_property
    def inputs(self):
        """List of the :class:`TensorInfo` of the inputs."""
        if self.kind == ".onnx":
            return [_onnx_input(value) for value in self.onnx_model().graph.input]
        if self.kind == ".xml":
            return [self._xml_input(layer) for layer in self._xml.iter("layer")
                    if layer.get("type") == "Parameter"]
        variables = [self.program.variable(outputs(op, "Out")[0])
                     for op in self.program.desc.blocks[0].ops if op.type == "feed"]
        return [TensorInfo.of_variable(var) for var in variables]

    @functools.cached_property
    def outputs(self):
        """Names of the outputs of a Paddle file."""
        return [inputs(op, "X")[0] for op in self.program.desc.blocks[0].ops
                if op.type == "fetch"]

    def __str__(self):
        return self.path


def _onnx_input(value):
    import onnx

    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorInfo(value.name, np.dtype(dtype).name, tuple(dims))


_XML_TYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "boolean": "bool",
              **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("i", "int"), ("u", "uint"))
                 for bits in (8, 16, 32, 64)}}


def pdmodel_prefix(name, path):
    """Return the prefix of the files of a ``.pdmodel``, given that or the file."""
    path = check_path(name, path, _PREFIX)
    return path[:-len(".pdmodel")] if path.endswith(".pdmodel") else path


def model_files(path, name="path"):
    """Return the files of the model at ``path``: one of them, or their common prefix.

    Raises FormatError if there is none, or a ``.pdmodel`` and a ``.json`` of which one is outdated.
    """
    from .runtimes import RUNTIMES  # it imports this module

    path = check_path(name, path, _PREFIX)
    endings = list(dict.fromkeys(kind for runtime in RUNTIMES.values() for kind in runtime.kinds))
    if os.path.splitext(path)[1] in endings:
        if not os.path.isfile(path):
            raise FormatError(f"there is no file {path}")
        return [ModelFile(path)]
    current = paddle_models(path)
    found = [ModelFile(path + each) for each in endings if (
        path + each in current if each in PADDLE_MODELS else os.path.isfile(path + each))]
    if not found:
        raise FormatError(f"there is no model at {path}: none of "
                          f"{', '.join(path + each for each in endings)} exists")
    return found


def most_readable(files):
    """Return the file that can be read with the fewest packages: Paddle's own if there is one."""
    order = [".pdmodel", ".json", ".xml", ".onnx"]
    return min(files, key=lambda file: (order + [file.kind]).index(file.kind))
