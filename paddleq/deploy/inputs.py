"""Checking what is given to a model against what it takes."""

from .._checks import hint, wrong_type
from ..errors import ConfigError, ConfigTypeError
from .model_file import as_numpy


def arranged(inputs, ports):
    """``inputs`` as a list of numpy arrays in the order of ``ports``.

    Args:
        inputs: an array for a model of one input; else a list or tuple of arrays, in order, or a
            dict by name. Paddle tensors count as arrays.
        ports: list of :class:`~paddleq.deploy.model_file.Port`.

    Raises:
        ConfigError: another number of inputs, an unknown name, a wrong shape.
        ConfigTypeError: no array, or a wrong dtype.
    """
    takes = "; the model takes " + "; ".join(map(str, ports))
    if isinstance(inputs, dict):
        inputs = _by_name(inputs, ports, takes)
    elif not isinstance(inputs, (list, tuple)):
        inputs = [inputs]
    if len(inputs) != len(ports):
        raise ConfigError(f"inputs has {len(inputs)} arrays{takes}")
    return [_checked(as_numpy(value), port, takes) for value, port in zip(inputs, ports)]


def _by_name(inputs, ports, takes):
    names = [port.name for port in ports]
    for name in inputs:
        if name not in names:
            raise ConfigError(f"inputs has no place for {name!r}{hint(name, names)}{takes}")
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ConfigError(f"inputs lacks {', '.join(missing)}{takes}")
    return [inputs[name] for name in names]


def _checked(array, port, takes):
    if array.dtype == object:
        raise wrong_type(f"inputs[{port.name!r}]", array.tolist(), "a numeric array")
    if array.dtype.name != port.dtype:
        raise ConfigTypeError(f"inputs[{port.name!r}] must be {port.dtype}, but is "
                              f"{array.dtype.name}: give array.astype({port.dtype!r}){takes}")
    wanted = port.shape
    if wanted is not None and (array.ndim != len(wanted) or any(
            size not in (None, have) for size, have in zip(wanted, array.shape))):
        raise ConfigError(f"inputs[{port.name!r}] has the shape {list(array.shape)}{takes}")
    return array
