"""Arguments of PaddleSlim's ``quant_post_static`` that static graphs need, and its generators."""

import contextlib
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, cast

import numpy as np
import paddle

from ..._checks import check_choice, check_int, check_known_keys, wrong_type
from ...engine.calibration import map_leaves
from ...errors import CalibrationError, ConfigError
from ...saved_model import SavedModel
from ...saved_model.inputs import as_numpy

_logger = logging.getLogger("paddleq")

# The order of PaddleSlim's arguments, whose first is the executor.
ORDER = ("executor", "model_dir", "quantize_model_path", "batch_generator", "sample_generator",
          "data_loader", "model_filename", "params_filename", "save_model_filename",
          "save_params_filename", "batch_size", "batch_nums", "scope", "algo", "round_type",
          "hist_percent", "bias_correction", "quantizable_op_type", "is_full_quantize",
          "weight_bits", "activation_bits", "activation_quantize_type", "weight_quantize_type",
          "optimize_model", "onnx_format", "skip_tensor_list", "is_use_cache_file", "cache_dir",
          "deploy_backend")
# Values of PaddleSlim's arguments that have no effect here.
_CHOICES = {"activation_quantize_type": ("range_abs_max", "moving_average_abs_max", "abs_max"),
            "is_use_cache_file": (False, True),
            "deploy_backend": ("tensorrt", "mkldnn", "onednn", "arm", "onnxruntime")}


def paddleslim_positions(order: Sequence[str]) -> Callable[[Callable], Callable]:
    """Decorator that accepts positional arguments in PaddleSlim's ``order``, after an executor."""
    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not (args and isinstance(args[0], (paddle.static.Executor, type(None)))):
                return function(*args, **kwargs)
            if len(args) > len(order):
                raise ConfigError(f"{function.__name__} takes at most {len(order)} positional "
                                  f"arguments, but {len(args)} were given")
            given = dict(zip(order, args))
            twice = sorted(set(given) & set(kwargs))
            if twice:
                raise ConfigError(f"{function.__name__} was given {', '.join(twice)} by position "
                                  "and by name")
            return function(**given, **kwargs)

        return call

    return decorate


def check_unneeded(arguments: Dict[str, Any], known: Iterable[str]) -> None:
    """Warn once of arguments without effect; raise for those that are neither so nor ``known``."""
    check_known_keys("quant_post_static", arguments, {*ORDER, *known})
    for name, choices in _CHOICES.items():
        check_choice(name, arguments.get(name), (None, *choices))
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if arguments:
        _logger.warning("quant_post_static does not need %s, which %s no effect: the model runs "
                        "in dynamic mode", ", ".join(arguments),
                        "has" if len(arguments) == 1 else "have")


def calibration_data(data_loader: Any, batch_generator: Any, sample_generator: Any,
                     batch_size: int, wrap: Callable[[Any], Any]) -> Any:
    """Return the batches of the argument that is given: an iterable, or :class:`SampleBatches`.

    Args:
        wrap: the function of :func:`dynamic_mode`.
    """
    given = [name for name, value in (("data_loader", data_loader),
                                      ("batch_generator", batch_generator),
                                      ("sample_generator", sample_generator)) if value is not None]
    if len(given) != 1:
        raise ConfigError("exactly one of data_loader, batch_generator and sample_generator must "
                          f"be given, but {' and '.join(given) or 'none'} is")
    if sample_generator is not None:
        return SampleBatches(sample_generator, batch_size, wrap)
    if batch_size != 1:
        _logger.warning("batch_size=%s has no effect: %s yields batches", batch_size, given[0])
    return wrap(data_loader if batch_generator is None else _Batches(batch_generator))


class _Batches:
    """Batches of a function that returns an iterator, as PaddleSlim's generators do."""

    def __init__(self, generator: Any, name: str = "batch_generator") -> None:
        if not callable(generator) and not hasattr(generator, "__iter__"):
            raise wrong_type(name, generator, "a function that returns an iterator, or an iterable")
        self.generator = generator

    def __iter__(self) -> Iterator[Any]:
        return iter(cast(Iterable, self.generator() if callable(self.generator)
                         else self.generator))


class SampleBatches:
    """Batches of samples, cast and shaped as the inputs of a model.

    A sample is a list or tuple of the inputs without the batch axis, an array that holds them
    along its first axis (PaddleSlim's form), the array of the only input, or a dict by the names
    of the inputs. An array of the only input with the batch axis holds a sample in each row;
    PaddleSlim uses its first row only. A last batch that is not full is dropped.
    """

    def __init__(self, sample_generator: Any, batch_size: int,
                 wrap: Callable[[Any], Any] = lambda data: data) -> None:
        self.samples = wrap(_Batches(sample_generator, "sample_generator"))
        self.batch_size = check_int("batch_size", batch_size, 1)

    def of(self, model: SavedModel) -> Iterator[List[np.ndarray]]:
        """Return the batches for ``model``."""
        rows: List[list] = []
        count = number = 0
        for number, entries in self._entries(model.input_spec):
            rows.append([_shaped(value, spec) for value, spec in zip(entries, model.input_spec)])
            if len(rows) == self.batch_size:
                yield [_stacked(column, spec.name, number)
                       for column, spec in zip(zip(*rows), model.input_spec)]
                count, rows = count + 1, []
        if rows and not count:
            raise CalibrationError(
                f"sample_generator yields {len(rows)} samples, fewer than one batch of "
                f"batch_size={self.batch_size}; a batch that is not full is dropped")
        if rows:
            _logger.info("the last %d samples are dropped: they are no full batch", len(rows))

    def _entries(self, specs):
        """Yield (number of the value of the generator, one value for each input) per sample."""
        for number, sample in enumerate(self.samples):
            if len(specs) == 1 and not isinstance(sample, (Mapping, list, tuple)):
                sample = as_numpy(sample)
                if _is_batch(sample, specs[0].shape):
                    yield from ((number, [row]) for row in sample)
                    continue
            yield number, _entries(sample, specs, number)


def _is_batch(array, shape):
    """Return True if ``array`` has the batch axis and all other dimensions of ``shape``."""
    return array.ndim == len(shape) and all(
        want in (-1, have) for want, have in zip(shape[1:], array.shape[1:]))


def _entries(sample, specs, number):
    """Return one value for each input of the model."""
    if isinstance(sample, Mapping):
        missing = [spec.name for spec in specs if spec.name not in sample]
        if missing:
            raise ConfigError(f"sample {number} of sample_generator lacks {', '.join(missing)}; "
                              f"it has {', '.join(map(str, sample))}")
        return [sample[spec.name] for spec in specs]
    if not isinstance(sample, (list, tuple)):
        sample = as_numpy(sample)
        if len(specs) == 1:
            return [sample]
    if len(sample) < len(specs):
        raise ConfigError(f"sample {number} of sample_generator must hold the {len(specs)} inputs "
                          f"{', '.join(spec.name for spec in specs)}, but has {len(sample)} "
                          "entries")
    return list(sample)[:len(specs)]


def _shaped(value, spec):
    array, shape = as_numpy(value), list(spec.shape[1:])
    if array.ndim != len(shape):
        if -1 not in shape and array.size == math.prod(shape):
            array = array.reshape(shape)
        elif array.ndim == len(shape) + 1 and len(array) == 1:
            array = array[0]
    return array.astype(str(spec.dtype).rpartition(".")[2])


def _stacked(arrays, name, number):
    shapes = {each.shape for each in arrays}
    if len(shapes) > 1:
        raise ConfigError(f"the samples of a batch must have one shape, but those up to sample "
                          f"{number} of sample_generator have {sorted(shapes)} for the input "
                          f"{name!r}; use batch_size=1, or give them one size")
    return np.stack(arrays)


@contextlib.contextmanager
def dynamic_mode() -> Iterator[Callable[[Any], Any]]:
    """Run in dynamic mode while open, also where ``paddle.enable_static()`` was called.

    The function that it yields wraps data of the user, which is read in the user's mode.
    """
    if paddle.in_dynamic_mode():
        yield lambda data: data
        return
    paddle.disable_static()
    try:
        yield _StaticData
    finally:
        paddle.enable_static()


class _StaticData:
    """Iterable that is iterated in static mode; its tensors become arrays."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        batches: Any = None
        while True:
            paddle.enable_static()
            try:
                batches = iter(self.data) if batches is None else batches
                batch = map_leaves(_as_array, next(batches))
            except StopIteration:
                return
            finally:
                paddle.disable_static()
            yield batch


def _as_array(leaf):
    return np.asarray(leaf) if hasattr(leaf, "__array__") else leaf
