"""``verify``: does an exported model compute what was simulated, how fast, and how large is it?"""

import logging
import os
import tempfile
from contextlib import ExitStack, contextmanager

from .._checks import check_float, check_int, wrong_type
from ..errors import ConfigError, PaddleqError
from .float_baseline import float_twin
from .latency import latencies
from .metrics import relative_error, same_shapes, top1_agreement
from .model_file import model_files, most_readable
from .reference_outputs import as_it_stands, checked_batches, reference_outputs
from .runtimes import RUNTIMES
from .verify_report import Finding, Report
from .worst_layer import worst_layer

_logger = logging.getLogger("paddleq")
AS_IT_STANDS = "as it stands"


def verify(path, reference, data, float_model=None, runtimes=None, threads=1, top1=0.99,
           error=0.1, seconds=0.5, timed_samples=1):
    """Run an exported model in every installed runtime and compare it with its simulation.

    Each file of the model is also computed operator by operator, as it stands: what differs there
    is the export's doing, what differs only elsewhere is the runtime's, which for speed may round
    where the simulation does not. Where a runtime is too far off, the layer is named behind which
    it departs from the file.

    Args:
        path: prefix of the files, or one of them (as for :class:`Predictor`).
        reference: what the model should compute: the quantized ``paddle.nn.Layer``; a function of
            arrays; the path of a saved model, computed as it stands; or None: the file itself, as
            it stands.
        data: a batch or an iterable of batches, each as :meth:`Predictor.run` takes it.
        float_model: path of the float model, to measure speed and size against. Default: of a
            quantized Layer, the float model that is in it; else nothing is measured against.
        runtimes: list of names. Default: all of "openvino", "onnxruntime" and "paddle" that are
            installed. "paddlelite" is run where it is named only: its kernels for x86 compute no
            quantized Linear, and convolutions with weights of at most 7 bits.
        threads: of one run. Default 1.
        top1: least share of the samples whose largest score must be where the reference has it.
            Default 0.99.
        error: greatest relative L2 distance of the outputs. Default 0.1. (Paddle Inference
            rounds between operators too, and so is a few per cents off.)
        seconds: for each runtime, to measure how long a run takes. 0: not measured. Default 0.5.
        timed_samples: how many samples of the first batch such a run has, at most. Default 1.

    Returns:
        A :class:`Report`: ``str`` of it is a table, ``ok`` says whether all of them agree,
        ``rows`` holds a :class:`Finding` for each file in each runtime.

    Raises:
        FormatError: the model is missing or damaged.
        ConfigError, ConfigTypeError: a wrong argument, or a batch that does not fit the model.
        DependencyError: a runtime that was named is not installed.

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
    files = model_files(_checked_path("path", path))
    names = _names(runtimes)
    with ExitStack() as stack:
        check = _Check(files, reference, data, threads, top1, error, seconds, timed_samples)
        check.twins = stack.enter_context(_twins(files, reference, float_model))
        report = Report(os.fspath(path), sum(len(batch[0]) for batch in check.batches))
        for file in files:
            report.rows.append(check.as_it_stands(file))
        for name in names:
            for file in files:
                if file.kind in RUNTIMES[name].kinds:
                    report.rows.append(check.in_runtime(RUNTIMES[name], file))
    return report


def _checked_path(name, path):
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise wrong_type(name, path, "the prefix of a saved model such as 'out/model'")
    return path


def _names(runtimes):
    if runtimes is None:
        return [name for name, runtime in RUNTIMES.items()
                if runtime.automatic and runtime.installed()]
    if isinstance(runtimes, str) or not isinstance(runtimes, (list, tuple)):
        raise wrong_type("runtimes", runtimes, "a list of names of runtimes")
    for name in runtimes:
        RUNTIMES[RUNTIMES.check(name, "runtimes")].require()
    return list(runtimes)


@contextmanager
def _twins(files, reference, float_model):
    """Function: a file -> the file of the same kind of the float model, or None."""
    if float_model is not None:
        known = {each.kind: each for each in model_files(_checked_path("float_model",
                                                                       float_model))}
        yield lambda file: known.get(file.kind)
        return
    if not hasattr(reference, "sublayers"):
        yield lambda file: None
        return
    with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
        made = {}

        def twin(file):
            if file.kind not in made:
                made[file.kind] = float_twin(reference, file, folder)
            return made[file.kind]

        yield twin


class _Check:
    """What all findings of one report share."""

    twins = None

    def __init__(self, files, reference, data, threads, top1, error, seconds, timed_samples):
        self.threads, self.top1, self.error = threads, top1, error
        self.seconds, self.timed_samples = seconds, timed_samples
        file = most_readable(files)
        self.batches = checked_batches(data, file.ports)
        self.expected = reference_outputs(reference, file, self.batches)

    def as_it_stands(self, file):
        """How far the operators of a file are from the reference."""
        finding = Finding(AS_IT_STANDS, "", file.path, size=file.size)
        with _noted(finding):
            session = as_it_stands(file)
            self.compare(finding, session)
            session.close()
        return finding

    def in_runtime(self, runtime, file):
        """What a runtime makes of a file, and how fast."""
        finding = Finding(runtime.name, runtime.version(), file.path, size=file.size)
        with _noted(finding), ExitStack() as stack:
            session = runtime.load(file, self.threads)
            stack.callback(session.close)
            finding.fallback = session.fallback
            self.compare(finding, session)
            self.measure(finding, runtime, file, session, stack)
            if not finding.ok:
                finding.worst_layer = self.worst_layer(runtime, file)
        return finding

    def worst_layer(self, runtime, file):
        try:
            return worst_layer(file, runtime, self.threads, self.batches[0])
        except PaddleqError as error:  # a piece of the model may be refused where the whole is not
            _logger.warning("%s: the worst layer cannot be found: %s", file, error)
            return None

    def compare(self, finding, session):
        found = [session.run(batch) for batch in self.batches]
        if not same_shapes(found, self.expected):
            raise ConfigError(f"it returns {_shapes(found)}, the reference "
                              f"{_shapes(self.expected)}")
        finding.top1 = top1_agreement(found, self.expected)
        finding.error = relative_error(found, self.expected)
        wrong = []
        if finding.top1 is not None and finding.top1 < self.top1:
            wrong.append(f"top-1 agrees on {finding.top1:.2%} of the samples, less than "
                         f"{self.top1:.2%}")
        if not finding.error <= self.error:
            wrong.append(f"the outputs are {finding.error:.1e} away, more than {self.error:g}")
        finding.problem = "; ".join(wrong) or None

    def measure(self, finding, runtime, file, session, stack):
        if not self.seconds:
            return
        sessions, twin = {"this": session}, self.twins(file)
        if twin is not None:
            finding.float_size = twin.size
            sessions["float"] = runtime.load(twin, self.threads)
            stack.callback(sessions["float"].close)
        few = [array[:self.timed_samples] if port.shape is not None and port.shape[0] is None
               else array for port, array in zip(session.ports, self.batches[0])]
        times = latencies(sessions, few, self.seconds)
        finding.ms, finding.float_ms = times["this"], times.get("float")


@contextmanager
def _noted(finding):
    """What a runtime refuses is a finding, not the end."""
    try:
        yield
    except PaddleqError as error:
        finding.problem = str(error)


def _shapes(outputs):
    return ", ".join(str(list(getattr(each, "shape", []))) for each in outputs[0])

