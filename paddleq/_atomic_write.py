"""Writing files so that a process that is killed leaves the old ones whole."""

import errno
import os
import tempfile

LEFT_OVER = ".paddleq-"
"""What names of folders begin with that a killed process may leave beside its targets."""


def write_together(writers):
    """Write files beside their targets, then rename them into place one after another.

    Args:
        writers: target path -> function that is given a path and writes the file there. The
            folders of the targets are made.

    Raises:
        OSError: a target cannot be written. None of the files is replaced then, unless renaming
            itself failed half way.
    """
    for path in writers:
        if os.path.isdir(path):  # found out by the second rename it would be too late
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        os.makedirs(_folder(path), exist_ok=True)
    first = next(iter(writers))
    # A folder of its own on the same file system: whatever happens, it goes as a whole.
    with tempfile.TemporaryDirectory(prefix=LEFT_OVER, dir=_folder(first)) as beside:
        written = {path: os.path.join(beside, str(number)) for number, path in enumerate(writers)}
        for path, write in writers.items():
            write(written[path])
        for path in writers:
            os.replace(written[path], path)


def write_bytes(content):
    """A writer for :func:`write_together` that writes ``content``."""
    def write(path):
        with open(path, "wb") as file:
            file.write(content)
    return write


def _folder(path):
    return os.path.dirname(os.path.abspath(path))
