"""Base classes and registry of runtimes."""

import abc
import importlib
import importlib.util
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, FrozenSet, List, Optional, Tuple, Type, TypeVar

import numpy as np

from ..._checks import wrong_value
from ..._registry import Registry
from ...errors import ConfigError, DependencyError, FormatError, InferenceError, PaddleqError

RUNTIMES: "Registry[Runtime]" = Registry("runtime")
_R = TypeVar("_R", bound="Runtime")


def register_runtime(name: str) -> Callable[[Type[_R]], Type[_R]]:
    """Class decorator that makes a runtime available to :class:`Predictor` and :func:`verify`.

    Raises:
        ConfigError: the name is taken.

    Examples:
        >>> from paddleq.deploy.runtimes import RUNTIMES
        >>> list(RUNTIMES)[:4]
        ['openvino', 'onnxruntime', 'paddle', 'paddlelite']
    """
    def register(cls: Type[_R]) -> Type[_R]:
        cls.name = name
        RUNTIMES.register(name)(cls())
        return cls

    return register


@dataclass(frozen=True)
class CompiledOperator:
    """Operator of the graph that a runtime has compiled.

    Attributes:
        name: of the node, or of its first output.
        type: the runtime's name of the operator.
        precision: "int8" if it computes with integers of 8 bits, otherwise "float".
        converts: it only changes the precision or the layout of a tensor.
        sources: names of the operators that compute its inputs.
    """

    name: str
    type: str
    precision: str
    converts: bool = False
    sources: Tuple[str, ...] = ()


class Session(abc.ABC):
    """A loaded model, for one thread at a time.

    Attributes:
        inputs: list of :class:`~paddleq.deploy.model_file.TensorInfo`, one for each input.
        outputs: names of the outputs.
        fallback: reason why float kernels compute a quantized model; "" where int8 kernels do.
    """

    inputs: List[Any]
    outputs: List[str]
    fallback = ""

    @abc.abstractmethod
    def run(self, arrays: List[np.ndarray]) -> List[np.ndarray]:
        """Compute the outputs for arrays in the order of ``inputs``."""

    @abc.abstractmethod
    def clone(self) -> "Session":
        """Return a session of the same model for another thread; weights are shared."""

    def close(self) -> None:
        """Release the resources of the session, which is not used any more."""
        return None


class Runtime(abc.ABC):
    """Library that runs models. A subclass is registered with ``@register_runtime("name")``.

    Attributes:
        name: that it is registered under.
        title: its own name, for messages.
        kinds: endings of the files that it reads, the preferred one first.
        module: name of the Python module whose presence shows that it is installed.
        remedy: how to install it.
        automatic: candidate for ``Predictor(runtime="auto")`` and default of ``verify``.
        int8_types: types of the operators that it has int8 kernels of, in its compiled graph.
        int8_condition: what int8 kernels need besides quantized inputs, for messages; "": nothing.
        references: endings of files that ``load(..., as_is=True)`` computes operator by operator
            as the reference of :func:`~paddleq.deploy.verify`.
    """

    name: str = ""
    title: str = ""
    module: str = ""
    remedy: str = ""
    kinds: Tuple[str, ...] = ()
    automatic = False
    references: Tuple[str, ...] = ()
    int8_types: FrozenSet[str] = frozenset()
    int8_condition = ""

    def installed(self) -> bool:
        """Return True if the runtime can be used here."""
        return importlib.util.find_spec(self.module) is not None

    def version(self) -> str:
        """Return its version, by default that of ``module``."""
        return importlib.import_module(self.module).__version__.partition("-")[0]

    def require(self) -> None:
        """Raise :class:`~paddleq.errors.DependencyError` if it is not installed."""
        if not self.installed():
            raise DependencyError(f"the runtime {self.name!r} needs {self.title}, which is not "
                                  f"installed: {self.remedy}")

    def choose(self, files: List[Any]) -> Optional[Any]:
        """Return the preferred one of ``files``, or None if it reads none of them."""
        return next((file for kind in self.kinds for file in files if file.kind == kind), None)

    @abc.abstractmethod
    def load(self, file: Any, threads: int, as_is: bool = False) -> Session:
        """Load a :class:`~paddleq.deploy.model_file.ModelFile`.

        Args:
            threads: number of threads of one run.
            as_is: compute the operators of the file one by one, without optimization.

        Raises:
            FormatError: the file is damaged.
            InferenceError: the runtime refuses it.
        """

    def compiled_operators(self, file: Any, threads: int) -> Tuple[List[CompiledOperator], str]:
        """Compile a file; return the operators in their order, and :attr:`Session.fallback`.

        Operators on shapes and indices are left out.

        Raises:
            ConfigError: the runtime does not show its compiled graph, as by default.
        """
        shown = [name for name, each in RUNTIMES.items() if type(each).compiled_operators
                 is not Runtime.compiled_operators]
        raise wrong_value("runtime", self.name, f"one that shows the graph that it compiles: "
                          f"{', '.join(shown)}")


def load_reference(file):
    """Load a file in a runtime that computes its operators one by one, in float."""
    runtime = next((each for each in RUNTIMES.values() if file.kind in each.references), None)
    if runtime is None:
        raise ConfigError(f"no runtime computes {file.kind} files operator by operator")
    runtime.require()
    return runtime.load(file, threads=1, as_is=True)


@contextmanager
def convert_errors(what, file, damaged=(), refused=()):
    """Convert exceptions of a runtime, for ``damaged`` files and others, to errors of paddleq."""
    try:
        yield
    except PaddleqError:
        raise
    except damaged as error:
        raise FormatError(f"{file} cannot be read: {_summary(error)}") from error
    # Paddle raises NotImplementedError for an operator that has no kernel for a dtype.
    except (RuntimeError, ValueError, OSError, NotImplementedError, *refused) as error:
        raise InferenceError(f"{what} refuses {file}: {_summary(error)}") from error


def _summary(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Paddle puts a C++ stack trace first, OpenVINO the places in its sources.
    message = [line for line in lines if "Error:" in line or "[Hint:" in line] or [
        line for line in lines if not line.startswith(("Exception from ", "Check '"))] or lines
    return " ".join(message[:3])[:500] or type(error).__name__
