"""What lies beside an exported model: how it was made, and with which versions.

``path.paddleq.yaml`` tells of each export at ``path``: a ``.pdmodel`` and an ``.onnx`` may share
it. It is written together with the files that it tells of, or not at all.
"""

import hashlib
import os

import yaml

from .._atomic_write import write_bytes, write_together
from .._versions import versions
from ..engine import layer_rows, method_of
from ..errors import ExportError
from ..nn.class_swap import float_class
from .program.summary_rows import program_rows

_HEAD = "# Beside an exported model: how it was made.\n"
ENDING = ".paddleq.yaml"
FILES = {"pdmodel": (".pdmodel", ".pdiparams"), "pir": (".json", ".pdiparams"),
         "onnx": (".onnx",), "checkpoint": (".safetensors", ".json")}
_MODELS = (".pdmodel", ".json", ".onnx")
_PACKAGES = {"onnx": ("onnx", "paddle2onnx")}


class Record:
    """How one export is made.

    Args:
        format: a key of ``FILES``.
        said: what is to be remembered: plain dicts, lists, texts and numbers.
    """

    def __init__(self, format, **said):
        self._format, self._said = format, said

    @classmethod
    def of_layer(cls, format, model, made_by=None, **said):
        """Of a ``paddle.nn.Layer``: how it was quantized, and what was done to each layer in it.

        Args:
            made_by: what to say in place of what its front door said: a recipe, say.
        """
        if made_by is None:
            method = method_of(model)
            made_by = {"model": float_class(model).__name__,
                       **({"quantize": method} if method else {})}
        return cls(format, **made_by, **said, layers=layer_rows(model))

    @classmethod
    def of_program(cls, format, program, made_by):
        """Of a :class:`~.program.program.Program`, and what is done to each operator with a weight."""
        return cls(format, **made_by, layers=program_rows(program))

    @classmethod
    def of_saved(cls, format, program, paths, **said):
        """Of a ``program`` read from ``paths``, and what the record beside these says of them.

        Args:
            paths: the model's file, and that of the parameters, or None or their folder.
        """
        files = digests(paths)
        known = [each for each in exports_at(paths[0]) if files.items() <= each["files"].items()]
        if not known:
            return cls.of_program(format, program, {"made_from": files, **said})
        known = known[0]
        recipe = known.get("recipe")
        quantize = known.get("quantize") or isinstance(recipe, dict) and recipe.get("quantize")
        return cls(format, made_from=files, **({"quantize": quantize} if quantize else {}), **said,
                   layers=known.get("layers", []))

    def write_with(self, model_path, writers):
        """Write files, and beside them this record of them; see :func:`.._files.write_together`.

        Args:
            model_path: the one of the files whose name, without its ending, the record gets.
        """
        written = {}

        def noting(path, write):
            def run(beside):
                write(beside)
                written[os.path.basename(path)] = _digest(beside)
            return run

        write_together({
            **{path: noting(path, write) for path, write in writers.items()},
            record_path(model_path): lambda beside: write_bytes(
                self._content(model_path, written))(beside),
        })

    def write(self, path):
        """Write the record of files that are there already; returns its path.

        Args:
            path: their prefix.

        Raises:
            ExportError: it cannot be written.
        """
        files = [path + ending for ending in FILES[self._format]]
        target = record_path(files[0])
        try:
            write_together({target: write_bytes(self._content(files[0], digests(files)))})
        except OSError as error:
            raise ExportError(f"cannot write {target}: {error}") from error
        return target

    def _content(self, model_path, files):
        entry = {"format": self._format, "files": dict(sorted(files.items())),
                 "versions": versions(*_PACKAGES.get(self._format, ())), **self._said}
        folder = os.path.dirname(model_path)
        others = [each for each in exports_at(model_path)
                  if not set(files) & set(each["files"]) and _unchanged(folder, each["files"])]
        # In an order that does not depend on which was written first.
        entries = sorted([*others, entry], key=lambda each: sorted(each["files"]))
        text = yaml.dump({"exports": entries}, Dumper=_Dumper, sort_keys=False, width=100,
                         allow_unicode=True, default_flow_style=None)
        return (_HEAD + text).encode()


class _Dumper(yaml.SafeDumper):
    """Writes what stands in two places twice, not an alias of the first."""

    def ignore_aliases(self, data):
        return True


def record_path(model_path):
    """Where the record of a model lies: its path with another ending."""
    stem, ending = os.path.splitext(model_path)
    return (stem if ending in (*_MODELS, ".safetensors") else model_path) + ENDING


def exports_at(model_path):
    """What the record beside a model tells, a dict for each export; nothing if there is none."""
    try:
        with open(record_path(model_path), encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    entries = found.get("exports") if isinstance(found, dict) else None
    return [each for each in (entries if isinstance(entries, list) else [])
            if isinstance(each, dict) and isinstance(each.get("files"), dict)
            and all(isinstance(name, str) for name in each["files"])]


def digests(paths):
    """Name of each file -> its SHA-256; None and folders among them are passed over."""
    return {os.path.basename(path): _digest(path) for path in paths
            if path is not None and not os.path.isdir(path)}


def _unchanged(folder, files):
    try:
        return digests([os.path.join(folder, name) for name in files]) == files
    except OSError:
        return False


def _digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()
