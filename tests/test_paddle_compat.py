"""Private interfaces of Paddle: each entry is used on the installed Paddle."""

import ast
import pathlib
import pickle
import re

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import _paddle_compat as compat
from paddleq.errors import DependencyError

ROOT = pathlib.Path(paddleq.__file__).parent
PACKAGES = ("base", "framework", "hapi", "pir", "pir_utils", "jit.dy2static", "jit.sot",
            "jit.marker", "fluid")
# In any text, comments included.
PRIVATE = re.compile(r"_C_ops|paddle\.(base|pir|pir_utils|jit\.dy2static|framework)\b")
LAYER_ATTRIBUTES = {*compat.LAYER_CONTAINERS, *compat.TRACE_ATTRIBUTES} - {"forward"}


def private_uses(path):
    """Private names of Paddle in a source file, its comments and docstrings included."""
    source = path.read_text(encoding="utf-8")
    for number, line in enumerate(source.splitlines(), 1):
        if PRIVATE.search(line):
            yield f"line {number}: {line.strip()}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if node.attr in LAYER_ATTRIBUTES:
                yield f"line {node.lineno}: {names[0]}"
        elif isinstance(node, ast.Constant) and node.value in LAYER_ATTRIBUTES:
            yield f"line {node.lineno}: {node.value!r}"
            continue
        else:
            continue
        for name in names:
            if name.startswith("paddle.") and (
                    re.search(r"\._[a-z]", name.replace("__version__", ""), re.IGNORECASE)
                    or name.startswith(tuple(f"paddle.{each}." for each in PACKAGES))):
                yield f"line {node.lineno}: {name}"


def test_private_names_occur_in_one_module():
    found = {str(path.relative_to(ROOT)): list(private_uses(path)) for path in ROOT.rglob("*.py")}
    assert found.pop("_paddle_compat.py")  # the search finds those that exist
    assert {path: uses for path, uses in found.items() if uses} == {}


def test_a_missing_interface_names_the_version():
    for path in ("paddle.base.no_such_module.name", "paddle.base.core.no_such_name"):
        with pytest.raises(DependencyError, match=f"Paddle {paddle.__version__} has no {path}, "
                           "which paddleq needs to test.*3.1.1"):
            compat._private(path, "test")


def test_framework_proto(tmp_path):
    desc = compat.framework_proto().ProgramDesc()
    desc.blocks.add().idx = 0
    desc.blocks[0].parent_idx = -1
    op = desc.blocks[0].ops.add()
    op.type = "relu"
    again = compat.framework_proto().ProgramDesc.FromString(desc.SerializeToString())
    assert again.blocks[0].ops[0].type == "relu"


def test_legacy_operators_take_and_return_the_slots_that_the_tables_name():
    assert compat.operator_inputs()["conv2d"] == ["Input", "Filter"]
    assert compat.operator_outputs()["conv2d"] == ["Output"]
    assert compat.operator_input_kinds()["concat"][0] == "list"
    assert compat.operator_input_kinds()["conv2d"] == ["tensor", "tensor"]
    x, w = paddle.rand([1, 2, 5, 5]), paddle.rand([3, 2, 3, 3])
    y = compat.legacy_operator("conv2d")(x, w, "strides", [1, 1], "paddings", [1, 1])
    np.testing.assert_allclose(y.numpy(), nn.functional.conv2d(x, w, padding=1).numpy(), atol=1e-6)
    with pytest.raises(DependencyError, match="run the operator no_such_operator"):
        compat.legacy_operator("no_such_operator")


def test_known_operators_include_control_flow_and_no_public_names():
    assert {"conv2d", "while", "rnn", "fetch"} <= compat.known_operators()
    assert "no_such_operator" not in compat.known_operators()


def test_is_to_static_enabled():
    for enabled in (False, True):
        paddle.jit.enable_to_static(enabled)
        assert compat.is_to_static_enabled() is enabled


class Doubled(nn.Layer):
    """Counts calls, which a translated forward would do once."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    @paddle.jit.not_to_static
    def forward(self, x):
        return 2.0 * self.linear(x)


def test_skip_bytecode_translation():
    assert compat.skip_bytecode_translation(Doubled) is Doubled
    net = nn.Sequential(Doubled())
    x = paddle.rand([2, 4])
    expected = net(x).numpy()
    np.testing.assert_allclose(paddle.jit.to_static(net)(x).numpy(), expected, atol=1e-6)


def test_flops_counters():
    class Same(nn.Linear):
        pass

    class Hundred(nn.Layer):
        def forward(self, x):
            return x

    def count(layer, inputs, output):
        layer.total_ops += 100

    compat.copy_flops_counter(Same, nn.Linear)
    compat.set_flops_counter(Hundred, count)
    flops = [paddle.flops(nn.Sequential(layer), [1, 4])
             for layer in (nn.Linear(4, 3), Same(4, 3), Hundred())]
    assert flops[0] == flops[1] == 12 and flops[2] == 100


def test_containers_of_a_layer():
    layer = nn.BatchNorm2D(3)
    layer.child = nn.ReLU()
    handles = [layer.register_forward_pre_hook(lambda *args: None),
               layer.register_forward_post_hook(lambda *args: None)]
    assert all(name in layer.__dict__ for name in compat.LAYER_CONTAINERS)
    assert compat.own_parameters(layer)["weight"] is layer.weight
    layer.register_buffer("count", paddle.zeros([1]))
    assert compat.own_buffers(layer)["count"] is layer.count
    assert compat.own_sublayers(layer) == {"child": layer.child}
    assert [len(hooks) for hooks in compat.forward_hooks(layer)] == [1, 1]
    assert tuple(compat.FORWARD_HOOKS) == compat.LAYER_CONTAINERS[-2:]
    for handle in handles:
        handle.remove()
    assert [len(hooks) for hooks in compat.forward_hooks(layer)] == [0, 0]
    del compat.own_parameters(layer)["weight"], compat.own_sublayers(layer)["child"]
    assert [name for name, _ in layer.named_parameters()] == ["bias", "_mean",
                                                                "_variance"]
    assert list(layer.children()) == []


def test_is_traced():
    layer = nn.Linear(2, 2)
    assert not compat.is_traced(layer)
    assert compat.is_traced(paddle.jit.to_static(layer))


def test_attributes_that_tracing_sets(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    before = {name: value for name, value in net.__dict__.items()
              if name not in compat.TRACE_ATTRIBUTES}
    paddle.jit.save(net, str(tmp_path / "net"), [paddle.static.InputSpec([None, 2], "float32")])
    after = {name for name in net.__dict__ if name not in compat.TRACE_ATTRIBUTES}
    assert after == set(before)


def test_layer_to_applies_a_function_to_each_parameter_and_buffer():
    """``IntegerLinear`` overrides ``Layer._apply`` to keep the dtype of its buffers."""
    seen = []

    class Kept(nn.Linear):
        def _apply(self, func, device, dtype, blocking, include_sublayers=True):
            seen.append(dtype)
            super()._apply(lambda held, device, dtype, blocking: func(
                held, device, held.dtype, blocking), device, dtype, blocking, include_sublayers)

    layer = Kept(2, 2).to(dtype="float64")
    assert seen == ["float64"] and layer.weight.dtype == paddle.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_tensors_are_picklable(dtype):
    compat.make_tensors_picklable()
    for tensor in (paddle.arange(6).astype(dtype).reshape([2, 3]), paddle.ones([]).astype(dtype)):
        copied = pickle.loads(pickle.dumps(tensor))
        assert (type(copied), copied.dtype, copied.name, copied.stop_gradient) == (
            type(tensor), tensor.dtype, tensor.name, True)
        assert np.array_equal(copied.numpy(), tensor.numpy())


def test_parameters_are_picklable():
    compat.make_tensors_picklable()
    attr = paddle.ParamAttr(learning_rate=3.0, regularizer=paddle.regularizer.L2Decay(0.5))
    weight = nn.Linear(2, 3, weight_attr=attr).weight
    frozen = nn.Linear(2, 3).weight
    frozen.stop_gradient = True
    for parameter in (weight, frozen):
        copied = pickle.loads(pickle.dumps(parameter))
        assert type(copied) is type(parameter) and copied.name == parameter.name
        assert copied.stop_gradient is parameter.stop_gradient
        assert copied.trainable is parameter.trainable
        assert copied.optimize_attr == parameter.optimize_attr
        assert np.array_equal(copied.numpy(), parameter.numpy())
    assert pickle.loads(pickle.dumps(weight)).regularizer is not None
