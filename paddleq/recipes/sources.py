"""Sources of models and data for recipes: files, folders of images and functions."""

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
from typing import Callable

import numpy as np
import paddle

from .._checks import hint, wrong_type, wrong_value
from ..checkpoint import read_state
from ..errors import ConfigError, FormatError, ModelError

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


def check_function_name(name, value):
    """Return ``value`` if it is a text such as "module:function" or "file.py:function"."""
    if not isinstance(value, str):
        raise wrong_type(name, value, "text such as 'module:function'")
    module, _, function = value.rpartition(":")
    if not module or not function.isidentifier():
        raise wrong_value(name, value, "'module:function' or 'file.py:function'")
    return value


def find_function(text: str, folder: str) -> Callable:
    """Return the function with the name "module:function" or "file.py:function".

    Args:
        text: name of the function.
        folder: folder of a file, which is also searched first for modules.

    Raises:
        ConfigError: the file, module or function does not exist, or its import fails.
    """
    module_name, _, function = text.rpartition(":")
    try:
        with _importing_from(folder):
            module = (_file(os.path.join(folder, module_name)) if module_name.endswith(".py")
                      else importlib.import_module(module_name))
    except Exception as error:
        raise ConfigError(f"{text!r}: {module_name} cannot be imported: "
                          f"{type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [name for name, value in vars(module).items()
                 if callable(value) and not name.startswith("_")]
        raise ConfigError(f"{text!r}: {module_name} has no function {function!r}"
                          f"{hint(function, names)}")
    return found


@contextlib.contextmanager
def _importing_from(folder):
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _file(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    path = os.path.abspath(path)
    name = "paddleq_recipe_" + os.path.splitext(os.path.basename(path))[0]
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def build_model(function, folder, arguments=None, weights=None):
    """Build a Layer with a function and load its weights from a file. It is in evaluation mode.

    Raises:
        ConfigError: see :func:`find_function`, or the function fails.
        ModelError: the function returns no Layer, or the weights belong to another model.
        FormatError: the file of weights is missing or damaged.
    """
    build = find_function(function, folder)
    try:
        model = build(**(arguments or {}))
    except Exception as error:
        raise ConfigError(f"{function!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, paddle.nn.Layer):
        raise ModelError(f"{function!r} must return a paddle.nn.Layer, but returns a "
                         f"{type(model).__name__}")
    if weights is not None:
        load_weights(model, os.path.join(folder, weights))
    model.eval()
    return model


def load_weights(model, path):
    """Load the weights of a ``.pdparams`` or ``.safetensors`` file into ``model``.

    Raises:
        FormatError: the file cannot be read.
        ModelError: a tensor is missing, has another shape or is not in the model.
    """
    from ..checkpoint import load_state

    load_state(model, read_state(path), path)


def open_data(source, folder=".", batch_size=32, batches=None, keys=None, labels=None,
              transform=None):
    """Open the data of a recipe.

    Args:
        source: path of a ``.npy`` or ``.npz`` file or a folder of images, or "module:function".
        folder: folder that paths are relative to.
        batch_size: number of items in a batch. Functions yield complete batches.
        batches: number of batches. Default: all.
        keys: names of the arrays of a ``.npz`` file in the order of the inputs of the model.
            Default: all except ``labels``.
        labels: name of the labels in a ``.npz`` file; ``True`` for one folder of images per class.
        transform: see :func:`image_transform`, for images.

    Returns:
        An iterable of batches that can be iterated repeatedly. A batch is a list of arrays, the
        inputs of the model, or an item of a user's function. ``labelled()`` yields pairs of
        (batch, labels or None); ``has_labels`` is True if there are labels.

    Raises:
        ConfigError, FormatError: the source does not exist or is damaged.
    """
    path = os.path.join(folder, source)
    if ":" in source and not os.path.exists(path):
        return _FunctionData(find_function(source, folder), batches)
    if os.path.isdir(path):
        return _FileData(_ImageFolder(path, labels, transform, folder), batch_size, batches)
    return _FileData(_Arrays(path, keys, labels), batch_size, batches)


class _FunctionData:
    """Batches of a user's function. Their number is unknown."""

    has_labels = False

    def __init__(self, function, limit):
        self._function, self._limit = function, limit

    def __iter__(self):
        return itertools.islice(iter(self._function()), self._limit)

    def labelled(self):
        """Pairs of (batch, None)."""
        return ((batch, None) for batch in self)


class _FileData:
    """Batches of files."""

    def __init__(self, items, batch_size, limit):
        self._items, self._batch_size, self._limit = items, batch_size, limit
        self.has_labels = items.labels is not None

    def __len__(self):
        count = -(-len(self._items) // self._batch_size)
        return count if self._limit is None else min(count, self._limit)

    def __iter__(self):
        return (inputs for inputs, _ in self.labelled())

    def labelled(self):
        """Pairs of (list of arrays, labels or None)."""
        for number in range(len(self)):
            first = number * self._batch_size
            yield self._items.take(range(first, min(first + self._batch_size, len(self._items))))


class _Arrays:
    """Arrays of a .npy or .npz file. Their first axis counts items."""

    def __init__(self, path, keys, labels):
        if not os.path.isfile(path):
            raise FormatError(f"there is no file {path}")
        try:
            loaded = np.lib.npyio.NpzFile if path.endswith(".npz") else None
            if loaded is None:
                with open(path, "rb") as file:
                    arrays = {"x": np.lib.format.read_array(file, allow_pickle=False)}
            else:
                with loaded(path, allow_pickle=False) as file:
                    arrays = {key: file[key] for key in file.files}
        except (ValueError, OSError, EOFError, KeyError) as error:
            raise FormatError(f"{path} is no .npy or .npz of arrays: {error}") from error
        except Exception as error:
            if type(error).__name__ != "BadZipFile":
                raise
            raise FormatError(f"{path} is no .npz: {error}") from error
        for key in [*(keys or ()), *([labels] if isinstance(labels, str) else ())]:
            if key not in arrays:
                raise ConfigError(f"{path} has no array {key!r}{hint(key, arrays)}; it has "
                                  f"{', '.join(arrays)}")
        self.labels = arrays[labels] if isinstance(labels, str) else None
        names = keys or [key for key in arrays if key != labels]
        self._arrays = [arrays[name] for name in names]
        lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in names}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise FormatError(f"the arrays of {path} must hold the same number of items along "
                              f"their first axis, and at least one, but hold {lengths}")

    def __len__(self):
        return len(self._arrays[0])

    def take(self, chosen):
        chosen = slice(chosen.start, chosen.stop)
        labels = None if self.labels is None else self.labels[chosen]
        return [array[chosen] for array in self._arrays], labels


class _ImageFolder:
    """Image files of a folder. Labels are the numbers of class folders in alphabetic order."""

    def __init__(self, path, labels, transform, folder):
        classes = sorted(name for name in os.listdir(path)
                         if os.path.isdir(os.path.join(path, name)))
        if labels and not classes:
            raise ConfigError(f"labels of {path}: it must hold a folder for each class")
        found = [(os.path.join(where, name), number)
                 for number, where in ([(i, os.path.join(path, c)) for i, c in enumerate(classes)]
                                       if classes else [(None, path)])
                 for name in sorted(os.listdir(where)) if name.lower().endswith(_IMAGES)]
        if not found:
            raise FormatError(f"{path} holds no image ({', '.join(_IMAGES)})")
        # Shuffled, because calibration uses the first batches, which must contain all classes.
        order = np.random.RandomState(0).permutation(len(found))
        self._files = [found[i][0] for i in order]
        self.labels = np.array([found[i][1] for i in order]) if labels else None
        self._transform = image_transform(transform or [], folder)

    def __len__(self):
        return len(self._files)

    def take(self, chosen):
        images = [self._load(self._files[i]) for i in chosen]
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise ConfigError(f"images of a batch must have one shape, but have {sorted(shapes)}; "
                              "use Resize and CenterCrop in transform")
        labels = None if self.labels is None else self.labels[chosen.start:chosen.stop]
        return [np.stack(images)], labels

    def _load(self, path):
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                # As paddle.vision.datasets does, also for gray images.
                image = image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise FormatError(f"{path} is no image: {error}") from error
        return np.ascontiguousarray(self._transform(image), dtype=np.float32)


def image_transform(steps, folder="."):
    """Return a function from a PIL image to an array [channels, height, width].

    Args:
        steps: list of texts or one-key mappings: classes of ``paddle.vision.transforms`` with
            their arguments, ``{"Resize": {"size": 256}}``, ``"ToTensor"``, or "module:function".
            ``ToTensor`` is added if no step returns an array.

    Raises:
        ConfigError: a transform does not exist or does not accept its arguments.
    """
    from paddle.vision import transforms

    known = [name for name in transforms.__all__ if name[0].isupper()]
    made = []
    for step in steps:
        name, arguments = (step, {}) if isinstance(step, str) else next(iter(step.items()))
        if ":" in name:
            made.append(find_function(name, folder))
            continue
        if name not in known:
            raise ConfigError(f"transform {name!r} is none of paddle.vision.transforms"
                              f"{hint(name, known)}")
        try:
            made.append(getattr(transforms, name)(**(arguments or {})))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"transform {name} does not take {arguments}: {error}") from error

    def run(image):
        for step in made:
            image = step(image)
        if not isinstance(image, (np.ndarray, paddle.Tensor)):
            image = transforms.ToTensor()(image)
        return image.numpy() if isinstance(image, paddle.Tensor) else image

    return run
