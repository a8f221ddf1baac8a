"""Private interfaces of Paddle that paddleq uses.

No other module of paddleq uses a private name of Paddle. Each entry has a test in
``tests/test_paddle_compat.py`` that uses it on the installed Paddle; an entry that a later Paddle
removes raises :class:`~paddleq.errors.DependencyError`, which names that version.
"""

import copyreg
import functools
import inspect
import pkgutil
import re
import weakref
from contextlib import contextmanager
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

import paddle
from paddle import nn

from .errors import DependencyError

_TESTED = "2.6.2, 3.1.1 and 3.3.1"

L = TypeVar("L", bound=Type[nn.Layer])

# Attributes in which a Layer keeps its parts: dicts, and one set of names.
LAYER_CONTAINERS = ("_parameters", "_buffers", "_sub_layers", "_non_persistable_buffer_names_set",
                    "_loaddict_holder", "_forward_pre_hooks", "_forward_post_hooks")
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_post_hooks")
# Instance attributes that paddle.jit sets on the layers that it traces.
TRACE_ATTRIBUTES = ("forward", "_original_funcs")
# Attributes of a batch norm with its running mean and variance.
RUNNING_STATISTICS = ("_mean", "_variance")


@functools.lru_cache(maxsize=None)
def _private(path: str, purpose: str) -> Any:
    """Return the object at the dotted ``path`` or raise a DependencyError."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"Paddle {paddle.__version__} has no {path}, which paddleq needs to {purpose}; install "
            f"a Paddle that has it, e.g. one of {_TESTED}") from error


def framework_proto() -> Any:
    """Return the module of Paddle's protobuf classes (``ProgramDesc``, ``OpDesc``, ...)."""
    return _private("paddle.base.proto.framework_pb2", "read and write .pdmodel files")


def legacy_operator(name: str) -> Callable:
    """Return the dygraph function of a legacy operator, e.g. ``"conv2d"``.

    It takes the inputs in the order of :func:`operator_slots`, then attribute names and values in
    turn. It computes no gradient for some operators.
    """
    return _private(f"paddle._legacy_C_ops.{name}", f"run the operator {name} of a saved model")


@contextmanager
def patched_operators(names: Iterable[str], call: Callable) -> Iterator[None]:
    """Call ``call(operator, *args, **kwargs)`` instead of the dygraph operators ``names``.

    Functions of ``paddle.nn.functional`` call these operators, or are these operators where a later
    Paddle moved them to C++.
    """
    operators = _private("paddle._C_ops", "find activation functions")
    modules = (operators, paddle, paddle.nn.functional,
               _private("paddle.nn.functional.activation", "find activation functions"))
    previous = []
    try:
        for name in names:
            for module in modules:
                operator = getattr(module, name, None)
                if inspect.isbuiltin(operator):
                    previous.append((module, name, operator))
                    setattr(module, name, functools.partial(call, operator))
        yield
    finally:
        for module, name, operator in reversed(previous):
            setattr(module, name, operator)


@functools.lru_cache(maxsize=None)
def operator_slots(table: str) -> Dict[str, List[str]]:
    """Return operator type -> slots in the order of the dygraph function.

    Args:
        table: "args" for input slots, "args_type" for "tensor", "list" or "int" of each, "returns"
            for output slots.
    """
    return _private(f"paddle.base.core.eager.ops.legacy.get_core_ops_{table}_info",
                    "run the operators of a saved model")()


@functools.lru_cache(maxsize=None)
def operator_descriptions() -> Dict[str, Any]:
    """Return the type of each legacy operator of the installed Paddle -> its OpProto message.

    It has the slots of inputs and outputs (name, duplicable, dispensable, intermediate, extra) and
    the names and types of attributes.
    """
    proto, found = framework_proto(), {}
    for text in _private("paddle.base.core.get_all_op_protos", "check the operators of a model")():
        message = proto.OpProto()
        message.ParseFromString(text)
        found[message.type] = message
    return found


def is_to_static_enabled() -> bool:
    """Return the value that ``paddle.jit.enable_to_static`` set."""
    translator = _private("paddle.jit.dy2static.program_translator.ProgramTranslator",
                          "run models without compiling them")
    return translator().enable_to_static


def is_traced(layer: nn.Layer) -> bool:
    """Return True if ``paddle.jit.to_static`` replaced the ``forward`` of ``layer``."""
    return bool(getattr(layer, "_original_funcs", None))


def is_traced_by_save() -> bool:
    """Return True inside the trace of ``paddle.jit.save``, not in that of a training program.

    Paddle has no public flag for it. It sets batch norms and dropouts of a saved program to
    evaluation, also those of a model in training mode; layers of other kinds have to do that.
    """
    return not paddle.in_dynamic_mode() and any(
        frame.f_code.co_name == "save" for frame in _callers("paddle.jit.api"))


def _callers(*modules: str) -> Iterator[Any]:
    """Return the frames of the functions of ``modules`` that run now, innermost first."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") in modules:
            yield frame
        frame = frame.f_back


# Layer -> caches of the programs that contain it. Not an attribute of the layer: copies and pickles
# of it are parts of other programs.
_PROGRAMS: Any = weakref.WeakKeyDictionary()


def record_programs(layer: nn.Layer) -> None:
    """Record the programs that ``to_static`` compiles now as programs that contain ``layer``.

    Call it in ``forward``. :func:`drop_programs` deletes these programs.
    """
    if not paddle.in_dynamic_mode():
        for frame in _callers("paddle.jit.dy2static.program_translator"):
            if frame.f_code.co_name == "_build_once":
                _PROGRAMS.setdefault(layer, weakref.WeakSet()).add(frame.f_locals["self"])


def drop_programs(layer: nn.Layer) -> None:
    """Delete the programs of ``to_static`` that are compiled from ``layer`` or contain it.

    The next call compiles again. Paddle does so for another shape or mode, but not for a layer that
    has changed. A program of a function or a parent is found if it has been compiled with a call of
    :func:`record_programs`.
    """
    recorded = _PROGRAMS.pop(layer, None)
    if recorded is not None:
        for cache in recorded:
            cache.clear()
        if hasattr(paddle.jit, "sot"):  # it translates calls into functions that keep the program
            for path in ("opcode_translator.executor.executor_cache.OpcodeExecutorCache",
                         "symbolic.compile_cache.CompileSIRCache"):
                _private(f"paddle.jit.sot.{path}", "run compiled models")().clear()
    kind = _private("paddle.jit.dy2static.program_translator.StaticFunction", "run compiled models")
    names = {name for owner in [layer, *type(layer).__mro__] for name, value in vars(owner).items()
             if isinstance(value, kind)}
    for name in names:
        getattr(layer, name)._program_cache.clear()


def is_jit_loaded(layer: nn.Layer) -> bool:
    """Return True if ``paddle.jit.load`` returned ``layer``: a program, not layers."""
    modules = {cls.__module__ for cls in type(layer).__mro__}
    return bool(modules & {"paddle.jit.translated_layer", "paddle.jit.pir_translated_layer"})


def unwrapped(model: nn.Layer) -> nn.Layer:
    """Return the model inside ``paddle.DataParallel`` or its like, or ``model`` itself."""
    inner = getattr(model, "_layers", None)
    return inner if isinstance(inner, nn.Layer) else model


# Functions of Paddle's modules of recompute -> (local variable with an object of each call of
# recompute, True if the function repeats the forward pass).
_RECOMPUTE_MODULES = ("paddle.distributed.fleet.recompute.recompute",
                      "paddle.distributed.fleet.recompute.recompute_hybrid")
_RECOMPUTE_FUNCTIONS = {"forward": ("ctx", False), "backward": ("ctx", True),
                        "_recompute_without_reentrant": ("storage", False),
                        "unpack": ("storage", True)}


def recompute_calls() -> List[Tuple[Any, bool]]:
    """Return the calls of Paddle's ``recompute`` that run now, innermost first.

    Each is a pair: an object that exists once for each call and takes attributes, and True if the
    forward pass is repeated during backward.
    """
    calls = []
    for frame in _callers(*_RECOMPUTE_MODULES):
        variable, repeated = _RECOMPUTE_FUNCTIONS.get(frame.f_code.co_name, ("", False))
        if variable:
            calls.append((frame.f_locals[variable], repeated))
    return calls


def hybrid_topology() -> Any:
    """Return the HybridCommunicateGroup that ``fleet.init`` created, or None."""
    return _private("paddle.distributed.fleet.base.topology",
                    "find the groups of fleet")._HYBRID_PARALLEL_GROUP


def skip_bytecode_translation(cls: L) -> L:
    """Class decorator: let ``to_static`` trace a layer as one of Paddle's own layers.

    The bytecode translator of Paddle 3 would translate the layer's ``forward``, lose buffer
    updates of observers, and (3.3) reuse the translation for quantizers with other limits. The
    ``forward`` must run in dynamic and in static mode, and needs ``paddle.jit.not_to_static`` for
    Paddle 2.6, which has no marker.
    """
    marker = getattr(paddle.jit, "marker", None)
    if marker is not None and hasattr(marker, "unified"):
        marker.unified(cls)
    return cls


def run_untranslated(forward: Callable) -> Callable:
    """Decorator of a method that the bytecode translator of Paddle 2.6 must not see.

    It refuses functions that read the value of a tensor at some places. It passes over functions
    that define a function with a name such as "<lambda>". Other versions are not concerned.
    """
    if hasattr(paddle.jit, "marker") or not hasattr(paddle.framework.core, "set_eval_frame"):
        return forward
    set_eval_frame = paddle.framework.core.set_eval_frame

    @functools.wraps(forward)
    def run(*args, **kwargs):
        previous = set_eval_frame(None)
        try:
            return (lambda: forward(*args, **kwargs))()
        finally:
            set_eval_frame(previous)

    return run


def flops_counters() -> Dict[Type[nn.Layer], Callable]:
    """Return class -> function (layer, inputs, output) that ``paddle.flops`` calls."""
    return _private("paddle.hapi.dynamic_flops.register_hooks", "count operations")


def copy_flops_counter(cls: Type[nn.Layer], base: Type[nn.Layer]) -> None:
    """Let ``paddle.flops`` count layers of ``cls`` as it counts those of ``base``."""
    counters = flops_counters()
    counter = next((counters[parent] for parent in base.__mro__ if parent in counters), None)
    if counter is not None:
        counters[cls] = counter


def own_parameters(layer: nn.Layer) -> Dict[str, Any]:
    """Return the dict in which ``layer`` keeps its own parameters; values may be None."""
    return layer._parameters


def own_buffers(layer: nn.Layer) -> Dict[str, Any]:
    """Return the dict in which ``layer`` keeps its own buffers; values may be None."""
    return layer._buffers


def scalar(x: Any) -> float:
    """Return the value of a real tensor of one element.

    Paddle annotates ``Tensor.item()`` as complex too.
    """
    return x.item()


def dtype_name(dtype: Any) -> Any:
    """Return the name of a data type, such as "float32". Paddle annotates names as literals."""
    return str(dtype).replace("paddle.", "")


def own_sublayers(layer: nn.Layer) -> Dict[str, nn.Layer]:
    """Return the dict in which ``layer`` keeps its direct sublayers."""
    return layer._sub_layers


def remove_hooks(layer: nn.Layer, chosen: Callable[[Callable], bool]) -> None:
    """Remove the forward hooks of ``layer`` for which ``chosen(hook)`` is true."""
    for hooks in (layer._forward_pre_hooks, layer._forward_post_hooks):
        for key in [key for key, hook in hooks.items() if chosen(hook)]:
            del hooks[key]


class _CallHook:
    """Forward pre-hook that passes the keyword arguments of a call as well.

    Paddle 2.6 does not pass them to hooks, and Paddle 3 mistakes a hook for one that takes them
    after unpickling, when it gets a number that another hook had.
    """

    def __init__(self, hook: Callable) -> None:
        self.hook = hook

    def __call__(self, layer: nn.Layer, args: Any) -> Any:
        frame: Any = inspect.currentframe()
        self.hook(layer, args, frame.f_back.f_locals.get("kwargs", {}))


def register_call_hook(layer: nn.Layer, hook: Callable) -> None:
    """Call ``hook(layer, args, kwargs)`` before each forward pass of ``layer``."""
    layer.register_forward_pre_hook(_CallHook(hook))


def remove_call_hook(layer: nn.Layer, hook: Callable) -> None:
    """Remove the ``hook`` that :func:`register_call_hook` registered."""
    remove_hooks(layer, lambda each: getattr(each, "hook", None) is hook)


def own_input_spec(forward: Any) -> Optional[list]:
    """Return the ``input_spec`` that ``to_static`` was given for a ``forward``, or None."""
    spec = getattr(getattr(forward, "_function_spec", None), "input_spec", None)
    return None if spec is None else list(spec)


def raised_by_paddle(error: BaseException) -> bool:
    """Return True if an operator of Paddle raised ``error``: for a data type or a shape, say."""
    if re.match(r"\s*\((\w+)\) ", str(error)):  # the kind, such as "(InvalidArgument) "
        return True
    trace, name = error.__traceback__, ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return name.partition(".")[0] == "paddle"


def names_unused_input(error: Exception) -> bool:
    """Return True if ``paddle.jit.save`` raised ``error`` for an input that no output depends on.

    Paddle has no type of its own for it.
    """
    return any(text in str(error) for text in (
        "is not involved in the target_vars calculation",  # Paddle 3
        "doesn't exist in pruned inference program"))  # Paddle 2.6


@functools.lru_cache(maxsize=None)
def trace_respects_order() -> bool:
    """Return True if ``paddle.trace`` counts an offset along the columns of its first axis.

    Paddle 2.6 counts it along the lower axis.
    """
    with paddle.base.dygraph.guard(paddle.CPUPlace()):
        corner = paddle.to_tensor([[0.0, 1.0], [0.0, 0.0]])
        return not paddle.trace(corner, 1, 1, 0).item()


def group_norm(x: paddle.Tensor, groups: int, epsilon: float, weight: Optional[paddle.Tensor],
               bias: Optional[paddle.Tensor], layout: Any) -> paddle.Tensor:
    """``paddle.nn.functional.group_norm``, which Paddle 2.6 does not have."""
    if hasattr(paddle.nn.functional, "group_norm"):
        return paddle.nn.functional.group_norm(x, groups, epsilon, weight, bias, layout)
    compute = _private("paddle._C_ops.group_norm", "normalize groups")
    return compute(x, weight, bias, epsilon, groups, layout)


class BatchNormState(NamedTuple):
    """Running statistics and options of a batch norm."""

    mean: paddle.Tensor
    variance: paddle.Tensor
    epsilon: float
    momentum: float
    use_global_stats: bool
    trainable_statistics: bool
    activation: Optional[str]


def batch_norm_state(norm: nn.Layer) -> BatchNormState:
    """Return the running statistics and options of ``norm``, of any class of batch norms."""
    return BatchNormState(
        norm._mean, norm._variance, norm._epsilon, norm._momentum, bool(norm._use_global_stats),
        getattr(norm, "_trainable_statistics", False), getattr(norm, "_act", None))


def data_format(layer: nn.Layer) -> str:
    """Return the layout of the data of a convolution or a batch norm, such as "NCHW"."""
    return getattr(layer, "_data_format", None) or layer._data_layout


def convolution_groups(layer: nn.Layer) -> int:
    """Return the number of groups of a convolution."""
    return layer._groups


class ConvolutionGeometry(NamedTuple):
    """Strides, dilations and padding of a convolution or transposed convolution."""

    stride: List[int]
    dilation: List[int]
    padding: Any  # as the layer was created with
    padding_mode: str
    channel_last: bool

    def padding_of(self, sizes: Sequence[int], kernel: Sequence[int]) -> List[Tuple[int, int]]:
        """Return (before, after) for each spatial axis of an input with these ``sizes``."""
        padding, rank = self.padding, len(sizes)
        if isinstance(padding, str):
            if padding.upper() == "VALID":
                return [(0, 0)] * rank
            totals = [max((-(-size // step) - 1) * step + length - size, 0)
                      for size, step, length in zip(sizes, self.stride, kernel)]
            return [(total // 2, total - total // 2) for total in totals]
        if isinstance(padding, int):
            return [(padding, padding)] * rank
        pairs = list(padding)
        if pairs and isinstance(pairs[0], (list, tuple)):
            if len(pairs) == rank + 2:
                pairs = pairs[1:-1] if self.channel_last else pairs[2:]
            return [(before, after) for before, after in pairs]
        if len(pairs) == 2 * rank:
            return list(zip(pairs[::2], pairs[1::2]))
        return [(each, each) for each in (pairs * rank if len(pairs) == 1 else pairs)]


def convolution_geometry(layer: nn.Layer) -> ConvolutionGeometry:
    """Return the :class:`ConvolutionGeometry` of a convolution layer."""
    inner: Any = layer
    rank = len(inner.weight.shape) - 2
    stride, dilation = ([each] * rank if isinstance(each, int) else list(each)
                        for each in (inner._stride, inner._dilation))
    if isinstance(inner._padding, str) and inner._padding.upper() == "SAME":
        dilation = [1] * rank  # Paddle ignores it then
    return ConvolutionGeometry(stride, dilation, inner._padding, inner._padding_mode,
                               data_format(layer).endswith("C"))


class BuffersKeepDtype(nn.Layer):
    """Mixin of layers of which ``Layer.to`` casts the parameters but not the buffers."""

    def _apply(self, func, device, dtype, blocking, include_sublayers=True):
        buffers = {id(held) for held in self._buffers.values()}

        def keep(held, device, dtype, blocking):
            return func(held, device, held.dtype if id(held) in buffers else dtype, blocking)

        super()._apply(keep, device, dtype, blocking, include_sublayers)


class StateDictNotice(nn.Layer):
    """Mixin of layers that notice when a state_dict is read or loaded.

    ``_before_state_dict()`` runs before both, ``_after_load(layer, name)`` after ``set_state_dict``
    has set a tensor of the layer or of a sublayer. Values of another data type are cast:
    averages of states are float32, where Paddle accepts equal types only.
    """

    def _before_state_dict(self):
        pass

    def _after_load(self, layer, name):
        pass

    def _state_dict_impl(self, *args, **kwargs):
        self._before_state_dict()
        found = super()._state_dict_impl(*args, **kwargs)
        if not _is_set_state_dict():
            return found
        own = {id(held): (layer, name) for layer in self.sublayers(include_self=True)
               for name, held in [*layer._parameters.items(), *layer._buffers.items()]}
        loaded: Any = found
        for key, value in found.items():  # in place: Paddle 3 ignores what sublayers return
            if id(value) in own:
                loaded[key] = _LoadedTensor(value, self._after_load, own[id(value)])
        return found


class _LoadedTensor:
    """Tensor of which ``set_state_dict`` reads the shape and sets the value."""

    def __init__(self, tensor, after, place):
        self._tensor, self._after, self._place = tensor, after, place

    def __getattr__(self, name):
        return getattr(self._tensor, name)

    def set_value(self, value):
        value = value if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
        dtype = self._tensor.dtype
        if value.dtype != dtype:
            if dtype == paddle.int64 and paddle.is_floating_point(value):
                # A count whose average is between 0 and 1 is not 0; an average of equal integers
                # may differ by rounding.
                value = paddle.ceil(value - 1e-3)
            value = value.astype(dtype)
        self._tensor.set_value(value)
        self._after(*self._place)


def _is_set_state_dict() -> bool:
    return state_being_loaded() is not None


def state_being_loaded() -> Optional[Tuple[nn.Layer, Any]]:
    """Return (layer, state) of the ``set_state_dict`` that runs now in dynamic mode, or None."""
    if paddle.in_dynamic_mode():
        for frame in _callers("paddle.nn.layer.layers"):
            if frame.f_code.co_name == "set_state_dict":
                return frame.f_locals["self"], frame.f_locals["state_dict"]
    return None


class KeyValueAttention(nn.MultiHeadAttention):
    """Mixin of attentions that compute, cache and read keys and values in ``keys_and_values``.

    The method returns the keys, the values and the cache to return.
    """

    def _prepare_qkv(self, query, key, value, cache=None):
        k, v, new_cache = self.keys_and_values(query, key, value, cache)
        # Paddle's method computes the query; the keys and values are passed as a static cache.
        q, k, v, _ = super()._prepare_qkv(query, key, value, self.StaticCache(k, v))
        return (q, k, v) if cache is None else (q, k, v, new_cache)


def uses_paddle_keys_and_values(attention: nn.MultiHeadAttention) -> bool:
    """Return True if no subclass replaces Paddle's computation of keys and values."""
    return all(getattr(type(attention), name) is getattr(nn.MultiHeadAttention, name)
               for name in ("_prepare_qkv", "compute_kv", "gen_cache"))


def make_tensors_picklable() -> None:
    """Let ``pickle`` store tensors and parameters with names, attributes and values.

    Paddle before 3.3 refuses to pickle them; Paddle 3.3 makes plain tensors of parameters.
    """
    copyreg.pickle(paddle.Tensor, _reduce_tensor)
    copyreg.pickle(_parameter_class(), _reduce_tensor)


def _parameter_class():
    return _private("paddle.base.framework.EagerParamBase", "pickle models")


def _reduce_tensor(tensor):
    attributes = None
    if isinstance(tensor, _parameter_class()):
        # Initializers, which the others are, may be closures.
        attributes = {name: value for name, value in tensor.__dict__.items()
                      if name not in ("_init_func", "_init_op_creator")}
    dtype = dtype_name(tensor.dtype)
    return _make_tensor, (tensor.numpy(), dtype, tensor.name, tensor.stop_gradient,
                          tensor.persistable, attributes)


def _make_tensor(array, dtype, name, stop_gradient, persistable, attributes):
    tensor = paddle.to_tensor(array, dtype=dtype)
    if attributes is not None:
        value, tensor = tensor, _parameter_class()(list(array.shape), dtype, name=name)
        with paddle.no_grad():
            paddle.assign(value, tensor)
        tensor.__dict__.update(attributes)
    tensor.name, tensor.persistable = name, persistable
    tensor.stop_gradient = stop_gradient
    return tensor
