"""A calibration or a training run, for VisualDL to show."""

import logging
import math
import os
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from itertools import chain

import paddle

from .._checks import check_int, wrong_type
from ..engine import capture_calls, check_quantized
from ..errors import DependencyError, FormatError, ModelError
from .distributions import Distributions
from .layer_errors import LayerErrors
from .scale_history import ScaleHistory, StepWatch, part_of

_logger = logging.getLogger("paddleq")

BUCKETS = 64  # of a histogram on VisualDL's page


class VisualDLLogger(paddle.callbacks.Callback):
    """Writes what VisualDL shows of quantization: ``visualdl --logdir vdl``.

    While it is open on a model, each step of training or calibration is looked at:

    - **scalars**: ``scale/...``, the scale of every quantizer (its threshold, as Paddle has it;
      where each channel has one, the largest and the smallest), and ``clipped/...``, the share of
      the values beyond it;
    - **histograms**: ``values/...``, what goes into every quantizer, activations and weights;
    - **images**, at the end: ``clipping/...``, the last of these histograms with lines where they
      are clipped.

    :meth:`log_errors` adds bars of the layers' errors, :meth:`log_graph` an exported model.

    Use it around any loop, ``with VisualDLLogger("vdl", net): ...``, or give it to
    ``paddle.Model.fit`` as a callback.

    Args:
        logdir: the folder that ``visualdl --logdir`` is told; made where it is not there. One of
            its own: of several files in one folder VisualDL shows the last.
        model: the quantized model. None where ``paddle.Model.fit`` says it.
        every: write scales each ``every`` steps. Default 10.
        histograms: write histograms each ``histograms`` steps; they take time: the values are
            fetched. 0: never. Default 100.

    Attributes:
        history: the :class:`~paddleq.analysis.ScaleHistory` of what was written, which
            :func:`~paddleq.analysis.report` takes.

    Raises:
        DependencyError: VisualDL or matplotlib is not installed.
        ConfigError, ConfigTypeError, ModelError: an argument is wrong.

    Examples:
        >>> import os, paddle, paddleq
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> net = ptq.quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> data = [paddle.to_tensor([[0.5, 1.0]]), paddle.to_tensor([[3.0, -2.0]])]
        >>> with paddleq.analysis.VisualDLLogger("vdl", net, every=1) as logger:
        ...     _ = ptq.calibrate(net, data)
        ...     logger.log_errors(paddleq.analysis.layer_errors(net, data))
        >>> any(name.startswith("vdlrecords.") for name in os.listdir("vdl"))
        True
    """

    def __init__(self, logdir, model=None, every=10, histograms=100):
        super().__init__()
        if not isinstance(logdir, (str, os.PathLike)) or not str(logdir):
            raise wrong_type("logdir", logdir, "a folder's path")
        self.logdir = os.fspath(logdir)
        self.every = check_int("every", every, 1)
        self.histograms = check_int("histograms", histograms, 0)
        if model is not None:
            check_quantized(model)
        self.network = model
        self.history = ScaleHistory(every=every)
        self._writer = _log_writer(self.logdir)
        self._watch, self._open_layers, self._seen = None, None, None
        self._step = 0

    def __enter__(self):
        if self.network is None:
            raise ModelError("VisualDLLogger needs a model to watch: VisualDLLogger(logdir, model)")
        self._open()
        return self

    def __exit__(self, *_error):
        self.close()

    def on_train_begin(self, logs=None):
        """``paddle.Model.fit`` begins."""
        check_quantized(self.model.network)
        self.network = self.model.network
        self._open()

    def on_train_end(self, logs=None):
        """``paddle.Model.fit`` has ended."""
        self.close()

    def log_errors(self, errors, step=None):
        """Write an image of the errors of layers, as bars, and the SQNR of the output as a scalar.

        Args:
            errors: what :func:`~paddleq.analysis.layer_errors` returned.
            step: the step that they belong to. Default: the number of steps so far.

        Raises:
            ConfigTypeError: ``errors`` is something else.
        """
        from .report.figures import error_bars

        if not isinstance(errors, LayerErrors):
            raise wrong_type("errors", errors, "what layer_errors() returns")
        step = self._step if step is None else check_int("step", step, 0)
        self._writer.add_image("errors of layers/SQNR", error_bars(errors), step)
        if errors.output is not None and math.isfinite(errors.output):
            self._writer.add_scalar("SQNR/output", errors.output, step)
        self._settle()

    def log_graph(self, path):
        """Put an exported model into the folder, where VisualDL's page of graphs finds it.

        Args:
            path: its prefix, as ``save_quantized_model`` was told; ``path.pdmodel`` is copied.

        Raises:
            FormatError: there is no such file.
        """
        source = f"{os.fspath(path)}.pdmodel"
        if not os.path.isfile(source):
            raise FormatError(f"there is no file {source}; export the model as .pdmodel first: "
                              "save_quantized_model(model, path)")
        shutil.copyfile(source, os.path.join(self.logdir, os.path.basename(source)))

    def close(self):
        """Look no more, and write what is left."""
        self._release()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._write_images()
        self._writer.close()

    def _open(self):
        self._watch = StepWatch(self.network, self._before, self._after)
        self._watch.step = self._step

    def _settle(self):
        # While nothing is watched nobody may call close() any more.
        if self._watch is None:
            self._writer.close()
        else:
            self._writer.flush()

    def _before(self):
        self._release()  # the last pass may have raised
        if self._histogram_due(self._watch.step):
            self._seen = _LoggedDistributions(self.network, self._writer, self._watch.step)
            self._open_layers = ExitStack()
            self._open_layers.enter_context(capture_calls(self._seen.layers, self._seen.see))

    def _after(self, step):
        self._release()
        self._step = step + 1
        if step % self.every == 0:
            self.history.record(self.network, step)
            for name, scales in self.history.scales.items():
                if scales[-1].step == step:
                    self._write_scale(name, scales[-1])
        if self._histogram_due(step):
            self._seen.see_weights()
            for found in chain.from_iterable(self._seen.found.values()):
                if found.fixed and found.high is not None:
                    self._scalar("clipped", found.name, found.share, step)

    def _histogram_due(self, step):
        # Inside of a compiled program no layer can be looked at.
        return (self.histograms and step % self.histograms == 0
                and not hasattr(self.network.forward, "dygraph_function"))

    def _release(self):
        if self._open_layers is not None:
            self._open_layers.close()
            self._open_layers = None

    def _write_scale(self, name, scale):
        self._scalar("scale", name, scale.high, scale.step)
        if scale.low != scale.high:
            self._scalar("scale", name, scale.low, scale.step, ", smallest")

    def _scalar(self, group, quantizer, value, step, more=""):
        self._writer.add_scalar(_quantizer_tag(group, quantizer, more), value, step)

    def _write_images(self):
        from .report.figures import histograms

        if self._seen is None:
            return
        for name, found in self._seen.found.items():
            if found:
                name = name or "(model)"
                self._writer.add_image(_tag("clipping", name), histograms(found, name),
                                       self._seen.step)
        self._seen = None


class _LoggedDistributions(Distributions):
    """Distributions whose values go to VisualDL's histograms too."""

    def __init__(self, model, writer, step):
        super().__init__(model)
        self._writer, self.step, self._calls = writer, step, Counter()

    def added(self, label, values):
        # A layer that is called again in one pass has several histograms of one step.
        self._calls[label] += 1
        again = f", call {self._calls[label]}" if self._calls[label] > 1 else ""
        self._writer.add_histogram(_quantizer_tag("values", label, again), values, self.step,
                                   buckets=BUCKETS)

    def not_finite(self, label):
        # A step that overflows is no reason to stop the training.
        _logger.warning("%s met NaN or infinite values at step %d: no histogram", label, self.step)


def _quantizer_tag(group, quantizer, more=""):
    return _tag(group, " ".join(part_of(quantizer)) + more)


def _tag(group, name):
    return f"{group}/{name}".replace("%", "_")  # which VisualDL does not take


def _log_writer(logdir):
    try:
        import matplotlib  # noqa: F401  (for the images at the end)
        from visualdl import LogWriter
    except ImportError as error:
        raise DependencyError("VisualDLLogger needs VisualDL and matplotlib, but "
                              f"{error.name or 'one of them'} is not installed: "
                              "pip install 'paddleq[viz]'") from error
    # One file for one logger, however often it is opened: of several in a folder VisualDL shows
    # the last only.
    return LogWriter(logdir=logdir, file_name=f"vdlrecords.{time.time():.6f}.log")
