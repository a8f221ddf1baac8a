"""Comparison of the candidate runtimes of :class:`~paddleq.deploy.Predictor` on one input."""

import logging

import numpy as np

from ..errors import ConfigError, DependencyError, InferenceError
from .metrics import relative_error
from .runtimes.base import load_reference

_logger = logging.getLogger("paddleq")

# Of the relative error. Int8 kernels differ by less: they round other tensors than the file does.
BOUND = 0.2


def in_order(session, names, arrays):
    """Return ``arrays``, which belong to ``names``, in the order of the inputs of a session."""
    wanted = [info.name for info in session.inputs]
    if sorted(wanted) != sorted(names):
        return list(arrays)
    given = dict(zip(names, arrays))
    return [given[name] for name in wanted]


def agreeing(sessions, files, names, arrays):
    """Return the sessions, by name of the runtime, whose outputs for ``arrays`` are right.

    Outputs that differ by more than ``BOUND`` are compared with those of the operators of the file,
    computed one by one. Runtimes that fail or are wrong are left out, with a warning.

    Raises:
        InferenceError: no runtime is right; the message has all errors.
    """
    found, problems = {}, []
    for name, session in sessions.items():
        try:
            found[name] = session.run(in_order(session, names, arrays))
        except InferenceError as error:
            problems.append(str(error))
    if len(found) > 1 and any(_error(one, other) > BOUND for one in found.values()
                              for other in found.values()):
        expected = _reference(files, names, arrays)
        if expected is None:
            _logger.warning("%s disagree on %s, and nothing here computes its operators one by one",
                            " and ".join(found), next(iter(files.values())))
        else:
            errors = {name: _error(outputs, expected) for name, outputs in found.items()}
            problems += [f"{name} is {error:.2g} away (relative L2 error) from the operators of "
                         f"{files[name]}, computed one by one" for name, error in errors.items()
                         if error > BOUND]
            found = {name: found[name] for name, error in errors.items() if error <= BOUND}
    if not found:
        raise InferenceError("no runtime computes the model correctly: " + "; ".join(problems)
                             + "; request one by name to use it all the same")
    for problem in problems:
        _logger.warning("%s; %s used", problem, " or ".join(found))
    return {name: sessions[name] for name in found}


def _reference(files, names, arrays):
    for file in files.values():
        try:
            session = load_reference(file)
        except (ConfigError, DependencyError, InferenceError):
            continue
        try:
            return session.run(in_order(session, names, arrays))
        except InferenceError:
            continue
        finally:
            session.close()
    return None


def _error(found, expected):
    """Relative L2 error of outputs; infinity if their number or shapes differ."""
    if len(found) != len(expected) or any(
            np.shape(a) != np.shape(b) for a, b in zip(found, expected)):
        return float("inf")
    if any(not np.isfinite(np.asarray(each, np.float64)).all() for each in expected):
        return 0.0  # nothing to compare with
    return relative_error([found], [expected])
