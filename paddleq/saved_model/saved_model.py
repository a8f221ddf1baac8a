"""A saved model as a ``paddle.nn.Layer``."""

import os
from contextlib import contextmanager
from itertools import chain
from typing import Any, Container, Dict, Iterable, Iterator, List, Sequence, Tuple, Union

import numpy as np
import paddle
from paddle import nn

from .._checks import check_path, check_prefix
from .._paddle_compat import (
    framework_proto,
    operator_descriptions,
    own_buffers,
    own_parameters,
    own_sublayers,
)
from ..engine.state import quantized_layers
from ..errors import ModelError
from ..export.pir_to_program import load_program
from ..export.program.op_desc import dtype_of
from ..export.program.program import Program
from ..export.program.validate import contradictions_reported
from ..export.provenance_file import Provenance
from .control_flow import CONTROL_FLOW
from .files import locate
from .fold_affines import AffineFolding, fold_affines
from .functions import FUNCTIONS
from .inputs import TensorInfo, check_inputs
from .layers import plan_layers, transposed_to
from .lower import build_program
from .operator_layers import operator_layer
from .operators import Operator, logits_of, read_operators
from .run_operators import INTERFACE, OperatorRun, Values, last_uses
from .stages import Stage, find_stages
from .without_gradient import program_of_operator


class SavedModel(OperatorRun):
    """A model that ``paddle.jit.save`` or an older Paddle wrote, as a layer that can be trained.

    The operators of the program run in dynamic mode. Operators with weights are sublayers:
    ``Conv2D``, ``Conv2DTranspose``, ``Linear``, ``Embedding``, ``BatchNorm2D``, ``LayerNorm`` and
    their like, named after their weights (``conv2d_0`` has the weight ``conv2d_0.w_0``).
    Quantization, sensitivity analysis and export treat the model as any other layer. Exports write
    into the program that was read: names, order of operators and control flow are kept.

    In training mode, batch norms use the statistics of the batch. Dropout that the saved program
    has for inference stays inactive. Gradients through operators without a public differentiable
    function raise an error that names the operator.

    Args:
        path: prefix of the files (``dir/model``), path of the ``.pdmodel`` or ``.json``, or a
            folder with one model.
        params_path: file or folder of the parameters. Default: found beside the model.

    Attributes:
        input_names, output_names: names of the model's inputs and outputs, in order.
        input_spec: one ``paddle.static.InputSpec`` for each input.
        bindings: name of each sublayer -> its place in the program.
        parameter_places: name of each parameter in the program -> (sublayer or "", attribute).
        operator_layers: block and position of each operator without weights that is a sublayer ->
            name of the sublayer; see :meth:`add_operator_layers`.

    Raises:
        FormatError: a file is missing or damaged.
        ModelError: the installed Paddle cannot run an operator; names it.

    Examples:
        >>> import tempfile
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4), paddle.nn.ReLU())
        >>> prefix = tempfile.mkdtemp() + "/net"
        >>> paddle.jit.save(net, prefix, [paddle.static.InputSpec([None, 8], "float32", "x")])
        >>> model = paddleq.SavedModel(prefix)
        >>> x = paddle.rand([2, 8])
        >>> bool((model(x) == net(x)).all())
        True
        >>> [type(layer).__name__ for layer in model.sublayers()]
        ['Linear']
    """

    input_names: List[str]
    output_names: List[str]

    def __init__(self, path: Union[str, os.PathLike],
                 params_path: Union[str, os.PathLike, None] = None):
        super().__init__()
        model_path, found = locate(path)
        if params_path is not None:
            found = check_path("params_path", params_path, "a file or folder of parameters")
        self._read(load_program(model_path, found))

    @classmethod
    def from_program(cls, program: Program) -> "SavedModel":
        """Return the model of a program in memory, which is not changed."""
        model = cls.__new__(cls)
        nn.Layer.__init__(model)
        model._read(program)
        return model

    @contradictions_reported("the saved model")
    def _read(self, program):
        desc = program.desc
        self._description, self._constants = desc.SerializeToString(), set(program.constants)
        self._operators = [read_operators(block) for block in desc.blocks]
        functions = {*FUNCTIONS, *operator_descriptions()} - {*INTERFACE, *CONTROL_FLOW}
        for op in chain.from_iterable(self._operators):
            if op.type in functions:
                op.alone = program_of_operator(op, desc)
            elif op.type not in INTERFACE and op.type not in CONTROL_FLOW:
                raise ModelError(f"the saved model has the operator {op.type}, which Paddle "
                                 f"{paddle.__version__} does not have")
        self._local = [[var.name for var in block.vars if not var.persistable]
                       for block in desc.blocks]
        main = self._operators[0]
        self.input_names = [name for _, name in sorted(
            (op.get("col", 0), op.outputs["Out"][0]) for op in main if op.type == "feed")]
        self.output_names = [name for _, name in sorted(
            (op.get("col", 0), op.inputs["X"][0]) for op in main if op.type == "fetch")]
        variables = program.variables()
        self._inputs = [TensorInfo.of_variable(variables[name]) for name in self.input_names]
        self.bindings = plan_layers(program, self._operators)
        self.operator_layers = {}
        self._merged = {(binding.operator.block, position)
                          for binding in self.bindings.values() for position in binding.merged}
        self.parameter_places = {}
        self._shapes = {
            name: (list(array.shape), dtype_of(variables[name]))
            for name, array in program.arrays.items() if name in variables}
        self._read_names = {name for op in chain.from_iterable(self._operators)
                            for name in op.all_inputs()}
        self._add_layers(program)
        self._add_other_parameters(program)
        self._last_uses = last_uses(self._operators, set(self.output_names))
        self.eval()

    @property
    def input_spec(self) -> list:
        """One ``paddle.static.InputSpec`` for each input."""
        return [paddle.static.InputSpec(list(info.shape or ()), info.dtype, info.name)
                for info in self._inputs]

    @property
    def tensor_names(self) -> List[str]:
        """Names of the inputs and of the tensors that the main block of the program computes.

        The product of an operator whose bias is added by the next one is not among them.
        """
        names = dict.fromkeys(self.input_names)
        for position, op in enumerate(self._operators[0]):
            if op.type not in INTERFACE and (0, position) not in self._merged:
                names.update(dict.fromkeys(self._results(op)))
        return list(names)

    @property
    def logits_names(self) -> Dict[str, str]:
        """Name of each output of a softmax along the last axis -> name of the softmax's input."""
        found = {name: logits_of(self._operators[0], name) for name in self.output_names}
        known = set(self.tensor_names)
        return {name: logits for name, logits in found.items()
                if logits is not None and logits in known}

    @property
    def operators(self) -> List[Operator]:
        """Operators of the main block."""
        return self._operators[0]

    def is_merged(self, op: Operator) -> bool:
        """Return True if the layer of another operator computes ``op``."""
        return op.place in self._merged

    def add_operator_layers(self, operators: Iterable[Operator]) -> Dict[Tuple[int, int], str]:
        """Make operators without weights sublayers, named after their outputs.

        Returns:
            :attr:`operator_layers`, with those that there were before.
        """
        found = dict(self.operator_layers)  # not in place, so that errors roll it back
        for op in operators:
            if op.place in found:
                continue
            name = op.all_outputs()[0].replace(".", "_").replace("@", "_")
            while hasattr(self, name):
                name += "_"
            layer = operator_layer(op)
            layer.training = self.training
            self.add_sublayer(name, layer)
            found[op.place] = name
        self.operator_layers = found
        return found

    @contextmanager
    def recording(self, names: Sequence[str]) -> Iterator[Dict[str, Any]]:
        """Keep tensors of forward passes while open.

        Args:
            names: of :attr:`tensor_names`.

        Yields:
            A dict, name -> value in the last forward pass.
        """
        found: Dict[str, Any] = {}
        outside, self._recorded = self._recorded, (frozenset(names), found)
        try:
            yield found
        finally:
            self._recorded = outside

    @property
    def weight_names(self) -> Dict[str, str]:
        """Name of each sublayer -> name of its weight in the program."""
        return {name: binding.weight for name, binding in self.bindings.items()}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the program.

        Args:
            inputs: tensors or arrays in the order of :attr:`input_names`, or one dict by name.
            named: the inputs by name, where their names are Python identifiers.

        Returns:
            The output, or a list of outputs if there are several.

        Raises:
            ConfigError: number, names or shapes of the inputs are wrong.
            ConfigTypeError: an input has another element type than the model's.
        """
        if not paddle.in_dynamic_mode():
            raise ModelError("a SavedModel runs in dynamic mode only; export it with "
                             "paddleq.save_quantized_model or SavedModel.save")
        values = self.begin(*inputs, **named)
        self._record(self.input_names, values)
        self._run_block(0, values)
        outputs = [values[name] for name in self.output_names]
        return outputs[0] if len(outputs) == 1 else outputs

    def begin(self, *inputs: Any, **named: Any) -> Dict[str, Any]:
        """Return the variables of a run with these inputs, before the first operator."""
        if len(inputs) == 1 and isinstance(inputs[0], (dict, list, tuple)):
            (inputs,) = inputs
        return Values(self, zip(self.input_names, check_inputs(inputs or named, self._inputs,
                                                                _as_tensor)))

    def run_stage(self, stage: Stage, values: Dict[str, Any]) -> Dict[str, Any]:
        """Return the variables behind a :class:`~.stages.Stage`, of those before it."""
        found = Values(self, values)
        self._run_range(0, stage.start, stage.stop, found)
        return found

    def stages(self, values: Dict[str, Any], counted: Container[str], least: int) -> List[Stage]:
        """Divide the operators into stages; see :func:`~.stages.find_stages`.

        Args:
            values: variables of :meth:`begin`.
            counted: names of layers, of which a stage has at least ``least``.
        """
        return find_stages(self, self._operators[0], Values(self, values), counted, least)

    def fold_affines(self) -> AffineFolding:
        """Fold multiplications and additions of constants into weighted operators, in place.

        ``elementwise_mul``, ``_div``, ``_add``, ``_sub``, ``scale`` and ``affine_channel`` with
        constants, one or one for each channel, become part of the weight and bias of the operator
        before them, also across reshapes, poolings and concatenations where that is exact, or else
        of the operators after them. Before a padded convolution an addition stays. The model
        computes the same up to rounding. ``quant_post_static`` and ``PTQ.quantize(fuse=True)`` do
        this first. Parameters and layers that remain stay the same objects.

        Returns:
            What was folded into which weights, and the reason for each chain that stays.

        Raises:
            ModelError: the model is quantized.

        Examples:
            >>> import tempfile
            >>> import paddle, paddleq
            >>> class Net(paddle.nn.Layer):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.fc = paddle.nn.Linear(8, 4)
            ...     def forward(self, x):
            ...         return self.fc(x) * 2.0 + 1.0
            >>> prefix = tempfile.mkdtemp() + "/net"
            >>> spec = paddle.static.InputSpec([None, 8], "float32", "x")
            >>> paddle.jit.save(Net(), prefix, [spec])
            >>> model = paddleq.SavedModel(prefix)
            >>> [weights] = model.fold_affines().folded.values()
            >>> weights == list(model.weight_names.values())
            True
        """
        if quantized_layers(self):
            raise ModelError("fold_affines must be called before the model is quantized: its "
                             "layers are quantized already")
        program, training = self.to_program(), self.training
        program.constants = self._constants
        result = fold_affines(program)
        if result.folded:
            containers = (own_sublayers(self), own_parameters(self), own_buffers(self))
            before = [dict(each) for each in containers]
            for container in containers:
                container.clear()
            self._read(program)
            self._keep_objects(*before)
            (self.train if training else self.eval)()
        return result

    def to_program(self, recorder: Any = None) -> Program:
        """Return a new program with the current values of all parameters.

        Layers that are quantized are written in float, except by ``paddleq.save_quantized_model``,
        whose ``recorder`` makes markers of quantizers.
        """
        return build_program(self, recorder)

    def save(self, path: Union[str, os.PathLike]) -> None:
        """Write the float model as ``path.pdmodel`` and ``path.pdiparams``.

        Raises:
            ExportError: the files cannot be written.
        """
        path = check_prefix("path", path)
        program = self.to_program()
        program.save(f"{path}.pdmodel", f"{path}.pdiparams", Provenance("pdmodel", program))

    def parsed_program(self) -> Program:
        """Return the program that was read, without values of parameters."""
        return Program(framework_proto().ProgramDesc.FromString(self._description), {})

    def parameter_arrays(self) -> Dict[str, np.ndarray]:
        """Return name of each parameter in the program -> its current value.

        Zeros for those that the layers no longer have (of folded batch norms, or stored as
        integers).
        """
        arrays = {name: np.zeros(shape, "uint16" if dtype == "bfloat16" else dtype)
                  for name, (shape, dtype) in self._shapes.items()}
        for name, (owner, attribute) in self.parameter_places.items():
            value = getattr(getattr(self, owner) if owner else self, attribute, None)
            if value is not None and not owner:
                arrays[name] = value.numpy()
            elif value is not None and paddle.is_floating_point(value):
                arrays[name] = transposed_to(self._shapes[name][0], value.numpy(),
                                             self.bindings[owner], attribute)
        return arrays


def _as_tensor(value):
    return value if isinstance(value, paddle.Tensor) else paddle.to_tensor(np.asarray(value))
