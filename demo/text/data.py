"""Text that every machine has: the source of Python's standard library, character by character.

The files are those of the top folder of the running Python's library, so that two machines with
one version of Python read the same text; generated files, which differ from build to build, are
left out. Modules, not lines, are held out: nothing of a module that a model is judged by was seen
in training.
"""

import functools
import sysconfig
from pathlib import Path

import numpy as np

CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))
"""Characters with their own token; all others share the last token."""

VOCABULARY = len(CHARACTERS) + 1
UNKNOWN = VOCABULARY - 1

HELD_OUT = ("bisect", "calendar", "configparser", "dataclasses", "fnmatch", "ftplib", "heapq",
            "queue", "shlex", "statistics", "tempfile", "textwrap")
"""Modules that no training and no calibration reads."""

LOCAL = ("_sysconfigdata", "sitecustomize", "usercustomize")  # written by whoever built Python

_TOKENS = np.full(0x110000, UNKNOWN, dtype="int64")
_TOKENS[list(map(ord, CHARACTERS))] = np.arange(len(CHARACTERS))


def encode(text):
    """Tokens of a text: int64 [characters]."""
    return _TOKENS[np.array([ord(each) for each in text], dtype="int64")]


def decode(tokens):
    """The text of tokens; the token of unknown characters becomes U+FFFD."""
    return "".join((CHARACTERS + "\ufffd")[each] for each in np.asarray(tokens).tolist())


def read_modules(folder):
    """Source text of each module in a folder, by name, in alphabetical order.

    Raises:
        FileNotFoundError: if there is nothing to train with, or nothing held out.
    """
    found = {path.stem: path.read_text(encoding="utf-8", errors="replace")
             for path in sorted(Path(folder).glob("*.py")) if not path.stem.startswith(LOCAL)}
    if not set(HELD_OUT) & set(found) or not set(found) - set(HELD_OUT):
        raise FileNotFoundError(
            f"{folder} has {len(found)} modules, which is not Python's library as source: the "
            f"text is read from there, and {', '.join(HELD_OUT)} are the modules held out")
    return found


@functools.lru_cache(maxsize=1)
def modules():
    """Return the result of :func:`read_modules` for the library of the running Python."""
    return read_modules(sysconfig.get_paths()["stdlib"])


@functools.lru_cache(maxsize=1)
def training_tokens():
    """All modules that are not held out, one after the other: int64 [characters]."""
    return encode("\n".join(text for name, text in modules().items() if name not in HELD_OUT))


@functools.lru_cache(maxsize=4)
def held_out_tokens(limit=None):
    """The modules held out, one after the other: int64 [characters].

    Args:
        limit: about how many characters. Each module gives the same share of itself, its first.
    """
    texts = [modules()[name] for name in HELD_OUT if name in modules()]
    share = 1.0 if limit is None else min(1.0, limit / sum(map(len, texts)))
    return encode("\n".join(text[:int(len(text) * share)] for text in texts))


def random_windows(tokens, count, length, rng):
    """``count`` pieces of a text, from random places: int64 [count, length]."""
    starts = rng.integers(0, len(tokens) - length + 1, count)
    return tokens[starts[:, None] + np.arange(length)]


def calibration_batches(batches=4, batch_size=16, length=128, seed=0):
    """Batches of the training text, from random places: a list of int64 arrays
    [batch_size, length].
    """
    rng = np.random.default_rng(seed)
    return [random_windows(training_tokens(), batch_size, length, rng) for _ in range(batches)]
