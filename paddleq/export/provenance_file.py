"""File beside an exported model that records how it was made, with versions and digests.

``path.paddleq.yaml`` has an entry for each export at ``path``: a ``.pdmodel`` and an ``.onnx`` may
share it. It is written together with the files that it describes, or not at all.
"""

import hashlib
import os
from functools import partial

import yaml

from .._atomic_write import write_bytes, write_together
from ..engine.provenance import provenance_of, versions
from ..engine.summary import layer_rows
from ..errors import ExportError
from ..nn.class_swap import float_class
from .formats import FORMATS
from .program.inspect import program_rows

_HEAD = "# Beside an exported model: how it was made.\n"
ENDING = ".paddleq.yaml"
_CHECKPOINT = (".safetensors", ".json")


class Provenance:
    """Entry of a provenance file for one export in a format (or "checkpoint").

    A ``program`` is summarized as ``layers`` when it is written, after the passes of the writer;
    without it, ``fields`` have the layers.
    """

    def __init__(self, format, program=None, **fields):
        self._format, self._program, self._fields = format, program, fields

    @classmethod
    def of_layer(cls, format, model, made_by=None, **fields):
        """Provenance of a Layer: its quantization (or ``made_by``) and a summary of its layers."""
        if made_by is None:
            method = provenance_of(model)
            made_by = {"model": float_class(model).__name__,
                       **({"quantize": method} if method else {})}
        return cls(format, **made_by, **fields, layers=layer_rows(model))

    @classmethod
    def of_saved(cls, format, program, paths, **fields):
        """Provenance of a program, based on the file beside its model file ``paths[0]``."""
        files = file_digests(paths)
        known = next((each for each in read_provenance(paths[0])
                      if files.items() <= each["files"].items()), None)
        if known is None:
            return cls(format, made_from=files, **fields, layers=program_rows(program))
        recipe = known.get("recipe")
        quantize = known.get("quantize") or isinstance(recipe, dict) and recipe.get("quantize")
        return cls(format, made_from=files, **({"quantize": quantize} if quantize else {}),
                   **fields, layers=known.get("layers", []))

    def write(self, path):
        """Write this entry for the existing files at the prefix ``path``; return its path."""
        files = export_files(path, self._format)
        target = provenance_path(files[0])
        write_export(target, {target: write_bytes(self.content(files[0], file_digests(files)))})
        return target

    def content(self, model_path, files):
        """Return the provenance file with this entry; ``files`` are digests by name."""
        more = FORMATS[self._format]().versions() if self._format in FORMATS else {}
        entry = {"format": self._format, "files": dict(sorted(files.items())),
                 "versions": {**versions(), **more}, **self._fields}
        if self._program is not None:
            entry["layers"] = program_rows(self._program)
        folder = os.path.dirname(model_path)
        others = [each for each in read_provenance(model_path)
                  if not set(files) & set(each["files"]) and _unchanged(folder, each["files"])]
        # In an order that does not depend on which was written first.
        entries = sorted([*others, entry], key=lambda each: sorted(each["files"]))
        text = yaml.dump({"exports": entries}, Dumper=_Dumper, sort_keys=False, width=100,
                         allow_unicode=True, default_flow_style=None)
        return (_HEAD + text).encode()


class _Dumper(yaml.SafeDumper):
    ignore_aliases = staticmethod(lambda data: True)  # write repeated objects in full


def write_export(model_path, writers, provenance=None):
    """Write the files of one export and its provenance (None for intermediate files), or none.

    ``writers`` are those of :func:`paddleq._atomic_write.write_together`. Raises ExportError if a
    target cannot be written.
    """
    digests = {}

    def write_and_digest(target, write, temporary):
        write(temporary)
        digests[os.path.basename(target)] = _digest(temporary)

    if provenance is not None:
        writers = {path: partial(write_and_digest, path, write) for path, write in writers.items()}
        writers[provenance_path(model_path)] = lambda temporary: write_bytes(
            provenance.content(model_path, digests))(temporary)
    try:
        write_together(writers)
    except OSError as error:
        raise ExportError(f"cannot write {model_path}: {error}") from error


def export_files(path, format):
    """Paths of the files of an export at the prefix ``path``, the model first."""
    endings = _CHECKPOINT if format == "checkpoint" else FORMATS[format].endings
    return [path + ending for ending in endings]


def provenance_path(model_path):
    """Path of the provenance file of a model: the path of the model with another ending."""
    stem, ending = os.path.splitext(model_path)
    models = {_CHECKPOINT[0], *(each.endings[0] for each in FORMATS.values())}
    return (stem if ending in models else model_path) + ENDING


def read_provenance(model_path):
    """Read the entries of the provenance file beside a model, [] if there is none."""
    try:
        with open(provenance_path(model_path), encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    entries = found.get("exports") if isinstance(found, dict) else None
    return [each for each in (entries if isinstance(entries, list) else [])
            if isinstance(each, dict) and isinstance(each.get("files"), dict)
            and all(isinstance(name, str) for name in each["files"])]


def file_digests(paths):
    """Compute SHA-256 by file name; None and folders in ``paths`` are omitted."""
    return {os.path.basename(path): _digest(path) for path in paths
            if path is not None and not os.path.isdir(path)}


def _unchanged(folder, files):
    try:
        return file_digests([os.path.join(folder, name) for name in files]) == files
    except OSError:
        return False


def _digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()
