"""``verify``: compare an exported model with its simulation, in accuracy, speed and size."""

import contextlib
import functools
import logging
import os
from dataclasses import dataclass, field
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import numpy as np
import paddle
from paddle import nn

from .._atomic_write import temporary_folder
from .._checks import check_float, check_int, wrong_type
from ..engine.state import evaluation
from ..errors import ConfigError, PaddleqError
from ..saved_model.inputs import as_numpy, check_inputs
from .agreement import in_order
from .float_model import arguments_of, cause, float_models, without_quantizers
from .metrics import latencies, output_shapes, relative_error, top1_agreement
from .model_file import model_files, most_readable
from .runtimes import RUNTIMES
from .runtimes.base import load_reference
from .worst_layer import worst_layer, worst_operator

_logger = logging.getLogger("paddleq")


@dataclass
class RuntimeResult:
    """Result of one file in one runtime.

    Attributes:
        runtime: name of the runtime; "reference" for the operators of the file one by one, in
            float.
        version: version of the runtime.
        file: path of the file.
        top1: share of samples with the top-1 class of the reference; None without scores.
        error: relative L2 distance of the outputs from the reference's.
        ms, float_ms: latency of this model and of the float model; None if not measured.
        size, float_size: size of the files in bytes.
        worst_layer: (name, error before it, error after it) of the layer at which the error of the
            runtime increases most; None if not searched.
        float_error: where ``ok`` is False: error of the float model in this runtime, relative to
            its own operators one by one; None if it was not computed.
        fallback: reason why float kernels computed a quantized model; "" where int8 kernels did.
        problem: reason why ``ok`` is False, or None. It says whether the float model has the same
            problem in this runtime, which then is not due to quantization.

    Examples:
        >>> from paddleq.deploy import RuntimeResult
        >>> RuntimeResult("onnxruntime", "1.31.1", "out/net.onnx", ms=2.0, float_ms=5.0).speedup
        2.5
    """

    runtime: str
    version: str
    file: str
    top1: Optional[float] = None
    error: Optional[float] = None
    ms: Optional[float] = None
    float_ms: Optional[float] = None
    size: Optional[int] = None
    float_size: Optional[int] = None
    worst_layer: Optional[Tuple[str, float, float]] = None
    float_error: Optional[float] = None
    fallback: str = ""
    problem: Optional[str] = None

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return self.problem is None

    @property
    def speedup(self) -> Optional[float]:
        """Speedup over the float model; None if not measured."""
        return None if self.ms is None or self.float_ms is None else self.float_ms / self.ms


_COLUMNS = (
    ("runtime", lambda row: f"{row.runtime} {row.version}".strip()),
    ("file", lambda row: row.file.rpartition(".")[2]),
    ("top-1", lambda row: _number(row.top1, "{:.2%}")),
    ("error", lambda row: _number(row.error, "{:.1e}")),
    ("ms", lambda row: _number(row.ms, "{:.2f}")),
    ("FP32 ms", lambda row: _number(row.float_ms, "{:.2f}")),
    ("faster", lambda row: _number(row.speedup, "{:.2f}x")),
    ("MB", lambda row: _number(row.size and row.size / 1e6, "{:.2f}")),
    ("of FP32", lambda row: _number(row.float_size and row.size / row.float_size, "{:.3f}")),
    ("", lambda row: "ok" if row.ok else "NO"),
)


@dataclass
class Report:
    """Report of :func:`~paddleq.deploy.verify`, with a row for each file in each runtime.

    Attributes:
        path: path of the verified model.
        samples: number of compared samples.
        rows: list of :class:`RuntimeResult`.

    Examples:
        >>> from paddleq.deploy import Report
        >>> Report("out/net", 0).ok
        False
    """

    path: str
    samples: int
    rows: List[RuntimeResult] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if there are rows and none has a problem."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def __str__(self) -> str:
        columns = []
        for number, (title, cell) in enumerate(_COLUMNS):
            column, justify = [title, *map(cell, self.rows)], str.rjust if number > 1 else str.ljust
            columns.append([justify(text, max(map(len, column))) for text in column])
        lines = [f"{self.path}, {self.samples} samples"]
        lines += ["  ".join(row).rstrip() for row in zip(*columns)]
        for row in self.rows:
            notes = [row.fallback, row.problem]
            if row.worst_layer:
                layer, before, after = row.worst_layer
                notes.append(f"worst layer {layer}, error {before:.1e} before it and {after:.1e} "
                             "after it")
            lines += [f"{row.runtime}, {row.file}: {note}" for note in notes if note]
        return "\n".join(lines)


def _number(value, form):
    return "-" if value is None else form.format(value)


def verify(path: Union[str, "os.PathLike[str]"], reference: Any, data: Any,
           float_model: Union[str, "os.PathLike[str]", None] = None,
           runtimes: Optional[Sequence[str]] = None, threads: int = 1, top1: float = 0.99,
           error: float = 0.1, seconds: float = 0.5, timed_samples: int = 1) -> Report:
    """Run an exported model in every installed runtime and compare it with its simulation.

    Each file is also computed operator by operator in float, in the rows named "reference". An
    error there is an error of the export; an error in other rows only comes from the runtime, which
    may round where the simulation does not. If the error of a runtime is too large, the report
    names the layer at which it increases most.

    Args:
        path: prefix of the files, or one of them (as for :class:`Predictor`).
        reference: source of the expected outputs: the quantized ``paddle.nn.Layer``, also one that
            takes keyword arguments or a dict, by the names of the inputs; a function of arrays; the
            path of a saved model, computed operator by operator; or None for the file itself.
            Outputs in a dict are those of the file in the order of the keys.
        data: a batch or an iterable of batches, each as :meth:`Predictor.run` takes it.
        float_model: path of the float model, for comparison of speed and size. Default: the float
            model of a quantized Layer, else none.
        runtimes: list of names. Default: all of "openvino", "onnxruntime" and "paddle" that are
            installed. "paddlelite" runs only if it is listed: its kernels for x86 compute
            no quantized Linear, and convolutions with weights of at most 7 bits.
        threads: number of threads of one run. Default 1.
        top1: minimal share of samples with the top-1 class of the reference. Default 0.99.
        error: maximal relative L2 distance of the outputs. Default 0.1. (Paddle Inference rounds
            between operators too, which costs a few percent.)
        seconds: duration of the latency measurement of each runtime; 0 for none. Default 0.5.
        timed_samples: maximal batch size of the measurement. Default 1.

    Returns:
        A :class:`Report`: ``str`` of it is a table, ``ok`` is True if all runtimes agree, ``rows``
        holds a :class:`RuntimeResult` for each file in each runtime.

    Raises:
        FormatError: the model is missing or damaged.
        ConfigError, ConfigTypeError: a wrong argument, or a batch that does not fit the model.
        DependencyError: a listed runtime is not installed.

    Examples:
        >>> import tempfile, numpy, paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(16, 4))
        >>> batches = [numpy.random.rand(8, 16).astype("float32") for _ in range(4)]
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, batches)
        >>> path = tempfile.mkdtemp() + "/net"
        >>> ptq.save_quantized_model(quantized, path)
        >>> report = paddleq.deploy.verify(path, quantized, batches, top1=0.9, seconds=0.0)
        >>> report.ok
        True
        >>> str(report).splitlines()[1].split()[:4]
        ['runtime', 'file', 'top-1', 'error']
    """
    check_int("threads", threads, 1)
    check_float("top1", top1, 0.0, 1.0)
    check_float("error", error, 0.0, float("inf"))
    check_float("seconds", seconds, 0.0, float("inf"), open_high=True)
    check_int("timed_samples", timed_samples, 1)
    files, names = model_files(path), _names(runtimes)
    readable = most_readable(files)
    batches = _check_batches(data, readable.inputs)
    expected = _reference_outputs(reference, readable, batches)
    report = Report(os.fspath(path), sum(len(batch[0]) for batch in batches))
    with temporary_folder() as folder:
        check = _Check([info.name for info in readable.inputs], batches, expected,
                       float_models(reference, float_model, folder), threads, top1, error, seconds,
                       timed_samples)
        report.rows += [check.row(file) for file in files]
        report.rows += [check.row(file, RUNTIMES[name]) for name in names for file in files
                        if file.kind in RUNTIMES[name].kinds]
    return report


def _names(runtimes):
    if runtimes is None:
        return [name for name, runtime in RUNTIMES.items()
                if runtime.automatic and runtime.installed()]
    if isinstance(runtimes, str) or not isinstance(runtimes, (list, tuple)):
        raise wrong_type("runtimes", runtimes, "a list of names of runtimes")
    for name in runtimes:
        RUNTIMES[RUNTIMES.check(name, "runtimes")].require()
    return list(runtimes)


def _reference_outputs(reference, file, batches):
    """Return the outputs of the reference of the model in ``file`` for each batch."""
    if reference is None or isinstance(reference, (str, os.PathLike)):
        given = file
        if reference is not None:
            file = most_readable(model_files(reference))
        with contextlib.closing(load_reference(file)) as session:
            names = [info.name for info in given.inputs]
            return [session.run(in_order(session, names, batch)) for batch in batches]
    if isinstance(reference, nn.Layer):
        with evaluation(reference), paddle.no_grad():
            found = []
            for batch in batches:
                args, kwargs = arguments_of(reference, file, map(paddle.to_tensor, batch))
                found.append(_flatten(reference(*args, **kwargs)))
            return found
    if callable(reference):
        return [_flatten(reference(*batch)) for batch in batches]
    raise wrong_type("reference", reference, "a paddle.nn.Layer, a function of arrays, the path "
                                             "of a saved model, or None for the file itself")


def _flatten(value):
    """Return the arrays of a nested output; those of a dict by its keys, as in a file of Paddle."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [array for each in value for array in _flatten(each)]
    return [] if value is None else [as_numpy(value)]


def _check_batches(data, expected):
    """Return ``data`` as a list of batches, each a list of arrays that fit the model."""
    if hasattr(data, "shape") or isinstance(data, dict):
        data = [data]
    try:
        data = iter(data)
    except TypeError:
        raise wrong_type("data", data, "a batch or an iterable of batches") from None
    batches = [check_inputs(batch, expected) for batch in data]
    if not batches:
        raise ConfigError("data must hold at least one batch, but is empty")
    if not all(np.size(array) for batch in batches for array in batch):
        raise ConfigError("data must hold at least one sample in each batch")
    return batches


@dataclass
class _Check:
    """Options and reference outputs that all rows of one report share."""

    names: List[str]  # of the inputs, in the order of the arrays of a batch
    batches: list
    expected: list
    float_models: Callable
    threads: int
    top1: float
    error: float
    seconds: float
    timed_samples: int

    def row(self, file, runtime=None):
        """Compare a file with the reference, in a runtime or operator by operator."""
        name, version = ("reference", "") if runtime is None else (runtime.name, runtime.version())
        result = RuntimeResult(name, version, file.path, size=file.size)
        try:
            with contextlib.ExitStack() as stack:
                session = (load_reference(file) if runtime is None
                           else runtime.load(file, self.threads))
                stack.callback(session.close)
                result.fallback = session.fallback
                self.compare(result, session)
                if runtime is not None:
                    self.measure(result, runtime, file, session, stack)
            if runtime is not None and not result.ok:
                result.worst_layer = self.worst_layer(runtime, file)
        except PaddleqError as refusal:
            result.problem = str(refusal)
        if runtime is not None and not result.ok:
            result.problem = f"{result.problem}; {self.cause(result, runtime, file)}"
        return result

    def cause(self, result, runtime, file):
        with temporary_folder() as folder:
            float_model = self.float_models(file) or without_quantizers(file, folder)
            operator = functools.partial(self.searched, worst_operator, runtime)
            return cause(result, runtime, file, float_model, self.outputs, self.threads, operator)

    def worst_layer(self, runtime, file):
        return self.searched(worst_layer, runtime, file)

    def searched(self, search, runtime, file):
        try:
            return search(file, runtime, self.threads,
                          in_order(file, self.names, self.batches[0]))
        except PaddleqError as error:  # a part of the model may be refused
            _logger.warning("%s: search of the worst layer failed: %s", file, error)
            return None

    def outputs(self, session):
        """Return the outputs of a session for each batch."""
        return [session.run(in_order(session, self.names, batch)) for batch in self.batches]

    def compare(self, result, session):
        found = self.outputs(session)
        shapes, expected = output_shapes(found), output_shapes(self.expected)
        if shapes != expected:
            raise ConfigError(f"it returns {', '.join(map(str, shapes[0]))}, the reference "
                              f"{', '.join(map(str, expected[0]))}")
        result.top1 = top1_agreement(found, self.expected)
        result.error = relative_error(found, self.expected)
        wrong = []
        if result.top1 is not None and result.top1 < self.top1:
            wrong.append(f"top-1 agrees on {result.top1:.2%} of the samples, less than "
                         f"{self.top1:.2%}")
        if not result.error <= self.error:
            wrong.append(f"the error is {result.error:.1e}, more than {self.error:g}")
        result.problem = "; ".join(wrong) or None

    def measure(self, result, runtime, file, session, stack):
        if not self.seconds:
            return
        sessions, float_model = {"this": session}, self.float_models(file)
        if float_model is not None:
            result.float_size = float_model.size
            sessions["float"] = runtime.load(float_model, self.threads)
            stack.callback(sessions["float"].close)
        few = {info.name: array[:self.timed_samples]
               if info.shape is not None and info.shape[0] is None else array
               for info, array in zip(session.inputs, in_order(session, self.names,
                                                               self.batches[0]))}
        times = latencies(sessions, {name: in_order(each, list(few), few.values())
                                     for name, each in sessions.items()}, self.seconds)
        result.ms, result.float_ms = times["this"], times.get("float")
