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
from paddleq._paddle_compat import lookup
from paddleq.errors import DependencyError

ROOT = pathlib.Path(paddleq.__file__).parent
PACKAGES = ("base", "framework", "hapi", "pir", "pir_utils", "jit.dy2static", "jit.sot",
            "jit.marker", "fluid")
# In any text, comments included.
PRIVATE = re.compile(r"_C_ops|paddle\.(base|pir|pir_utils|jit\.dy2static|framework)\b")
LAYERS = pathlib.Path(nn.__file__).parent / "layer"
CONTAINERS = {*compat.LAYER_CONTAINERS, *compat.TRACE_ATTRIBUTES} - {"forward"}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def private_members(tree):
    """Private methods and attributes that the classes of a module define."""
    names = {node.name if isinstance(node, ast.FunctionDef) else node.attr
             for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
             or isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return {name for name in names if re.match("_[a-z]", name)}


OURS = set().union(*(private_members(parse(path)) for path in ROOT.rglob("*.py")))
PADDLES = CONTAINERS.union(*(private_members(parse(path)) for path in LAYERS.rglob("*.py")))


def members_of_paddle(tree):
    """Private methods and attributes of Paddle's layers that a module of paddleq uses.

    A private name that paddleq's layers have too belongs to them in ``self.name``, and for other
    objects in the module that defines it.
    """
    defined = private_members(tree) - CONTAINERS
    suffixes = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
                for part in node.values]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PADDLES:
            owner = ast.unparse(node.value)
            if owner == "super()" or node.attr not in (OURS - CONTAINERS if owner == "self"
                                                       else defined):
                yield f"line {node.lineno}: {owner}.{node.attr}"
        elif (isinstance(node, ast.Constant) and node.value in PADDLES - defined
              and node not in suffixes):
            yield f"line {node.lineno}: {node.value!r}"


def private_uses(path):
    """Private names of Paddle in a source file, its comments and docstrings included."""
    source = path.read_text(encoding="utf-8")
    yield from members_of_paddle(ast.parse(source))
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
        else:
            continue
        for name in names:
            if name.startswith("paddle.") and (
                    re.search(r"\._[a-z]", name.replace("__version__", ""), re.IGNORECASE)
                    or name.startswith(tuple(f"paddle.{each}." for each in PACKAGES))):
                yield f"line {node.lineno}: {name}"


def test_private_names_occur_in_one_package():
    found = {path.relative_to(ROOT).as_posix(): list(private_uses(path))
             for path in ROOT.rglob("*.py")}
    allowed = [found.pop(path.relative_to(ROOT).as_posix())
               for path in (ROOT / "_paddle_compat").glob("*.py")]
    assert len([uses for uses in allowed if uses]) > 3  # the search finds those that exist
    assert {path: uses for path, uses in found.items() if uses} == {}


def test_other_modules_import_the_interface_of_the_package():
    """Not its modules, so that ``__init__`` lists all that paddleq needs of Paddle."""
    wrong = [f"{path}: {node.module}" for path in ROOT.rglob("*.py")
             for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)
             and "_paddle_compat." in (node.module or "")]
    assert wrong == []


@pytest.mark.parametrize("source, found", [
    ("norm._mean + self._mean", ["norm._mean"]),  # observers of paddleq have a _mean
    ("self._mean = 0\nstats._mean", []),
    ("getattr(conv, '_stride')", ["'_stride'"]),
    ("def _apply(self):\n    super()._apply()", ["super()._apply"]),
    ("self._sub_layers", ["self._sub_layers"]),
    ("layer._paddleq, self._anything, f'{name}_scale'", []),
])
def test_private_members_of_layers_are_found(source, found):
    uses = [use.partition(": ")[2] for use in members_of_paddle(ast.parse(source))]
    assert uses == found


def test_a_missing_interface_names_the_version():
    for path in ("paddle.base.no_such_module.name", "paddle.base.core.no_such_name"):
        with pytest.raises(DependencyError, match=f"Paddle {paddle.__version__} has no {path}, "
                           "which paddleq needs to test.*3.1.1"):
            lookup.private(path, "test")


def test_framework_proto(tmp_path):
    desc = compat.framework_proto().ProgramDesc()
    desc.blocks.add().idx = 0
    desc.blocks[0].parent_idx = -1
    op = desc.blocks[0].ops.add()
    op.type = "relu"
    again = compat.framework_proto().ProgramDesc.FromString(desc.SerializeToString())
    assert again.blocks[0].ops[0].type == "relu"


def test_legacy_operators_take_and_return_the_slots_that_the_tables_name():
    assert compat.operator_slots("args")["conv2d"] == ["Input", "Filter"]
    assert compat.operator_slots("returns")["conv2d"] == ["Output"]
    assert compat.operator_slots("args_type")["concat"][0] == "list"
    assert compat.operator_slots("args_type")["conv2d"] == ["tensor", "tensor"]
    x, w = paddle.rand([1, 2, 5, 5]), paddle.rand([3, 2, 3, 3])
    y = compat.legacy_operator("conv2d")(x, w, "strides", [1, 1], "paddings", [1, 1])
    np.testing.assert_allclose(y.numpy(), nn.functional.conv2d(x, w, padding=1).numpy(), atol=1e-6)
    with pytest.raises(DependencyError, match="run the operator no_such_operator"):
        compat.legacy_operator("no_such_operator")


def test_operator_descriptions_have_control_flow_slots_and_attributes():
    found = compat.operator_descriptions()
    assert {"conv2d", "while", "rnn", "fetch"} <= found.keys()
    assert "no_such_operator" not in found
    slots = {slot.name: slot for slot in found["concat"].inputs}
    assert slots["X"].duplicable and not slots["X"].dispensable and slots["AxisTensor"].dispensable
    assert {attr.name: attr.type for attr in found["conv2d"].attrs}["strides"] == 3


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


class Positive(nn.Layer):
    @compat.run_untranslated
    def forward(self, x):
        return x if not x.size or (x.sum() > 0).item() else -x


def test_run_untranslated():
    net = paddle.jit.to_static(nn.Sequential(Positive()), full_graph=False)
    x = paddle.full([2, 4], -3.0)
    np.testing.assert_array_equal(net(x).numpy(), -x.numpy())


def test_flops_counters():
    class Same(nn.Linear):
        pass

    class Hundred(nn.Layer):
        def forward(self, x):
            return x

    def count(layer, inputs, output):
        layer.total_ops += 100

    compat.copy_flops_counter(Same, nn.Linear)
    compat.flops_counters()[Hundred] = count
    flops = [paddle.flops(nn.Sequential(layer), [1, 4])
             for layer in (nn.Linear(4, 3), Same(4, 3), Hundred())]
    assert flops[0] == flops[1] == 12 and flops[2] == 100


def test_containers_of_a_layer():
    layer = nn.BatchNorm2D(3)
    layer.child = nn.ReLU()
    hooks = [lambda *args: None, lambda *args: None]
    layer.register_forward_pre_hook(hooks[0])
    layer.register_forward_post_hook(hooks[1])
    assert all(name in layer.__dict__ for name in compat.LAYER_CONTAINERS)
    assert compat.own_parameters(layer)["weight"] is layer.weight
    layer.register_buffer("count", paddle.zeros([1]))
    assert compat.own_buffers(layer)["count"] is layer.count
    assert compat.own_sublayers(layer) == {"child": layer.child}
    assert tuple(compat.FORWARD_HOOKS) == compat.LAYER_CONTAINERS[-2:]
    for number, hook in enumerate(hooks):
        lengths = [len(getattr(layer, name)) for name in compat.FORWARD_HOOKS]
        assert lengths == [1 - number, 1]
        compat.remove_hooks(layer, lambda each, hook=hook: each is hook)
    assert [len(getattr(layer, name)) for name in compat.FORWARD_HOOKS] == [0, 0]
    del compat.own_parameters(layer)["weight"], compat.own_sublayers(layer)["child"]
    assert [name for name, _ in layer.named_parameters()] == ["bias", "_mean",
                                                                "_variance"]
    assert list(layer.children()) == []


def test_is_traced():
    layer = nn.Linear(2, 2)
    assert not compat.is_traced(layer)
    assert compat.is_traced(paddle.jit.to_static(layer))


def test_loaded_states_are_cast_and_reported():
    class Noticing(compat.StateDictNotice):
        def __init__(self):
            super().__init__()
            self.child = nn.Linear(2, 1)
            self.register_buffer("count", paddle.zeros([1], dtype="int64"))
            self.register_buffer("total", paddle.zeros([1], dtype="float64"))
            self.__dict__["loaded"] = []

        def _after_load(self, layer, name):
            self.loaded.append((layer is self, name))

    layer = Noticing()
    net = nn.Sequential(nn.Linear(2, 2), layer)
    state = {name: paddle.full_like(value, 0.25, dtype="float32")
             for name, value in net.state_dict().items()}
    assert layer.loaded == []
    assert net.set_state_dict(state) == ([], [])
    assert layer.loaded == [(True, "count"), (True, "total"), (False, "weight"), (False, "bias")]
    assert (layer.count.item(), layer.total.item()) == (1, 0.25)
    assert (layer.count.dtype, layer.total.dtype) == (paddle.int64, paddle.float64)
    assert layer.child.bias.item() == 0.25


def test_load_notice_gets_the_prefix_and_the_state():
    class Noticing(compat.LoadNotice, nn.Linear):
        def _before_load(self, prefix, root, state):
            self.calls.append((prefix, root, state))

    net = nn.Sequential(nn.Linear(2, 2), Noticing(2, 2))
    net[1].__dict__["calls"] = calls = []
    state = net.state_dict()
    assert calls == []
    net.set_state_dict(state)
    ((prefix, root, given),) = calls
    assert (prefix, root) == ("1.", net) and given.keys() == state.keys()


def test_recompute_calls():
    from paddle.distributed.fleet.utils import recompute

    for arguments in ({}, {"use_reentrant": False, "preserve_rng_state": False}):
        linear, calls = nn.Linear(2, 2), []

        def block(x, linear=linear, calls=calls):
            calls.extend(compat.recompute_calls())
            return linear(x)

        x = paddle.rand([1, 2])
        x.stop_gradient = False
        recompute(block, x, **arguments).sum().backward()
        (first, repeated), (second, again) = calls
        assert first is second and (repeated, again) == (False, True)
        first.anything = 1
    assert compat.recompute_calls() == []


class Saved(nn.Layer):
    """Record is_traced_by_save() of each call."""

    def __init__(self):
        super().__init__()
        self.__dict__["calls"] = []

    @paddle.jit.not_to_static
    def forward(self, x):
        self.calls.append(compat.is_traced_by_save())
        return x + 1.0


def test_is_traced_by_save(tmp_path):
    layer, spec = Saved(), [paddle.static.InputSpec([None, 2], "float32")]
    layer(paddle.rand([1, 2]))
    traced = Saved()
    paddle.jit.to_static(nn.Sequential(traced), full_graph=True)(paddle.rand([1, 2]))
    paddle.jit.save(nn.Sequential(layer), str(tmp_path / "net"), spec)
    assert (layer.calls, traced.calls) == ([False, True], [False])


CALLS = []


def record(layer, args, kwargs):
    CALLS.append((args, kwargs))


class Keywords(nn.Layer):
    def forward(self, x, *, mask=None):
        return x if mask is None else x * mask


def test_call_hook_gets_the_keyword_arguments():
    x, mask = paddle.rand([2, 2]), paddle.rand([2, 2])
    layer = Keywords()
    compat.register_call_hook(layer, record)
    CALLS.clear()
    pickle.loads(pickle.dumps(layer))(x, mask=mask)
    layer(x)
    (first, second) = CALLS
    assert first[0][0] is x and first[1]["mask"] is mask and second[1] == {}
    compat.remove_call_hook(layer, record)
    layer(x)
    assert len(CALLS) == 2


def test_own_input_spec():
    spec, net = paddle.static.InputSpec([None, 2], "float32"), nn.Linear(2, 2)
    assert compat.own_input_spec(net.forward) is None
    assert compat.own_input_spec(paddle.jit.to_static(nn.Linear(2, 2)).forward) is None
    (found,) = compat.own_input_spec(paddle.jit.to_static(net, input_spec=[spec]).forward)
    assert list(found.shape) == [-1, 2]


class FirstOnly(nn.Layer):
    def forward(self, x, y):
        return x * 2.0


def test_names_unused_input(tmp_path):
    spec, other = (paddle.static.InputSpec([None, 2], "float32", name) for name in "xy")
    with pytest.raises(ValueError, match="(?s).") as error:
        paddle.jit.save(FirstOnly(), str(tmp_path / "net"), [spec, other])
    assert compat.names_unused_input(error.value)
    assert not compat.names_unused_input(ValueError("x"))


@pytest.mark.parametrize("call, of_paddle", [
    (lambda: nn.Linear(2, 2)(paddle.ones([2, 3])), True),
    (lambda: nn.Linear(2, 2)(paddle.ones([2, 2], "float64")), True),
    (lambda: paddle.ones([2, 3]) + paddle.ones([2, 2]), True),
    (lambda: {}["x"], False), (lambda: int("x"), False),
])
def test_raised_by_paddle(call, of_paddle):
    with pytest.raises(Exception, match="(?s).") as error:
        call()
    assert compat.raised_by_paddle(error.value) is of_paddle


def test_is_jit_loaded(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    paddle.jit.save(net, str(tmp_path / "net"), [paddle.static.InputSpec([None, 2], "float32")])
    assert compat.is_jit_loaded(paddle.jit.load(str(tmp_path / "net")))
    assert not compat.is_jit_loaded(net) and not compat.is_jit_loaded(paddle.jit.to_static(net))


def test_unwrapped():
    net = nn.Sequential(nn.Linear(2, 2))
    assert compat.unwrapped(paddle.DataParallel(net)) is net
    assert compat.unwrapped(net) is net


def test_format_of_the_program_that_is_built():
    assert not compat.is_pir_program()  # in dynamic mode
    paddle.enable_static()
    try:
        found = compat.is_pir_program()
    finally:
        paddle.disable_static()
    assert found == (paddle.__version__ >= "3")


def test_attributes_that_tracing_sets(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    before = {name: value for name, value in net.__dict__.items()
              if name not in compat.TRACE_ATTRIBUTES}
    paddle.jit.save(net, str(tmp_path / "net"), [paddle.static.InputSpec([None, 2], "float32")])
    after = {name for name in net.__dict__ if name not in compat.TRACE_ATTRIBUTES}
    assert after == set(before)


def test_buffers_keep_their_dtype():
    class Kept(compat.BuffersKeepDtype, nn.Linear):
        pass

    layer = Kept(2, 2)
    layer.register_buffer("count", paddle.zeros([1], "int32"))
    layer.register_buffer("scale", paddle.zeros([1], "float32"))
    layer.to(dtype="float64")
    assert layer.weight.dtype == paddle.float64
    assert (layer.count.dtype, layer.scale.dtype) == (paddle.int32, paddle.float32)


def test_state_dict_notice():
    class Noticing(compat.StateDictNotice, nn.Linear):
        calls = 0

        def _before_state_dict(self):
            self.calls += 1

    net = nn.Sequential(Noticing(2, 2))
    state = net.state_dict()
    assert net[0].calls == 1 and len(state) == 2
    net.set_state_dict(state)
    assert net[0].calls == 2


def test_key_value_attention():
    class Doubled(compat.KeyValueAttention):
        def keys_and_values(self, query, key, value, cache):
            k, v = self.compute_kv(key, value)
            return k, 2.0 * v, None if cache is None else "kept"

    paddle.seed(0)
    attention, plain = Doubled(8, 2), nn.MultiHeadAttention(8, 2)
    plain.set_state_dict(attention.state_dict())
    attention.eval(), plain.eval()
    x = paddle.rand([1, 3, 8])
    bias = plain.out_proj.bias
    np.testing.assert_allclose((attention(x) - bias).numpy(), 2.0 * (plain(x) - bias).numpy(),
                               rtol=1e-4, atol=1e-6)
    assert attention(x, x, x, None, plain.gen_cache(x))[1] == "kept"
    assert compat.uses_paddle_keys_and_values(plain)
    assert not compat.uses_paddle_keys_and_values(attention)


def test_batch_norms_and_convolutions():
    for norm in (nn.BatchNorm(3), nn.BatchNorm1D(3), nn.SyncBatchNorm(3)):
        state = compat.batch_norm_state(norm)
        for value, name in zip(state, compat.RUNNING_STATISTICS):
            assert value is getattr(norm, name)
        assert state[2:] == (1e-5, 0.9, False, False, None)
    assert compat.data_format(nn.BatchNorm(3, data_layout="NHWC")) == "NHWC"
    assert compat.batch_norm_state(nn.BatchNorm(3, act="relu")).activation == "relu"
    state = compat.batch_norm_state(nn.BatchNorm2D(3, 0.5, 1e-3, use_global_stats=True))
    assert state[2:] == (1e-3, 0.5, True, False, None)
    conv = nn.Conv2DTranspose(4, 4, 3, groups=2, data_format="NHWC")
    assert (compat.data_format(conv), compat.convolution_groups(conv)) == ("NHWC", 2)


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


def test_patched_operators_receive_the_calls_of_functions_and_layers():
    calls = []

    def call(operator, x, *args, **kwargs):
        calls.append(list(x.shape))
        return operator(x, *args, **kwargs)

    x = paddle.to_tensor([-1.0, 2.0])
    functional = paddle.nn.functional
    with compat.patched_operators(("relu", "gelu", "hardswish"), call):
        functional.relu(x)
        functional.hardswish(x)
        paddle.nn.GELU()(x)
        functional.sigmoid(x)
    functional.relu(x)
    assert calls == [[2]] * 3


def test_geometry_of_convolutions():
    layer = paddle.nn.Conv2D(1, 1, 3, stride=[1, 2], padding=[1, 2, 0, 3], dilation=2)
    geometry = compat.convolution_geometry(layer)
    assert (geometry.stride, geometry.dilation) == ([1, 2], [2, 2])
    assert geometry.padding_of([5, 5], [3, 3]) == [(1, 2), (0, 3)]
    same = compat.convolution_geometry(paddle.nn.Conv1D(1, 1, 4, stride=2, padding="same"))
    assert same.padding_of([5], [4]) == [(1, 2)]


class Numbers(paddle.io.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return np.full([2], index, "float32")


def test_a_data_loader_with_another_batch_sampler_does_not_use_its_persistent_workers():
    loader = paddle.io.DataLoader(Numbers(), batch_size=3, num_workers=1, persistent_workers=True)

    def read(each):
        return [batch[0][:, 0].tolist() if isinstance(batch, list) else batch[:, 0].tolist()
                for batch in each]

    assert read(loader) == [[0, 1, 2], [3, 4, 5]]
    assert read(compat.with_batch_sampler(loader, [[4], [1, 5]])) == [[4], [1, 5]]
    assert read(loader) == [[0, 1, 2], [3, 4, 5]]
