"""HTML report of a quantized model: layers, errors, distributions and sizes on one page."""

import math
import os
from typing import Iterable, Optional

from paddle import nn

from ..._atomic_write import write_bytes, write_together
from ..._checks import check_int, check_path, wrong_type
from ...engine import (
    eager_evaluation,
    extra_state_keys,
    iter_batches,
    quantized_layers,
    run_batches,
    summary_rows,
)
from ...engine.provenance import versions
from ...errors import ConfigError, DependencyError, ExportError
from ...fake_quant.fake_quantize import FakeQuantize
from ...graph.calls import capture_calls
from ..distributions import Distributions
from ..layer_errors import LayerComparison
from ..layer_results import check_simulated
from ..scale_history import ScaleHistory, split_quantizer_name
from ..sensitivity import Sensitivities
from ..sqnr import format_db

OPEN_LAYERS = 3  # number of layers whose plots are unfolded, the worst ones


def report(model: nn.Layer, path, data: Optional[Iterable] = None,
           float_model: Optional[nn.Layer] = None, history: Optional[ScaleHistory] = None,
           sensitivities: Optional[Sensitivities] = None, num_batches: Optional[int] = None,
           title: Optional[str] = None) -> None:
    """Write an HTML page with tables and plots of a quantized model.

    The page lists all layers with their quantization and errors (:func:`layer_errors`), plots the
    inputs of each quantizer with its clipping limits, and states sizes and versions. It is one
    file that refers to nothing outside of itself. The same arguments give the same page.

    Args:
        model: quantized model.
        path: file to write, such as "report.html". Missing folders are created.
        data: batches for errors and activations, as for :func:`paddleq.calibrate`. Without it the
            page shows weights only.
        float_model: model to compare with, see :func:`layer_errors`.
        history: a :class:`ScaleHistory`, or the ``history`` of a :class:`VisualDLLogger`, to plot
            scales over time.
        sensitivities: result of :func:`sensitivity` to show.
        num_batches: number of batches to use. Default: all.
        title: title of the page. Default: name of the class of the model.

    Raises:
        DependencyError: matplotlib or Jinja2 is not installed.
        ExportError: the file cannot be written.
        CalibrationError: there is data, but the model is not calibrated.
        ModelError, NonFiniteError, ConfigError, ConfigTypeError: see :func:`layer_errors`.

    Examples:
        >>> import paddle, paddleq
        >>> data = [paddle.linspace(-1, 1, 64).reshape([16, 4])]
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> net = ptq.quantize(paddle.nn.Sequential(paddle.nn.Linear(4, 8)))
        >>> _ = ptq.calibrate(net, data)
        >>> paddleq.analysis.report(net, "report.html", data=data)
        >>> "SQNR" in open("report.html", encoding="utf-8").read()
        True
    """
    check_simulated(model)
    path = check_path("path", path, "the path of a file such as 'report.html'")
    for name, value, kind, expected in (
            ("history", history, ScaleHistory, "a ScaleHistory"), ("title", title, str, "a str"),
            ("sensitivities", sensitivities, Sensitivities, "the result of sensitivity()")):
        if value is not None and not isinstance(value, kind):
            raise wrong_type(name, value, f"{expected}, or None")
    if data is None and (float_model is not None or num_batches is not None):
        raise ConfigError("data must be an iterable of batches where float_model or num_batches "
                          "is given, but is None")
    if num_batches is not None:
        check_int("num_batches", num_batches, 1)
    template = _template()
    errors, distributions = _measure(model, data, float_model, num_batches)
    rows = summary_rows(model)
    text = template.render(
        title=title or type(model).__name__, layers=len(distributions.layers),
        formats=_formats(distributions.layers), rows=rows, done=[row.done for row in rows],
        sizes=_sizes(model), errors=errors,
        by_name={row.name or "(model)": row for row in errors or ()},
        clipped=_clipped(distributions), sensitivities=sensitivities,
        distributions=list(_ordered(errors, distributions)),
        history=None if history is None else list(_changing_scales(history)),
        versions=versions())
    try:
        write_together({path: write_bytes(text.encode("utf-8"))})
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}") from error


def _template():
    try:
        import jinja2

        from . import plots
    except ImportError as error:
        raise DependencyError(f"report() needs Jinja2 and matplotlib, but {error.name} is not "
                              "installed: pip install 'paddleq[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(db=format_db, bytes=_bytes, percent=_in_percent)
    environment.globals["plots"] = plots
    return environment.get_template("report.html.jinja")


def _measure(model, data, float_model, num_batches):
    """Return (:class:`LayerErrors` or None, :class:`Distributions`)."""
    distributions = Distributions(model)
    with eager_evaluation(model):
        distributions.add_weights()
    if data is None:
        return None, distributions
    comparison = LayerComparison(model, float_model)

    def measure(inputs):
        args, kwargs = inputs
        comparison.add(args, kwargs)
        with eager_evaluation(model), capture_calls(distributions.layers, distributions.add_call):
            model(*args, **kwargs)

    run_batches(measure, iter_batches(model, data, num_batches, "measuring layers"), "data")
    return comparison.result(), distributions


def _formats(layers):
    """Return the sorted integer formats of the quantizers, such as "int8"."""
    return sorted({str(quantizer.spec).split()[0] for layer in layers.values()
                   for _, quantizer in layer.quantizers() if isinstance(quantizer, FakeQuantize)})


def _bytes(number):
    return f"{number / 1e6:,.1f} MB" if number >= 1e6 else f"{number / 1e3:,.1f} kB"


def _in_percent(db):
    if db is None or math.isinf(db):
        return ""
    return f"an error of {100 * 10 ** (-db / 20):.2g} %"


def _sizes(model):
    """Return the bytes of parameters and statistics in float and in an export with integers."""
    extra = set(extra_state_keys(model))
    before = sum(tensor.size * tensor.element_size()
                 for key, tensor in model.state_dict().items() if key not in extra)
    saved, seen = 0, set()
    for _, layer in quantized_layers(model):
        for weight in layer._paddleq.kind.weights:
            quantizer, parameter = layer.weight_parts(weight)[1], getattr(layer, weight)
            if isinstance(quantizer, FakeQuantize) and id(parameter) not in seen:
                seen.add(id(parameter))
                integer = 1 if quantizer.spec.bits <= 8 else 2
                saved += parameter.size * (parameter.element_size() - integer)
                saved -= 4 * quantizer.observer.channels
    return before, before - saved


def _clipped(distributions):
    """Return the largest share of clipped values of the inputs of each layer, by name."""
    shares = {name or "(model)": [each.clipped_share for each in found if each.fixed]
              for name, found in distributions.found.items()}
    return {name: max(each) for name, each in shares.items() if each}


def _ordered(errors, distributions):
    """Yield (name, is one of the worst, is unfolded, distributions) of each layer."""
    worst = errors.worst(OPEN_LAYERS) if errors is not None and errors.ranking() else ()
    for number, (name, found) in enumerate(distributions.found.items()):
        if found:
            unfolded = name in worst if worst else number < OPEN_LAYERS
            yield (name or "(model)", name in worst, unfolded,
                   sorted(found, key=lambda each: each.name))  # activations before weights


def _changing_scales(history):
    """Yield (name, series for :func:`plots.lines`) of each quantizer whose scale changed."""
    for name, scales in history.scales.items():
        scales = [scale for scale in scales if math.isfinite(scale.low + scale.high)]
        if len({(scale.low, scale.high) for scale in scales}) > 1:
            steps = [scale.step for scale in scales]
            series = [("largest", steps, [scale.high for scale in scales]),
                      ("smallest", steps, [scale.low for scale in scales])]
            one = all(scale.low == scale.high for scale in scales)
            yield " ".join(split_quantizer_name(name)), series[:1] if one else series
