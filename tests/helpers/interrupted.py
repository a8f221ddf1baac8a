"""Run a function in a child process that is killed at a chosen moment."""

import os
import signal
import sys


def _is_step(target, event, args):
    """Return True for a rename of a file to ``target``, or for the opening of one for writing."""
    if event == "os.rename":
        return str(args[1]).startswith(target)
    return not target and event == "open" and str(args[1] or "").startswith(("w", "x"))


def interrupted(function, count, target="", name=signal.SIGKILL):
    """Run ``function`` in a forked child that receives a signal before one of its steps.

    Args:
        count: number of steps that happen before.
        target: path with which the steps begin, which are renames. "": all renames, and all files
            that are opened for writing.

    Returns:
        True if the child was killed, False if it finished.
    """
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        seen, status = 0, 1

        def hook(found, args):
            nonlocal seen
            if _is_step(target, found, args):
                if seen == count:
                    os.kill(os.getpid(), name)
                seen += 1

        try:
            sys.addaudithook(hook)
            function()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def race(*functions):
    """Run functions at the same time, each in a forked child; return when all have finished."""
    start, go = os.pipe()
    children = []
    for function in functions:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(go)
                os.read(start, 1)  # until the parent closes its end
                function()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(start)
    os.close(go)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
