"""Atomic writing of files, and temporary folders that survive no killed process.

A folder in use holds a file that its process has locked. The system releases the lock when the
process ends in any way, so that the folder of a killed process is recognized and removed.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import tempfile
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LEFT_OVER = ".paddleq-"
"""Prefix of temporary folders, which a killed process may leave beside its targets."""
_TEMPORARY = "paddleq-"  # prefix of those in the system's folder of temporary files
_LOCK = ".lock"
_SECONDS = 600.0  # to wait for another process
_NOTICE = 10.0  # seconds after which waiting is reported
_UNLOCKED = 3600.0  # age in seconds at which an empty folder without a lock is left over
_logger = logging.getLogger("paddleq")


def write_together(writers, name=None):
    """Write files beside their targets, then rename them into place, the last one first.

    ``writers`` maps each target to a function that writes the file to the path it receives. The
    last target may be a record of the others: after an interruption, it differs from the old ones.
    If a target cannot be written, no file is replaced, unless a rename failed after others
    succeeded. Of several processes that write under one ``name`` in one folder (default: that of
    the first target, without its ending), one does so at a time.
    """
    for path in writers:
        if os.path.isdir(path):  # otherwise a later rename fails after others succeeded
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    first = os.path.abspath(next(iter(writers)))
    name = os.path.splitext(os.path.basename(first))[0] if name is None else name
    with _exclusive_folder(_folder_of(os.path.dirname(first), name)) as temporary:
        written = {path: os.path.join(temporary, str(number))
                   for number, path in enumerate(writers)}
        for path, write in writers.items():
            write(written[path])
        for path in reversed(list(writers)):
            os.replace(written[path], path)


def write_bytes(content):
    """Return a writer for :func:`write_together` that writes ``content``."""
    return lambda path: pathlib.Path(path).write_bytes(content)


def wait_for_writer(folder, name, seconds=_NOTICE):
    """Wait until no process is writing under ``name`` in ``folder``, at most ``seconds``."""
    with contextlib.suppress(OSError), open(
            os.path.join(_folder_of(folder, name), _LOCK), "rb") as lock:
        _lock(lock.fileno(), shared=True, seconds=seconds)


@contextlib.contextmanager
def temporary_folder():
    """Context of a folder for intermediate files; remove those that killed processes left."""
    parent = tempfile.gettempdir()
    _remove_left_over(parent)
    while True:
        folder = tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent)
        lock = _open_lock(folder)
        # Another process may take the folder for left over before it is locked.
        if lock is not None and (_lock(lock, seconds=0.0) is False
                                 or not _is_at(lock, os.path.join(folder, _LOCK))):
            os.close(lock)
            continue
        break
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _folder_of(folder, name):
    return os.path.join(folder, f"{LEFT_OVER}{name}")


@contextlib.contextmanager
def _exclusive_folder(folder):
    """Context of an empty folder that no other process or thread has at the same time."""
    lock = None
    while lock is None:
        os.makedirs(folder, exist_ok=True)
        lock = _open_lock(folder)
        if lock is None:
            continue  # the process that had the folder removed it
        locked = _lock(lock, name=folder)
        if locked is False:
            os.close(lock)
            raise TimeoutError(errno.ETIMEDOUT, "another process has been writing the same files "
                               f"for {_SECONDS:.0f} seconds", folder)
        if locked is None:
            _remove(folder)
            os.close(lock)
            with tempfile.TemporaryDirectory(prefix=f"{os.path.basename(folder)}-",
                                             dir=os.path.dirname(folder)) as temporary:
                yield temporary
            return
        if not _is_at(lock, os.path.join(folder, _LOCK)):
            os.close(lock)
            lock = None
    try:
        _empty(folder)  # of a process that was killed
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _open_lock(folder):
    """Return the descriptor of the lock of a folder, None if the folder no longer exists."""
    try:
        return os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None


def _lock(lock, shared=False, seconds=None, name=None):
    """Lock a file; return False after ``seconds``, None where files cannot be locked."""
    seconds = _SECONDS if seconds is None else seconds
    if fcntl is None:
        return None
    start, reported = time.monotonic(), name is None
    while True:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EINTR):
                return None  # a file system without locks
        waited = time.monotonic() - start
        if waited >= seconds:
            return False
        if waited > _NOTICE and not reported:
            _logger.warning("waiting for another process that writes the same files: %s", name)
            reported = True
        time.sleep(min(0.1, max(0.002, waited / 10)))


def _is_at(lock, path):
    """Return True if ``path`` is the open file ``lock``, which others may have replaced."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except FileNotFoundError:
        return False


def _empty(folder):
    for entry in os.scandir(folder):
        if entry.name == _LOCK:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _remove(folder):
    """Remove a folder that this process has locked, the lock last."""
    with contextlib.suppress(OSError):
        _empty(folder)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, _LOCK))
    with contextlib.suppress(OSError):  # others may wait for the lock in it already
        os.rmdir(folder)


def _remove_left_over(parent):
    """Remove the temporary folders of processes that no longer run."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(_TEMPORARY) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):  # such as those of another user
                    _remove_if_unused(entry)


def _remove_if_unused(entry):
    path = os.path.join(entry.path, _LOCK)
    if not os.path.exists(path):
        # An empty one, unless another process is about to lock it.
        if time.time() - entry.stat().st_mtime > _UNLOCKED:
            os.rmdir(entry.path)
        return
    lock = os.open(path, os.O_RDWR)
    try:
        if _lock(lock, seconds=0.0):
            _remove(entry.path)
    finally:
        os.close(lock)
