"""Perplexity of language models, and the divergence of their logits from the float model's."""

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Optional, Union

import numpy as np
import paddle
from paddle import nn

from .._atomic_write import write_together
from .._checks import check_int, check_layer, check_path, wrong_type, wrong_value
from ..engine import eager_evaluation
from ..errors import ConfigError, FormatError, ModelError, NonFiniteError
from .sqnr import float_tensors

_ROWS = 64  # positions whose logits are converted to float64 at a time


@dataclass(frozen=True)
class Perplexity:
    """Result of :func:`perplexity`.

    Attributes:
        value: exp of the mean negative log-likelihood of the scored tokens.
        tokens: number of scored tokens.
        float_value: perplexity of the float model. None without one.
        kl_divergence: mean of KL(float || model) over the scored tokens, in nats. None without a
            float model.
        top1_agreement: share of the scored tokens for which the likeliest token of both models is
            the same. None without a float model.

    Examples:
        >>> from paddleq.analysis import Perplexity
        >>> print(Perplexity(11.98, 4088, 11.46, 0.031, 0.93))
        perplexity 11.980 over 4088 tokens; float 11.460 (+4.54%), KL divergence 0.0310, same top-1
        93.00%
    """

    value: float
    tokens: int
    float_value: Optional[float] = None
    kl_divergence: Optional[float] = None
    top1_agreement: Optional[float] = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        text = f"perplexity {self.value:.3f} over {self.tokens} tokens"
        if self.float_value is None:
            return text
        loss = self.value / self.float_value - 1.0
        return (f"{text}; float {self.float_value:.3f} ({loss:+.2%}), KL divergence "
                f"{self.kl_divergence:.4f}, same top-1 {self.top1_agreement:.2%}")


@dataclass(frozen=True)
class _Window:
    """Tokens [1, tokens] of a forward pass, and the first position whose token is scored."""

    tokens: np.ndarray
    first: int


def perplexity(model: nn.Layer, data: Any, *, tokenize: Optional[Callable] = None,
               window: int = 512, stride: Optional[int] = None,
               max_tokens: Optional[int] = None, float_model: Optional[nn.Layer] = None,
               cache: Union[str, "os.PathLike[str]", None] = None) -> Perplexity:
    """Compute the perplexity of a causal language model on a text.

    The text is cut into windows of ``window`` tokens that begin ``stride`` tokens apart. A token is
    scored once, in the first window that has a token before it. Without overlap, the first token of
    each window is not scored; with overlap, only the first one of the text is not.

    Args:
        model: called with int64 tokens [1, tokens]. Its output is the logits [1, tokens,
            vocabulary], or contains them as its first float tensor of that shape.
        data: path of a UTF-8 text file; tokens, an array or tensor of integers [tokens]; or an
            iterable of such arrays, texts that do not continue each other.
        tokenize: function from a str to a sequence of token numbers, for a text file.
        window: number of tokens in a forward pass, at least 2. Default 512.
        stride: number of tokens between the beginnings of windows, at most ``window``. Default
            None: ``window``, windows do not overlap.
        max_tokens: use only that many tokens, the first. Default None: all.
        float_model: model with whose logits those of ``model`` are compared.
        cache: path of a file with the log-probabilities of the float model. It is written if it
            does not exist, and read otherwise; ``float_model`` is not called then and may be None.
            A token takes 4 bytes times the size of the vocabulary.

    Returns:
        A :class:`Perplexity`.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid, or the text has less than two tokens.
        FormatError: ``cache`` was written for other tokens, windows or vocabulary, or the text file
            cannot be read.
        ModelError: the model returns no logits of the expected shape.
        NonFiniteError: logits are NaN or infinite.

    Examples:
        >>> import numpy as np
        >>> import paddle
        >>> from paddleq.analysis import perplexity
        >>> model = paddle.nn.Embedding(4, 4)  # the logits depend on the last token
        >>> model.weight.set_value(paddle.zeros([4, 4]))
        >>> result = perplexity(model, np.array([0, 1, 2, 3, 0]), window=3)
        >>> round(result.value, 4), result.tokens
        (4.0, 3)
        >>> perplexity(model, np.array([0, 1, 2, 3, 0]), window=3, stride=2).tokens
        4
    """
    check_layer("model", model)
    check_int("window", window, 2)
    stride = window if stride is None else check_int("stride", stride, 1, window)
    if max_tokens is not None:
        check_int("max_tokens", max_tokens, 2)
    windows = list(_windows(_texts(data, tokenize, max_tokens), window, stride))
    if not windows:
        raise ConfigError("data must have at least two tokens, one to predict and one before it")
    expected = _reference(windows, float_model, cache)
    loss, float_loss, divergence, same, count = 0.0, 0.0, 0.0, 0, 0
    for number, each in enumerate(windows):
        targets = each.tokens[0, each.first:]
        rows = np.arange(len(targets))
        found = _log_probabilities(model, each, "the model")
        loss -= found[rows, targets].sum()
        count += len(targets)
        if expected is not None:
            wanted = expected(number)
            _check_same_size(wanted, found)
            float_loss -= wanted[rows, targets].sum()
            divergence += sum((np.exp(w) * (w - f)).sum() for w, f in zip(wanted, found))
            same += (wanted.argmax(-1) == found.argmax(-1)).sum()
    value = math.exp(loss / count)
    if expected is None:
        return Perplexity(value, count)
    return Perplexity(value, count, math.exp(float_loss / count), float(divergence / count),
                      float(same / count))


def _texts(data, tokenize, limit) -> Iterator[np.ndarray]:
    """Yield int64 arrays [tokens], at most ``limit`` tokens in all."""
    left = math.inf if limit is None else limit
    for text in _token_arrays(data, tokenize):
        text = text[:int(min(left, len(text)))]
        left -= len(text)
        yield text
        if left <= 0:
            return


def _token_arrays(data, tokenize):
    if isinstance(data, (str, os.PathLike)):
        path = check_path("data", data, "the path of a text file, or tokens")
        if tokenize is None or not callable(tokenize):
            raise wrong_type("tokenize", tokenize, "a function from a str to tokens, because data "
                             "is the path of a text file")
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} is no readable UTF-8 text file: {error}") from error
        yield _tokens(tokenize(text), "the result of tokenize")
    elif _is_row(data):
        yield _tokens(data, "data")
    elif isinstance(data, Iterable):
        for number, text in enumerate(data):
            yield _tokens(text, f"entry {number} of data")
    else:
        raise wrong_type("data", data, "a path, an array of tokens or an iterable of such arrays")


def _is_row(data):
    return (isinstance(data, (np.ndarray, paddle.Tensor)) and len(data.shape) == 1
            or isinstance(data, (list, tuple)) and bool(data)
            and all(isinstance(each, (int, np.integer)) for each in data))


def _tokens(value, name):
    array = value.numpy() if isinstance(value, paddle.Tensor) else np.asarray(value)
    if array.ndim != 1 or array.size and array.dtype.kind not in "iu":
        raise wrong_value(f"the shape and type of {name}", f"{list(array.shape)} of {array.dtype}",
                          "[tokens] of integers")
    return array.astype("int64")


def _windows(texts, window, stride):
    for text in texts:
        scored = 1  # number of tokens that are scored, or never will be
        for start in range(0, len(text), stride):
            stop = min(start + window, len(text))
            first = max(scored - start, 1)
            if stop - start > first:
                yield _Window(text[None, start:stop], first)
            scored = stop
            if stop == len(text):
                break


def _log_probabilities(model, window, name) -> Any:
    """Return the log-probabilities of the scored positions, float64 [tokens, vocabulary]."""
    with eager_evaluation(model):
        output = model(paddle.to_tensor(window.tokens))
    size = window.tokens.shape[1]
    logits = next((each for each in float_tensors(output)
                   if len(each.shape) == 3 and list(each.shape[:2]) == [1, size]), None)
    if logits is None:
        raise ModelError(f"{name} must return logits [1, {size}, vocabulary] for tokens [1, {size}]"
                         f", but its float outputs are of the shapes "
                         f"{[list(each.shape) for each in float_tensors(output)]}")
    if logits.shape[2] <= int(window.tokens.max()):
        raise ModelError(f"data has the token {int(window.tokens.max())}, but {name} has logits of "
                         f"{logits.shape[2]} tokens; use the tokenizer of the model")
    logits = logits[0, window.first - 1:size - 1].astype("float32").numpy()
    found = np.empty(logits.shape, "float64")
    for start in range(0, len(logits), _ROWS):
        part = logits[start:start + _ROWS].astype("float64")
        part -= part.max(-1, keepdims=True)
        found[start:start + _ROWS] = part - np.log(np.exp(part).sum(-1, keepdims=True))
    if not np.isfinite(found).all():
        raise NonFiniteError(f"{name} has NaN or infinite logits")
    return found


def _check_same_size(expected, found):
    if expected.shape != found.shape:
        raise ModelError(f"the float model has logits of {expected.shape[1]} tokens, but the model "
                         f"of {found.shape[1]}; they must be the same network")


def _reference(windows, model, cache) -> Optional[Callable[[int], np.ndarray]]:
    """Return a function from the number of a window to log-probabilities of the float model."""
    if model is not None:
        check_layer("float_model", model)
    if cache is None:
        return model and (lambda number: _log_probabilities(model, windows[number],
                                                            "the float model"))
    path = check_path("cache", cache, "the path of a file")
    if not os.path.exists(path):
        if model is None:
            raise ConfigError(f"float_model must be given, because there is no file {path} yet")
        write_together({path: lambda target: _write_cache(target, windows, model)})
    stored = _read_cache(path, windows)
    stops = np.cumsum([_scored(each) for each in windows])
    return lambda number: stored[stops[number] - _scored(windows[number]):stops[number]].astype(
        "float64")


def _scored(window):
    return window.tokens.shape[1] - window.first


def _digest(windows):
    """Return the SHA-256 of what is scored."""
    digest = hashlib.sha256()
    for each in windows:
        digest.update(np.array([each.first, each.tokens.shape[1]], dtype="int64").tobytes())
        digest.update(each.tokens.tobytes())
    return digest.digest()


def _write_cache(path, windows, model):
    """Write a .npy of float32 [scored tokens, vocabulary], and the digest behind it."""
    rows, start = sum(map(_scored, windows)), 0
    stored: Any = None
    for each in windows:
        found = _log_probabilities(model, each, "the float model")
        if stored is None:
            stored = np.lib.format.open_memmap(path, "w+", "float32", (rows, found.shape[1]))
        stored[start:start + len(found)] = found
        start += len(found)
    stored.flush()
    with open(path, "ab") as file:
        file.write(_digest(windows))


def _read_cache(path, windows):
    try:
        stored = np.lib.format.open_memmap(path, "r")
        with open(path, "rb") as file:
            file.seek(-len(_digest([])), os.SEEK_END)
            digest = file.read()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is no file of log-probabilities: {error}") from error
    if digest != _digest(windows):
        raise FormatError(f"{path} has the log-probabilities of other tokens or windows; remove it "
                          "or choose another cache")
    return stored
