"""What a runtime is to the rest of this package."""

import abc
import importlib.util
from contextlib import contextmanager

from ...errors import DependencyError, FormatError, InferenceError, PaddleqError


class Session(abc.ABC):
    """A model that is loaded; for one thread at a time.

    Attributes:
        ports: list of :class:`~paddleq.deploy.model_file.Port`.
        results: names of the outputs.
        fallback: reason why float kernels compute a quantized model; "" where int8 kernels do.
    """

    fallback = ""

    @abc.abstractmethod
    def run(self, arrays):
        """What the model makes of a list of arrays in the order of ``ports``: a list of arrays."""

    @abc.abstractmethod
    def clone(self):
        """A session of the same model for another thread, which shares its weights."""

    def close(self):
        """Give back what the session holds; it is not used any more."""
        return None


class Runtime(abc.ABC):
    """A library that runs models.

    Attributes:
        name: what users call it.
        title: what it calls itself.
        kinds: endings of files that it reads, the best first.
        module: name of the module whose presence shows that it is installed.
        remedy: how to install it.
    """

    name = title = module = remedy = None
    kinds = ()

    def installed(self):
        """Whether it can be used here."""
        return importlib.util.find_spec(self.module) is not None

    @abc.abstractmethod
    def version(self):
        """Its version."""

    def require(self):
        """Raise :class:`DependencyError` if it is not installed."""
        if not self.installed():
            raise DependencyError(f"the runtime {self.name!r} needs {self.title}, which is not "
                                  f"installed: {self.remedy}")

    def choose(self, files):
        """The one of ``files`` that it runs best, or None."""
        return next((file for kind in self.kinds for file in files if file.kind == kind), None)

    @abc.abstractmethod
    def load(self, file, threads, as_is=False):
        """A :class:`Session` of a :class:`~paddleq.deploy.model_file.ModelFile`.

        Args:
            threads: of one run.
            as_is: compute the operators that are in the file, one by one.

        Raises:
            FormatError: the file is damaged.
            InferenceError: the runtime refuses it.
        """


@contextmanager
def reported(what, file, damaged=(), refused=()):
    """Errors of a runtime as ours.

    Args:
        damaged: types of its own that tell of a file that it cannot read.
        refused: other types of its own.
    """
    try:
        yield
    except PaddleqError:
        raise
    except damaged as error:
        raise FormatError(f"{file} cannot be read: {_short(error)}") from error
    # Paddle raises NotImplementedError for an operator that has no kernel for a dtype.
    except (RuntimeError, ValueError, OSError, NotImplementedError, *refused) as error:
        raise InferenceError(f"{what} refuses {file}: {_short(error)}") from error


def _short(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Paddle puts the trace of its own calls first.
    said = [line for line in lines if "Error:" in line or "[Hint:" in line] or lines
    return " ".join(said[:3])[:500] or type(error).__name__
