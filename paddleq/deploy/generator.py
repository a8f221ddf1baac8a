"""``Generator``: text from an exported decoder whose caches are inputs and outputs."""

import os
import time
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, List, Optional, Union

import numpy as np

from .._checks import check_float, check_int, wrong_type, wrong_value
from ..errors import ConfigError, ModelError
from .predictor import Predictor

ENDED = -1
"""Number in place of a token of a sequence that has ended."""


@dataclass(frozen=True)
class Generation:
    """Result of :meth:`Generator.generate`.

    Attributes:
        tokens: new tokens of each sequence, int64 arrays, without the stop token.
        first_token_seconds: time of the pass over the prompt.
        tokens_per_second: steps after the first token in a second, times the sequences. None with
            less than two tokens.

    Examples:
        >>> import numpy
        >>> from paddleq.deploy import Generation
        >>> Generation([numpy.array([5, 3])], 0.1, 20.0).tokens[0].tolist()
        [5, 3]
    """

    tokens: List[np.ndarray]
    first_token_seconds: float
    tokens_per_second: Optional[float]


class Generator:
    """Greedy decoding and sampling with an exported decoder.

    The first input of the file is the tokens, int64 [batch, tokens], and the others are the keys
    and values of past tokens. The first output is the logits [batch, tokens, vocabulary], and the
    others are the new keys and values in the order of the inputs. An input of the past has two
    dynamic dimensions: the batch, which is the first, and the tokens. Generation starts with no
    past token.

    Args:
        path: prefix of the files or one of them, as for :class:`Predictor`.
        runtime: name of a runtime, as for :class:`Predictor`. Default "onnxruntime".
        threads: number of threads. Default: the processors of this process.
        context: largest number of tokens of prompt and text. Default None: not limited here.

    Raises:
        ModelError: the file has other inputs or outputs.
        FormatError, DependencyError, ConfigError, InferenceError: as :class:`Predictor`.

    Examples:
        >>> import tempfile, numpy, paddle, paddleq
        >>> class Decoder(paddle.nn.Layer):
        ...     '''Logits of the sum of all tokens so far, which are one-hot vectors.'''
        ...     def forward(self, tokens, past):
        ...         new = paddle.nn.functional.one_hot(tokens, 4)
        ...         past = paddle.concat([past, new], axis=1)
        ...         return past.sum(1, keepdim=True) + 0.0 * new, past
        >>> path = tempfile.mkdtemp() + "/decoder"
        >>> spec = [paddle.static.InputSpec([None, None], "int64", "tokens"),
        ...         paddle.static.InputSpec([None, None, 4], "float32", "past")]
        >>> _ = paddleq.export.to_onnx(Decoder(), path, spec)
        >>> with paddleq.deploy.Generator(path, threads=1) as generator:
        ...     generator.generate([2, 1, 2], max_tokens=3).tokens[0].tolist()
        [2, 2, 2]
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"], runtime: str = "onnxruntime",
                 threads: Optional[int] = None, context: Optional[int] = None):
        self.context = None if context is None else check_int("context", context, 1)
        self._predictor = Predictor(path, runtime, threads)
        try:
            self._caches = self._predictor.inputs[1:]
            self._check()
        except BaseException:
            self._predictor.close()
            raise

    def _check(self):
        tokens, found = self._predictor.inputs[0], self._predictor
        if tokens.dtype not in ("int64", "int32") or len(tokens.shape) != 2:
            raise ModelError(f"the first input of {found.file} must be tokens [batch, tokens], but "
                             f"is {tokens.dtype} of the shape {list(tokens.shape)}")
        if not self._caches or len(found.outputs) != len(found.inputs):
            raise ModelError(f"{found.file} must have keys and values as inputs behind the tokens, "
                             "and as many outputs behind the logits, but has "
                             f"{len(found.inputs)} inputs and {len(found.outputs)} outputs")
        for each in self._caches:
            if each.shape[0] is not None or each.shape[1:].count(None) != 1:
                raise ModelError(f"the input {each.name!r} of {found.file} must have two dynamic "
                                 "dimensions, batch and tokens, but has the shape "
                                 f"{list(each.shape)}")

    def generate(self, tokens: Any, max_tokens: int, **options: Any) -> Generation:
        """Generate all tokens; the arguments are those of :meth:`stream`."""
        started = time.perf_counter()
        times, steps = [], []
        for step in self.stream(tokens, max_tokens, **options):
            times.append(time.perf_counter())
            steps.append(step)
        columns = np.stack(steps, axis=1)
        speed = None
        if len(times) > 1:
            speed = (len(times) - 1) * len(columns) / (times[-1] - times[0])
        return Generation([row[row != ENDED] for row in columns], times[0] - started, speed)

    def stream(self, tokens: Any, max_tokens: int, *, temperature: float = 0.0,
               top_k: Optional[int] = None, top_p: Optional[float] = None,
               seed: Optional[int] = None, stop: Iterable[int] = ()) -> Iterator[np.ndarray]:
        """Yield the next token of each sequence, int64 [batch], step by step.

        In place of a stop token and of all tokens behind it there is -1. The iterator ends after
        ``max_tokens`` steps, or with the step in which the last sequence ends.

        Args:
            tokens: prompt, integers [tokens] or [batch, tokens]; prompts of one length.
            max_tokens: number of tokens to generate.
            temperature: 0 (default): always the likeliest token. Otherwise the logits are divided
                by it, and the token is drawn from their softmax.
            top_k: draw from that many likeliest tokens. Default None: all.
            top_p: draw from the smallest set of likeliest tokens whose probabilities, after
                ``top_k``, sum up to at least that. Default None: all.
            seed: seed of the draws. Default None: other draws each time.
            stop: tokens that end a sequence.

        Raises:
            ConfigError, ConfigTypeError: an argument is invalid.
        """
        prompt = _prompt(tokens)
        check_int("max_tokens", max_tokens, 1)
        if self.context is not None and prompt.shape[1] + max_tokens > self.context:
            raise ConfigError(f"prompt and text must have at most {self.context} tokens, but have "
                              f"{prompt.shape[1]} and {max_tokens}")
        check_float("temperature", temperature, 0.0, 1e6)
        if top_k is not None:
            check_int("top_k", top_k, 1)
        if top_p is not None:
            check_float("top_p", top_p, 0.0, 1.0, open_low=True)
        if temperature == 0.0 and (top_k is not None or top_p is not None):
            raise wrong_value("temperature", temperature, "above 0 with top_k or top_p")
        generator = np.random.default_rng(seed)
        stops = np.array(list(stop))
        if stops.size and stops.dtype.kind not in "iu":
            raise wrong_type("stop", stop, "integers, token numbers")
        return self._steps(prompt, max_tokens, stops, lambda logits: logits.argmax(-1)
                           if temperature == 0.0 else
                           _drawn(logits, temperature, top_k, top_p, generator))

    def _steps(self, prompt, max_tokens, stops, choose):
        past = [np.zeros([len(prompt), *(size or 0 for size in each.shape[1:])], each.dtype)
                for each in self._caches]
        ended, unread = np.zeros(len(prompt), dtype=bool), prompt
        kind = self._predictor.inputs[0].dtype
        for _ in range(max_tokens):
            logits, *past = self._predictor.run([unread.astype(kind), *past])
            found = choose(logits[:, -1].astype("float64")).astype("int64")
            ended = ended | np.isin(found, stops)
            yield np.where(ended, ENDED, found)
            if ended.all():
                return
            unread = found[:, None]

    def close(self) -> None:
        """Release the model."""
        self._predictor.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _prompt(tokens):
    try:
        array = np.asarray(tokens)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
        raise wrong_type("tokens", tokens, "integers [tokens] or [batch, tokens], at least one "
                         "token; generate prompts of different lengths one after the other")
    return np.atleast_2d(array).astype("int64")


def _drawn(logits, temperature, top_k, top_p, generator):
    """Draw a token from each row."""
    shares = probabilities(logits, temperature, top_k, top_p)
    return np.array([generator.choice(len(row), p=row) for row in shares])


def probabilities(logits: np.ndarray, temperature: float, top_k: Optional[int],
                  top_p: Optional[float]) -> np.ndarray:
    """Return the probabilities with which :class:`Generator` draws, float64 [batch, vocabulary].

    Of tokens with equal logits, those of smaller number are kept.
    """
    logits = logits / temperature
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(shares, order, -1)
    if top_k is not None:
        ranked[:, top_k:] = 0.0
    ranked /= ranked.sum(-1, keepdims=True)
    if top_p is not None:
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked[before >= top_p] = 0.0
        ranked /= ranked.sum(-1, keepdims=True)
    np.put_along_axis(shares, order, ranked, -1)
    return shares
