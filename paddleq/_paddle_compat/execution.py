"""Execution of models: compilation by ``paddle.jit``, recomputation, groups of processes."""

import copy
import functools
import gc
import sys
import weakref
from typing import Any, Callable, Iterable, List, Optional, Tuple, Type, TypeVar

import paddle
from paddle import nn

from .lookup import callers, private

L = TypeVar("L", bound=Type[nn.Layer])
# Instance attributes that paddle.jit sets on the layers that it traces.
TRACE_ATTRIBUTES = ("forward", "_original_funcs")


def is_to_static_enabled() -> bool:
    """Return the value that ``paddle.jit.enable_to_static`` set."""
    translator = private("paddle.jit.dy2static.program_translator.ProgramTranslator",
                         "run models without compiling them")
    return translator().enable_to_static


def is_traced(layer: nn.Layer) -> bool:
    """Return True if ``paddle.jit.to_static`` replaced the ``forward`` of ``layer``."""
    return bool(getattr(layer, "_original_funcs", None))


def is_pir_program() -> bool:
    """Return True if Paddle builds a program of PIR now, not one of the legacy format."""
    return private("paddle.framework.in_pir_mode", "trace models with unused inputs")()


def is_traced_by_save() -> bool:
    """Return True inside the trace of ``paddle.jit.save``, not in that of a training program.

    Paddle has no public flag for it. It sets batch norms and dropouts of a saved program to
    evaluation, also those of a model in training mode; layers of other kinds have to do that.
    """
    return not paddle.in_dynamic_mode() and any(
        frame.f_code.co_name == "save" for frame in callers("paddle.jit.api"))


# Layer -> caches of the programs that contain it. Not an attribute of the layer: copies and pickles
# of it are parts of other programs.
_PROGRAMS: Any = weakref.WeakKeyDictionary()


def record_programs(layer: nn.Layer) -> None:
    """Record the programs that ``to_static`` compiles now as programs that contain ``layer``.

    Call it in ``forward``. :func:`drop_programs` deletes these programs.
    """
    if not paddle.in_dynamic_mode():
        for frame in callers("paddle.jit.dy2static.program_translator"):
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
        _clear(recorded)
    kind = private("paddle.jit.dy2static.program_translator.StaticFunction", "run compiled models")
    names = {name for owner in [layer, *type(layer).__mro__] for name, value in vars(owner).items()
             if isinstance(value, kind)}
    for name in names:
        getattr(layer, name)._program_cache.clear()


def may_be_in_programs(model: nn.Layer) -> bool:
    """Return False if no more than its layer refers to each parameter, hence no program does.

    The search of :func:`drop_programs_with` takes 20 ms and more, which most models do not need.
    """
    parameters = model.parameters()
    # Its layer, the list, the name and the argument.
    return any(sys.getrefcount(each) > 4 for each in parameters)


def drop_programs_with(parameters: Iterable[paddle.Tensor]) -> None:
    """Delete all programs of ``to_static`` that contain one of ``parameters``.

    This finds programs of functions and parents that call float layers, which do not call
    :func:`record_programs`. Paddle keeps no list of its caches: they are searched for in the memory
    of the process. See :func:`may_be_in_programs`.
    """
    wanted = {id(each) for each in parameters}
    kind = private("paddle.jit.dy2static.program_translator.ProgramCache", "run compiled models")
    found = [each for each in gc.get_referrers(kind) if issubclass(type(each), kind)  # no proxies
             and any(not wanted.isdisjoint(map(id, _parameters_of(program)))
                     for program, _ in each._caches.values())]
    if found:
        _clear(found)


def _parameters_of(program):
    parameters = program.parameters
    # PIR: (tensors, values of the program)
    return parameters[0] if isinstance(parameters, tuple) else parameters or ()


def _clear(caches):
    for cache in caches:
        cache.clear()
    if hasattr(paddle.jit, "sot"):  # it translates calls into functions that keep the program
        for path in ("opcode_translator.executor.executor_cache.OpcodeExecutorCache",
                     "symbolic.compile_cache.CompileSIRCache"):
            private(f"paddle.jit.sot.{path}", "run compiled models")().clear()


def is_jit_loaded(layer: nn.Layer) -> bool:
    """Return True if ``paddle.jit.load`` returned ``layer``: a program, not layers."""
    modules = {cls.__module__ for cls in type(layer).__mro__}
    return bool(modules & {"paddle.jit.translated_layer", "paddle.jit.pir_translated_layer"})


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
    for frame in callers(*_RECOMPUTE_MODULES):
        variable, repeated = _RECOMPUTE_FUNCTIONS.get(frame.f_code.co_name, ("", False))
        if variable:
            calls.append((frame.f_locals[variable], repeated))
    return calls


def hybrid_topology() -> Any:
    """Return the HybridCommunicateGroup that ``fleet.init`` created, or None."""
    return private("paddle.distributed.fleet.base.topology",
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


def own_input_spec(forward: Any) -> Optional[list]:
    """Return the ``input_spec`` that ``to_static`` was given for a ``forward``, or None."""
    spec = getattr(getattr(forward, "_function_spec", None), "input_spec", None)
    return None if spec is None else list(spec)


def names_unused_input(error: Exception) -> bool:
    """Return True if ``paddle.jit.save`` raised ``error`` for an input that no output depends on.

    Paddle has no type of its own for it.
    """
    return any(text in str(error) for text in (
        "is not involved in the target_vars calculation",  # Paddle 3
        "doesn't exist in pruned inference program"))  # Paddle 2.6


def with_batch_sampler(loader: paddle.io.DataLoader, sampler: Any) -> paddle.io.DataLoader:
    """Return a copy of a DataLoader with another batch sampler.

    Persistent workers, which a loader keeps in an iterator, belong to their sampler.
    """
    made: Any = copy.copy(loader)
    made.batch_sampler, made._iterator = sampler, None
    return made
