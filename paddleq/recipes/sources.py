"""Sources of models and data for recipes: files, folders of images and functions."""

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional

import numpy as np
import paddle

from .._checks import hint
from ..checkpoint import load_state, read_state
from ..errors import ConfigError, DependencyError, FormatError, ModelError

_NUMBERS = "biufc"  # kinds of numpy dtypes
_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


def find_function(text: str, folder: str) -> Callable:
    """Return the function with the name "module:function" or "file.py:function" in ``folder``."""
    module_name, _, function = text.rpartition(":")
    sys.path.insert(0, folder)
    try:
        module = (_file(os.path.join(folder, module_name)) if module_name.endswith(".py")
                  else importlib.import_module(module_name))
    except Exception as error:
        raise ConfigError(f"{text!r}: {module_name} cannot be imported: "
                          f"{type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    found = getattr(module, function, None)
    if not callable(found):
        names = [name for name, value in vars(module).items()
                 if callable(value) and not name.startswith("_")]
        raise ConfigError(f"{text!r}: {module_name} has no function {function!r}"
                          f"{hint(function, names)}")
    return found


def _file(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    path = os.path.abspath(path)
    name = f"paddleq_recipe_{Path(path).stem}"
    if getattr(sys.modules.get(name), "__file__", None) == path:
        return sys.modules[name]
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def build_model(function, folder, arguments=None, weights=None):
    """Build a Layer with a function and load its weights from a file. It is in evaluation mode."""
    build = find_function(function, folder)
    try:
        model = build(**(arguments or {}))
    except Exception as error:
        raise ConfigError(f"{function!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, paddle.nn.Layer):
        raise ModelError(f"{function!r} must return a paddle.nn.Layer, but returns a "
                         f"{type(model).__name__}")
    if weights is not None:
        path = os.path.join(folder, weights)
        load_state(model, read_state(path), path)
    model.eval()
    return model


def open_data(source, folder=".", batch_size=32, batches=None, keys=None, labels=None,
              transform=None):
    """Return the batches of a data section of a recipe, which can be iterated repeatedly.

    ``source`` is a ``.npy`` or ``.npz`` file or a folder of images, or "module:function", which
    yields complete batches. ``keys`` are the arrays of a ``.npz`` in the order of the model's
    inputs (default: all but ``labels``); ``labels=True`` means a folder of images per class.
    """
    path = os.path.join(folder, source)
    if ":" in source and not os.path.exists(path):
        return _FunctionData(find_function(source, folder), batches)
    count, read = (_images(path, labels, image_transform(transform or [], folder))
                   if os.path.isdir(path) else _arrays(path, keys, labels))
    return _FileData([slice(first, first + batch_size)
                      for first in range(0, count, batch_size)][:batches], read)


@dataclass
class _FunctionData:
    """Batches of a user's function. Their number is unknown."""

    function: Callable
    limit: Optional[int]

    def __iter__(self):
        return itertools.islice(iter(self.function()), self.limit)


@dataclass
class _FileData:
    """Batches of files: slices of their items, and a function that reads a slice."""

    slices: List[slice]
    read: Callable

    def __len__(self):
        return len(self.slices)

    def __iter__(self):
        return map(self.read, self.slices)


def read_array(path):
    """Return the array of a .npy file."""
    with _array_errors(path), open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_npz(path):
    with _array_errors(path), open(path, "rb") as file:
        return dict(np.lib.npyio.NpzFile(file, allow_pickle=False))


@contextlib.contextmanager
def _array_errors(path):
    if not os.path.isfile(path):
        raise FormatError(f"there is no file {path}")
    try:
        yield
    except Exception as error:  # of many classes, from numpy, zipfile and zlib
        raise FormatError(f"{path} is no .npy or .npz of arrays: {error}") from error


def text_encoder(source, folder):
    """Return a function from a str to token numbers.

    ``source`` is the ``tokenizer.json`` of the package tokenizers, or "module:function".
    """
    if ":" in source and not os.path.exists(os.path.join(folder, source)):
        return find_function(source, folder)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DependencyError("a tokenizer.json needs tokenizers: pip install "
                              "'paddleq[text]'") from error
    try:
        tokenizer = Tokenizer.from_file(os.path.join(folder, source))
    except Exception as error:  # tokenizers raises Exception itself
        raise FormatError(f"{source} is no tokenizer.json: {error}") from error
    return lambda text: tokenizer.encode(text).ids


def _arrays(path, keys, labels):
    """Return (number of items, function to read a slice of them) of a .npy or .npz file."""
    found = _read_npz(path) if path.endswith(".npz") else {"x": read_array(path)}
    for key in [*(keys or ()), *([labels] if isinstance(labels, str) else ())]:
        if key not in found:
            raise ConfigError(f"{path} has no array {key!r}{hint(key, found)}; it has "
                              f"{', '.join(found)}")
    names = keys or [key for key in found if key != labels]
    for name in names:
        kind = getattr(found[name], "dtype", np.dtype("V"))  # bytes for a file that is no array
        if kind.kind not in _NUMBERS:
            raise FormatError(f"the array {name!r} of {path} must hold numbers, but is {kind}")
    lengths = {name: len(found[name]) if found[name].size else 0 for name in names}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise FormatError(f"the arrays of {path} must hold the same number of items along their "
                          f"first axis, and at least one, but hold {lengths}")
    return lengths[names[0]], lambda part: [found[name][part] for name in names]


def _images(path, labels, transform):
    """Return (number of images, function to read a slice of them) of a folder."""
    classes = sorted(each for each in Path(path).iterdir() if each.is_dir())
    if labels and not classes:
        raise ConfigError(f"labels of {path}: it must hold a folder for each class")
    found = [file for where in classes or [Path(path)] for file in sorted(where.iterdir())
             if file.suffix.lower() in _IMAGES and file.is_file()]
    if not found:
        raise FormatError(f"{path} holds no image ({', '.join(_IMAGES)})")
    # Shuffled, because calibration uses the first batches, which must contain all classes.
    files = [found[i] for i in np.random.RandomState(0).permutation(len(found))]

    def read(part):
        images = [_image(file, transform) for file in files[part]]
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise ConfigError(f"images of a batch must have one shape, but have {sorted(shapes)}; "
                              "use Resize and CenterCrop in transform")
        return [np.stack(images)]
    return len(files), read


def _image(path, transform):
    from PIL import Image

    try:
        with Image.open(path) as image:
            # As paddle.vision.datasets does, also for gray images.
            image = image.convert("RGB")
    except Exception as error:  # of many classes, one for each format
        raise FormatError(f"{path} is no image: {error}") from error
    return np.ascontiguousarray(transform(image), dtype=np.float32)


def image_transform(steps, folder="."):
    """Return a function from a PIL image to an array [channels, height, width].

    Steps are classes of ``paddle.vision.transforms``, ``"ToTensor"`` or
    ``{"Resize": {"size": 256}}``, or "module:function". ``ToTensor`` is added if no step returns
    an array.
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
