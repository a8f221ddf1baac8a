"""HTML report of a quantized model: layers, errors, distributions and sizes on one page."""

import math
import os
from typing import Any, Iterable, NamedTuple, Optional

from paddle import nn

from ..._atomic_write import write_bytes, write_together
from ..._checks import check_int, wrong_type
from ...engine import (
    capture_calls,
    eager_evaluation,
    extra_state_keys,
    iter_batches,
    quantized_layers,
    summary_rows,
)
from ...errors import ConfigError, DependencyError, ExportError
from ...export.provenance_file import versions
from ...fake_quant.fake_quantize import FakeQuantize
from ..distributions import Distributions
from ..layer_errors import LayerComparison
from ..layer_results import check_simulated
from ..scale_history import ScaleHistory, split_quantizer_name
from ..sensitivity import Sensitivities
from ..sqnr import format_db
from . import plots

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
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise wrong_type("path", path, "the path of a file such as 'report.html'")
    if history is not None and not isinstance(history, ScaleHistory):
        raise wrong_type("history", history, "a ScaleHistory, or None")
    if sensitivities is not None and not isinstance(sensitivities, Sensitivities):
        raise wrong_type("sensitivities", sensitivities, "the result of sensitivity(), or None")
    if title is not None and not isinstance(title, str):
        raise wrong_type("title", title, "a str, or None")
    if data is None and (float_model is not None or num_batches is not None):
        raise ConfigError("data must be an iterable of batches where float_model or num_batches "
                          "is given, but is None")
    if num_batches is not None:
        check_int("num_batches", num_batches, 1)
    template = _template()
    errors, distributions = _measure(model, data, float_model, num_batches)
    rows = summary_rows(model)
    columns, cells = _layer_table(rows, errors, distributions)
    text = template.render(
        title=title or type(model).__name__, subtitle=_subtitle(model),
        facts=list(_facts(model, rows, errors)), columns=columns, rows=cells,
        number_columns=_NUMBER_COLUMNS, errors=errors and _error_plot(errors),
        sensitivities=sensitivities and _sensitivity_plot(sensitivities),
        distributions=list(_distribution_plots(errors, distributions)),
        history=None if history is None else list(_scale_plots(history)),
        footer=", ".join(f"{name} {version}" for name, version in versions().items()))
    try:
        write_together({os.fspath(path): write_bytes(text.encode("utf-8"))})
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}") from error


class _Plot(NamedTuple):
    svg: Any  # markupsafe.Markup, which the template does not escape
    caption: str


def _plot(figure, title, description, caption=""):
    from markupsafe import Markup

    return _Plot(Markup(plots.to_svg(figure, title, description)), caption)


def _template():
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"report() needs Jinja2 and matplotlib, but {error.name} is not "
                              "installed: pip install 'paddleq[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.jinja")


def _measure(model, data, float_model, num_batches):
    """Return (:class:`LayerErrors` or None, :class:`Distributions`)."""
    distributions = Distributions(model)
    with eager_evaluation(model):
        distributions.add_weights()
    if data is None:
        return None, distributions
    comparison = LayerComparison(model, float_model)
    for args, kwargs in iter_batches(model, data, num_batches, "measuring layers"):
        comparison.add(args, kwargs)
        with eager_evaluation(model), capture_calls(distributions.layers, distributions.add_call):
            model(*args, **kwargs)
    return comparison.result(), distributions


def _subtitle(model):
    layers = quantized_layers(model)
    kinds = sorted({str(quantizer.spec).split()[0] for _, layer in layers
                    for _, quantizer in layer.quantizers() if isinstance(quantizer, FakeQuantize)})
    return f"{len(layers)} quantized layers, {', '.join(kinds)}"


def _facts(model, rows, errors):
    done = [row.done for row in rows]
    others = [f"{done.count(kind)} {kind}" for kind in ("fused", "folded", "left")
              if kind in done]
    yield "layers quantized", f"{done.count('quantized')}", f"of {len(rows)}: {', '.join(others)}"
    if errors is not None:
        yield ("SQNR of the output", f"{format_db(errors.output)} dB",
               _in_percent(errors.output))
        for name in errors.worst()[:1]:
            yield "worst layer alone", name or "(model)", f"{format_db(errors[name].alone)} dB"
    before, after = _sizes(model)
    yield ("parameters as exported", _bytes(after),
           f"{after / before:.0%} of {_bytes(before)} in float")


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


def _error_plot(errors):
    return _plot(plots.error_bars(errors), "Errors of layers",
                 f"SQNR in dB of {len(errors)} layers, alone and accumulated")


def _sensitivity_plot(found):
    by_metric = found.float_metric is not None
    text = ("Drop of the metric when only one layer is quantized." if by_metric else
            "SQNR of the output of the model when only one layer is quantized. Short bars are the "
            "most sensitive layers.")
    rows = {row.name or "(model)": (row.drop if by_metric else row.sqnr,)
            for row in found.ranking()}
    names, unit = (("drop",), "metric") if by_metric else (("SQNR of the output",), "dB")
    title = "Sensitivity of the model to each layer"
    return _plot(plots.bars(rows, names, unit), title, f"{len(rows)} bars, in {unit}", text)


_NUMBER_COLUMNS = ("alone, dB", "accumulated, dB", "clipped")


def _layer_table(rows, errors, distributions):
    columns = ["layer", "type", "done", "weight", "activation", "why"]
    cells = [list(row) for row in rows]
    if errors is None:
        return columns, cells
    columns[3:3] = _NUMBER_COLUMNS
    by_name = {row.name: row for row in errors}
    for row, line in zip(rows, cells):
        name = "" if row.name == "(model)" else row.name
        error = by_name.get(name)
        inputs = [each.clipped_share for each in distributions.found.get(name, ()) if each.fixed]
        line[3:3] = [format_db(error.alone) if error else "",
                     format_db(error.accumulated) if error else "",
                     f"{100 * max(inputs):.2g} %" if inputs else ""]
    return columns, cells


def _distribution_plots(errors, distributions):
    worst = errors.worst(OPEN_LAYERS) if errors is not None and errors.ranking() else ()
    for number, (name, found) in enumerate(distributions.found.items()):
        found = sorted(found, key=lambda each: each.name)  # activations before weights
        shown = [_histogram_plot(each) for each in found if each.histogram.total]
        if shown:
            yield {"name": name or "(model)", "remark": "one of the worst" if name in worst else "",
                   "plots": shown, "open": name in worst or not worst and number < OPEN_LAYERS}


def _histogram_plot(found):
    layer, part = split_quantizer_name(found.name)
    limits = " and ".join(f"{limit:.4g}" for limit in (found.low, found.high) if limit is not None)
    return _plot(
        plots.histograms([found]), f"{part} of {layer}",
        f"histogram of values from {found.histogram.low:.3g} to {found.histogram.high:.3g}, "
        f"clipped at {limits or 'nothing'}",
        f"{part}: {found.histogram.total:,} values, {100 * found.clipped_share:.3g} % clipped")


def _scale_plots(history):
    for name, scales in history.scales.items():
        scales = [scale for scale in scales if math.isfinite(scale.low + scale.high)]
        if len({(scale.low, scale.high) for scale in scales}) < 2:
            continue
        steps = [scale.step for scale in scales]
        series = [("largest", steps, [scale.high for scale in scales])]
        if any(scale.low != scale.high for scale in scales):
            series.append(("smallest", steps, [scale.low for scale in scales]))
        title = " ".join(split_quantizer_name(name))
        yield _plot(plots.lines(series), f"scale of {title}",
                    f"from {scales[0].high:.4g} to {scales[-1].high:.4g}, steps {steps[0]} to "
                    f"{steps[-1]}", title)
