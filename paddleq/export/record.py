"""What lies beside an exported model: how it was made, and with which versions."""

import hashlib
import os
import tempfile

import yaml

from .._versions import versions
from ..errors import ExportError

_HEAD = "# Beside an exported model: how it was made."
ENDING = ".paddleq.yaml"


def write_record(path, files, **fields):
    """Write ``path.paddleq.yaml``, beside its target and renamed into place.

    Args:
        path: the prefix of the exported files.
        files: their paths; their SHA-256 goes into the record.
        fields: what else is to be remembered: plain dicts, lists, texts and numbers.

    Returns:
        The path that was written.

    Raises:
        ExportError: it cannot be written.
    """
    content = {"versions": versions(),
               "files": {os.path.basename(name): _digest(name) for name in files}, **fields}
    target = path + ENDING
    try:
        handle, beside = tempfile.mkstemp(prefix=".paddleq-", suffix=".yaml",
                                          dir=os.path.dirname(os.path.abspath(path)))
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_HEAD + "\n")
                yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
            os.chmod(beside, 0o666 & ~_umask())
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error}") from error
    return target


def _digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()


def _umask():
    # There is no way to read it but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
