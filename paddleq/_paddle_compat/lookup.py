"""Look up private objects and running functions of Paddle."""

import functools
import inspect
import pkgutil
from typing import Any, Iterator

import paddle

from ..errors import DependencyError

_TESTED = "2.6.2, 3.1.1 and 3.3.1"


@functools.lru_cache(maxsize=None)
def private(path: str, purpose: str) -> Any:
    """Return the object at the dotted ``path`` or raise a DependencyError."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"Paddle {paddle.__version__} has no {path}, which paddleq needs to {purpose}; install "
            f"a Paddle that has it, e.g. one of {_TESTED}") from error


def callers(*modules: str) -> Iterator[Any]:
    """Return the frames of the functions of ``modules`` that run now, innermost first."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") in modules:
            yield frame
        frame = frame.f_back
