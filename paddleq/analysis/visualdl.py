"""Logging of scales, clipping and distributions for VisualDL."""

import logging
import math
import os
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from itertools import chain
from typing import Any, Optional

import paddle

from .._checks import check_int, check_path, wrong_type
from ..engine import check_quantized
from ..errors import DependencyError, FormatError, ModelError
from ..graph.calls import capture_calls
from .distributions import Distributions
from .layer_errors import LayerErrors
from .scale_history import ScaleHistory, StepHooks, split_quantizer_name

_logger = logging.getLogger("paddleq")

BUCKETS = 64  # of a histogram in VisualDL


class VisualDLLogger(paddle.callbacks.Callback):
    """Log training or calibration of a quantized model for ``visualdl --logdir vdl``.

    While the logger is open, it writes at the steps of training or calibration:

    - **scalars**: ``scale/...``, the scale of each quantizer (the largest and the
      smallest one if each channel has its own), and ``clipped/...``, the share of clipped values;
    - **histograms**: ``values/...``, the inputs of each quantizer, activations and weights;
    - **images**, at the end: ``clipping/...``, the last histograms with their clipping limits.

    :meth:`log_errors` adds a plot of layer errors, :meth:`log_graph` an exported model.

    Use it as a context manager around any loop, ``with VisualDLLogger("vdl", net): ...``, or as a
    callback of ``paddle.Model.fit``.

    Args:
        logdir: folder for ``visualdl --logdir``, created if missing. Use one folder for each
            logger: VisualDL shows only the last of several files in a folder.
        model: quantized model. ``None`` for a callback of ``paddle.Model.fit``.
        every: write scales every ``every`` steps. Default 10.
        histograms: write histograms every ``histograms`` steps, which copies the values from the
            device. 0 writes none. Default 100.

    Attributes:
        history: :class:`~paddleq.analysis.ScaleHistory` of the written scales, for
            :func:`~paddleq.analysis.report`.

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

    model: Any  # paddle.Model, set by its fit()

    def __init__(self, logdir, model: Optional[paddle.nn.Layer] = None, every: int = 10,
                 histograms: int = 100):
        super().__init__()
        self.logdir = check_path("logdir", logdir, "the path of a folder")
        self.every = check_int("every", every, 1)
        self.histograms = check_int("histograms", histograms, 0)
        if model is not None:
            check_quantized(model)
        self.network = model
        self.history = ScaleHistory(every=every)
        self._writer = _log_writer(self.logdir)
        self._hooks = StepHooks(self._after, self._before)
        self._captured = ExitStack()
        self._distributions: Optional[_LoggedDistributions] = None

    def __enter__(self):
        if self.network is None:
            raise ModelError("VisualDLLogger needs a model: VisualDLLogger(logdir, model)")
        self._hooks.attach(self.network)
        return self

    def __exit__(self, *_error):
        self.close()

    def on_train_begin(self, logs=None):
        """Attach to the network of ``paddle.Model.fit``."""
        self.network = self.model.network
        check_quantized(self.network)
        self._hooks.attach(self.network)

    def on_train_end(self, logs=None):
        """Close the log at the end of ``paddle.Model.fit``."""
        self.close()

    def log_errors(self, errors: LayerErrors, step: Optional[int] = None) -> None:
        """Write a bar plot of layer errors, and the SQNR of the output as a scalar.

        Args:
            errors: result of :func:`~paddleq.analysis.layer_errors`.
            step: step of the errors. Default: number of steps so far.

        Raises:
            ConfigTypeError: ``errors`` is something else.
        """
        from .report.plots import error_bars, to_image

        if not isinstance(errors, LayerErrors):
            raise wrong_type("errors", errors, "the result of layer_errors()")
        step = self._hooks.step if step is None else check_int("step", step, 0)
        self._writer.add_image("errors of layers/SQNR", to_image(error_bars(errors)), step)
        if errors.output is not None and math.isfinite(errors.output):
            self._writer.add_scalar("SQNR/output", errors.output, step)
        self._writer.flush()

    def log_graph(self, path) -> None:
        """Copy an exported model into the folder for the graph page of VisualDL.

        Args:
            path: prefix of the export; ``path.pdmodel`` is copied.

        Raises:
            FormatError: there is no such file.
        """
        source = f"{os.fspath(path)}.pdmodel"
        if not os.path.isfile(source):
            raise FormatError(f"there is no file {source}; export the model as .pdmodel first: "
                              "save_quantized_model(model, path)")
        shutil.copyfile(source, os.path.join(self.logdir, os.path.basename(source)))

    def close(self) -> None:
        """Remove all hooks and write the pending data."""
        self._captured.close()
        self._hooks.remove()
        if self._distributions is not None:
            self._write_images(self._distributions)
            self._distributions = None
        self._writer.close()

    def _before(self, model, step):
        self._captured.close()  # the last pass may have raised
        # The layers of a compiled program cannot be captured.
        if (self.histograms and step % self.histograms == 0
                and not hasattr(model.forward, "dygraph_function")):
            logged = self._distributions = _LoggedDistributions(model, self._writer, step)
            self._captured.enter_context(capture_calls(logged.layers, logged.add_call))

    def _after(self, model, step):
        self._captured.close()
        if step % self.every == 0:
            self.history.record(model, step)
            for name, scales in self.history.scales.items():
                if scales[-1].step == step:
                    self._write_scale(name, scales[-1])
        logged = self._distributions
        if logged is not None and logged.step == step:
            logged.add_weights()
            for found in chain(*logged.found.values()):
                if found.fixed and found.high is not None:
                    self._scalar("clipped", found.name, found.clipped_share, step)

    def _write_scale(self, name, scale):
        self._scalar("scale", name, scale.high, scale.step)
        if scale.low != scale.high:
            self._scalar("scale", name, scale.low, scale.step, ", smallest")

    def _scalar(self, group, quantizer, value, step, more=""):
        self._writer.add_scalar(_quantizer_tag(group, quantizer, more), value, step)

    def _write_images(self, logged):
        from .report.plots import histograms, to_image

        for name, found in logged.found.items():
            if found:
                name = name or "(model)"
                self._writer.add_image(_tag("clipping", name), to_image(histograms(found, name)),
                                       logged.step)


class _LoggedDistributions(Distributions):
    """Distributions that also write their values to the histograms of VisualDL."""

    def __init__(self, model, writer, step):
        super().__init__(model)
        self._writer, self.step, self._calls = writer, step, Counter()

    def on_values(self, label, values):
        # A layer that is called several times in a pass has several histograms for one step.
        self._calls[label] += 1
        again = f", call {self._calls[label]}" if self._calls[label] > 1 else ""
        self._writer.add_histogram(_quantizer_tag("values", label, again), values, self.step,
                                   buckets=BUCKETS)

    def on_non_finite(self, label):
        # Training may recover from a step that overflows.
        _logger.warning("%s has NaN or infinite values at step %d: no histogram", label, self.step)


def _quantizer_tag(group, quantizer, more=""):
    return _tag(group, " ".join(split_quantizer_name(quantizer)) + more)


def _tag(group, name):
    return f"{group}/{name}".replace("%", "_")  # VisualDL rejects it


def _log_writer(logdir) -> Any:
    try:
        import matplotlib  # noqa: F401  (for the images at the end)
        import visualdl
    except ImportError as error:
        raise DependencyError("VisualDLLogger needs VisualDL and matplotlib, but "
                              f"{error.name or 'one of them'} is not installed: "
                              "pip install 'paddleq[viz]'") from error
    # VisualDL shows only the last of several files in a folder, so each logger has one file.
    return visualdl.LogWriter(logdir=logdir, file_name=f"vdlrecords.{time.time():.6f}.log")
