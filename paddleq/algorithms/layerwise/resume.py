"""Store finished decoder layers on disk, so that an interrupted run can continue."""

import hashlib
import json
import os
import shutil

import paddle

from ..._atomic_write import LEFT_OVER, write_bytes, write_together
from ..._checks import check_path
from ...checkpoint import load_checkpoint, save_checkpoint
from ...errors import ConfigError, FormatError

_PARTS = ("policy", "KV cache")
_RUN, _LAYER = "run.json", "layer-"


def fingerprint(model, layers, linears, caches, inputs):
    """Describe everything that determines the result of a run, as plain values."""
    from ... import __version__

    return {
        "versions": {"paddle": paddle.__version__, "paddleq": __version__},
        "configuration": {
            "decoder layers": list(layers),
            **{f"the {_PARTS[0]} of {name}": repr(each.config) for name, each in linears.items()},
            **{f"the {_PARTS[1]} of {name}": _cache_scheme(each.config)
               for name, each in caches.items()}},
        "model": {name: _digest(value) for name, value in model.state_dict().items()},
        "data": {"batches": len(inputs),
                 **{f"batch {number}": _digest(each) for number, each in enumerate(inputs)}},
    }


def _cache_scheme(config):
    dtype = config.kv_cache_dtype
    return config.kv_cache if dtype == "int8" else f"{config.kv_cache} {dtype}"


class Resume:
    """Folder with the finished decoder layers of one run."""

    def __init__(self, folder, run):
        self.folder = check_path("resume_dir", folder, "a path or None")
        try:
            os.makedirs(self.folder, exist_ok=True)
            for name in os.listdir(self.folder):
                if name.startswith(LEFT_OVER):  # from a process that was killed
                    shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)
            stored = self._stored_run()
            self.finished = 0
            while os.path.exists(self._path(self.finished) + ".json"):
                self.finished += 1
            if stored is not None:
                names = run["configuration"]["decoder layers"]
                _check_same(self.folder, stored, run, names[:self.finished])
            if stored != run:
                content = json.dumps(run, indent=1).encode()
                write_together({os.path.join(self.folder, _RUN): write_bytes(content)})
        except OSError as error:
            raise FormatError(f"cannot use resume_dir {self.folder}: {error}") from error

    def _stored_run(self):
        """Return the fingerprint in the folder, None for a new folder."""
        path = os.path.join(self.folder, _RUN)
        if not os.path.exists(path):
            layers = sorted(name for name in os.listdir(self.folder) if name.startswith(_LAYER))
            if layers:
                raise FormatError(f"resume_dir {self.folder} holds {', '.join(layers[:2])}, but no "
                                  f"{_RUN} that describes the run; use another folder or remove "
                                  "this one")
            return None
        with open(path, "rb") as file:
            try:
                return json.loads(file.read().decode())
            except ValueError as error:
                raise FormatError(f"{path} is damaged: {error}") from error

    def _path(self, number):
        return os.path.join(self.folder, f"{_LAYER}{number:04d}")

    def save(self, number, layer):
        """Write decoder layer ``number``."""
        save_checkpoint(layer, self._path(number))

    def load(self, number, layer):
        """Load decoder layer ``number`` into the float layer, in place."""
        load_checkpoint(layer, self._path(number))


def _check_same(folder, old, new, finished):
    """Raise unless two runs agree, but for the configuration outside of finished decoder layers."""
    free = tuple(f"the {part} of " for part in _PARTS)
    fixed = tuple(f"{start}{name}." for start in free for name in finished)
    for part, now in new.items():
        before = old.get(part) if isinstance(old, dict) else None
        if before == now:
            continue
        if not isinstance(before, dict):
            raise FormatError(f"{folder}/{_RUN} does not describe a run: it has no {part!r}")
        names = [name for name in [*now, *before] if now.get(name) != before.get(name)]
        if not any(name.startswith(fixed) or not name.startswith(free) for name in names):
            continue
        change = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r} now"
                           for name in names[:1])
        more = f" (and {len(set(names)) - 1} more)" if len(set(names)) > 1 else ""
        raise ConfigError(f"resume_dir {folder} belongs to a run with another {part}: "
                          f"{change}{more}; use another folder or remove this one")


def _digest(structure):
    digest = hashlib.sha256()
    _feed(digest, structure)
    return digest.hexdigest()


def _feed(digest, structure):
    if isinstance(structure, paddle.Tensor):
        array = structure.detach().cpu().numpy()
        digest.update(f"{structure.dtype} {list(array.shape)}".encode())
        digest.update(array.tobytes())
    elif isinstance(structure, (list, tuple)):
        digest.update(f"{len(structure)}".encode())
        for each in structure:
            _feed(digest, each)
    elif isinstance(structure, dict):
        for name in structure:
            digest.update(repr(name).encode())
            _feed(digest, structure[name])
    else:
        digest.update(repr(structure).encode())
