"""File beside an exported model that records how it was made, with versions and digests.

``path.paddleq.yaml`` has an entry for each export at ``path``: a ``.pdmodel`` and an ``.onnx`` may
share it. It is written together with the files that it describes, or not at all. Every reader
compares the files with the digests: a killed process, or another program, can leave files of
different exports side by side.
"""

import contextlib
import hashlib
import os
import stat
from functools import partial
from typing import Any

import yaml

from .._atomic_write import wait_for_writer, write_bytes, write_together
from ..engine.provenance import provenance_of, versions
from ..engine.summary import layer_rows
from ..errors import ExportError, FormatError
from ..nn.class_swap import float_class
from .formats import FORMATS
from .program.inspect import program_rows

_HEAD = "# Beside an exported model: how it was made.\n"
ENDING = ".paddleq.yaml"
PADDLE_MODELS = (".pdmodel", ".json")  # endings of models whose parameters are a .pdiparams
_CHECKPOINT = (".safetensors", ".json")
_LARGEST = 1 << 26  # bytes of a record that is read
_DEEPEST = 50  # nested lists and dicts in it
_ATTEMPTS = 3  # to find files that fit, while other processes write them
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_digests = {}  # path -> (state of the file, its SHA-256)


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
                  if os.path.basename(model_path) not in each["files"]
                  and all(files.get(name, digest) == digest
                          for name, digest in each["files"].items())
                  and _unchanged(folder, each["files"])]
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
        write_together(writers, _name_of(model_path))
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


def _name_of(model_path):
    """Return the name that exports at one prefix share: they exclude each other when written."""
    return os.path.basename(provenance_path(model_path))[:-len(ENDING)]


def read_provenance(model_path):
    """Read the entries of the provenance file beside a model, [] if there is none."""
    try:
        found = _read_yaml(provenance_path(model_path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    entries = found.get("exports") if isinstance(found, dict) else None
    return [each for each in (entries if isinstance(entries, list) else [])
            if isinstance(each, dict) and isinstance(each.get("files"), dict)
            and all(isinstance(name, str) for name in each["files"])]


def _read_yaml(path):
    """Read a record as :class:`Provenance` writes it; ValueError if it is of another kind."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    with open(path, "rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    # References make a small file describe any amount of data.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml_events(text)):
        raise ValueError("it has references")
    return yaml.load(text, _LOADER)  # noqa: S506  (one of the two safe loaders)


def yaml_events(text):
    """Yield the events of a YAML text; raise ValueError if it is nested too deeply."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} times")
        yield event


def check_files(model_path, params_path=None):
    """Raise FormatError unless the files of a model are those that the record beside it describes.

    Files without a record pass. A process that is writing them is waited for.
    """
    model_path = os.fspath(model_path)
    problem = _mismatch(model_path, params_path)
    for _ in range(_ATTEMPTS):
        if problem is None:
            return
        wait_for_writer(os.path.dirname(model_path), _name_of(model_path))
        problem = _mismatch(model_path, params_path)
    if problem is not None:
        raise FormatError(
            f"{model_path} is torn: {problem}. An export was interrupted, or another program "
            "changed the files. Export again; if another program wrote all of them, remove "
            f"{provenance_path(model_path)}")


def paddle_models(prefix):
    """Return the ``.pdmodel`` and the ``.json`` at a prefix, or the one that is not outdated.

    They share a ``.pdiparams``, so that the record beside them decides which of them it belongs to.

    Raises:
        FormatError: both exist, and no record describes one of them and the ``.pdiparams``.
    """
    found = [prefix + ending for ending in PADDLE_MODELS if os.path.isfile(prefix + ending)]
    if len(found) < 2:
        return found
    params = prefix + ".pdiparams"
    fitting = []
    for path in found if read_provenance(prefix + PADDLE_MODELS[0]) else ():
        with contextlib.suppress(FormatError):
            check_files(path, params if os.path.isfile(params) else None)
            fitting.append(path)
    if not fitting:
        raise FormatError(
            f"{found[0]} and {found[1]} both exist, and no {os.path.basename(prefix) + ENDING} "
            f"describes the one that belongs to {params}: name the file, or remove the outdated "
            "one")
    return fitting


def _mismatch(model_path, params_path):
    """Describe the difference of files from the record beside a model, None if there is none."""
    entries = read_provenance(model_path)
    if not entries:
        return None
    folder, name = os.path.split(model_path)
    names = [name]
    if params_path is not None and _same_folder(folder, params_path):
        names.append(os.path.basename(params_path))
    entry = next((each for each in entries if name in each["files"]), None)
    if entry is None:  # an older model whose parameters were replaced
        found = file_digests([os.path.join(folder, each) for each in names])
        return next((f"{each} belongs to {min(other['files'].keys() - {each}, default=each)}"
                     for other in entries for each in names if each in other["files"]
                     and not _made_from(other, found)), None)
    for each in entry["files"] if params_path is None else names:
        if each in entry["files"]:
            path = os.path.join(folder, each)
            if not os.path.isfile(path):
                return f"{path} is missing"
            if _cached_digest(path) != entry["files"][each]:
                return (f"{path} has another SHA-256 than its record in "
                        f"{provenance_path(model_path)}")
    return None


def _same_folder(folder, path):
    return not os.path.isdir(path) and (
        os.path.abspath(os.path.dirname(path)) == os.path.abspath(folder))


def _made_from(entry, files):
    """Return True if an export was made from ``files``, and has the same parameters."""
    source = entry.get("made_from")
    return isinstance(source, dict) and files.items() <= source.items()


def file_digests(paths):
    """Compute SHA-256 by file name; None and folders in ``paths`` are omitted."""
    return {os.path.basename(path): _cached_digest(path) for path in paths
            if path is not None and not os.path.isdir(path)}


def _unchanged(folder, files):
    try:
        return file_digests([os.path.join(folder, name) for name in files]) == files
    except OSError:
        return False


def _cached_digest(path):
    """Return the SHA-256 of a file, which is computed once for each of its states."""
    key, state = os.path.abspath(path), file_state(path)
    if _digests.get(key, (None,))[0] != state:
        _digests[key] = state, _digest(path)
    return _digests[key][1]


def file_state(path):
    """Return values that differ after a file was replaced or changed."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()
