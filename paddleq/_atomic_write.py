"""Atomic writing of files: a process that is killed leaves the old ones intact."""

import errno
import os
import pathlib
import tempfile

LEFT_OVER = ".paddleq-"
"""Prefix of temporary folders, which a killed process may leave beside its targets."""


def write_together(writers):
    """Write files beside their targets, then rename them into place one after another.

    ``writers`` maps each target to a function that writes the file to the path it receives. If a
    target cannot be written, no file is replaced, unless a rename failed after others succeeded.
    """
    for path in writers:
        if os.path.isdir(path):  # otherwise a later rename fails after others succeeded
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    folder = os.path.dirname(os.path.abspath(next(iter(writers))))
    # A separate folder on the same file system, which is removed as a whole on any error.
    with tempfile.TemporaryDirectory(prefix=LEFT_OVER, dir=folder) as temporary:
        written = {path: os.path.join(temporary, str(number))
                   for number, path in enumerate(writers)}
        for path, write in writers.items():
            write(written[path])
        for path in writers:
            os.replace(written[path], path)


def write_bytes(content):
    """Return a writer for :func:`write_together` that writes ``content``."""
    return lambda path: pathlib.Path(path).write_bytes(content)
