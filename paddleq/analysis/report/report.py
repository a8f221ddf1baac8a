"""A quantized model on one page: what was done, what it costs, and where."""

import math
import os

from ..._atomic_write import write_bytes, write_together
from ..._checks import check_int, wrong_type
from ..._versions import versions
from ...engine import (
    capture_calls,
    check_quantized,
    eager_evaluation,
    extra_state_keys,
    iter_batches,
    quantized_layers,
    summary_rows,
)
from ...errors import ConfigError, ExportError
from ...fake_quant.fake_quantize import FakeQuantize
from ..distributions import Distributions
from ..layer_errors import LayerComparison
from ..scale_history import ScaleHistory, part_of
from ..sensitivity import Sensitivities
from ..sqnr import shown
from . import page, svg

BARS = 72
OPENED = 3  # layers whose plots are open at first, the worst

_ERRORS = (
    "SQNR is the signal over the error that quantization makes of it: 20 dB are an error of 10 %, "
    "40 dB of 1 %, and one bit is worth 6 dB; longer bars are better. Alone: the layer is given "
    "the float model's inputs. Accumulated: all layers before it are quantized too.")
_VALUES = (
    "What goes into each quantizer, counted on a logarithmic scale. Red lines: what lies beyond is "
    "clipped; where each channel has its own range, solid for the widest and dashed for the "
    "narrowest.")
_SCALES = (
    "The scale of each quantizer that moved (its threshold, as Paddle has it) at the steps that "
    "were written down; where each channel has one, the largest, and dashed the smallest.")


def report(model, path, loader=None, float_model=None, history=None, sensitivities=None,
           batch_num=None, title=None):
    """Write an HTML page about a quantized model, with plots; it needs no network and no server.

    A table of all layers and what was done to each; their errors (:func:`layer_errors`), and the
    values that every quantizer meets with the lines where they are clipped; sizes and versions.
    The same arguments give the same page.

    Args:
        model: a quantized model.
        path: the file to write, such as "report.html"; folders are made.
        loader: batches to measure errors and activations with, as for :func:`paddleq.calibrate`.
            None: the page has neither, only weights.
        float_model: what to compare with, see :func:`layer_errors`.
        history: a :class:`ScaleHistory`, or the ``history`` of a :class:`VisualDLLogger`: scales
            over time are drawn too.
        sensitivities: what :func:`sensitivity` returned: shown as well.
        batch_num: look at this many batches. Default: all.
        title: of the page. Default: the name of the model's class.

    Raises:
        ExportError: the file cannot be written.
        CalibrationError: there is a loader, but the model is not calibrated.
        ModelError, NonFiniteError, ConfigError, ConfigTypeError: see :func:`layer_errors`.

    Examples:
        >>> import paddle, paddleq
        >>> data = [paddle.linspace(-1, 1, 64).reshape([16, 4])]
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> net = ptq.quantize(paddle.nn.Sequential(paddle.nn.Linear(4, 8)))
        >>> _ = ptq.calibrate(net, data)
        >>> paddleq.analysis.report(net, "report.html", loader=data)
        >>> "SQNR" in open("report.html", encoding="utf-8").read()
        True
    """
    check_quantized(model)
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise wrong_type("path", path, "the path of a file such as 'report.html'")
    if history is not None and not isinstance(history, ScaleHistory):
        raise wrong_type("history", history, "a ScaleHistory, or None")
    if sensitivities is not None and not isinstance(sensitivities, Sensitivities):
        raise wrong_type("sensitivities", sensitivities, "what sensitivity() returns, or None")
    if title is not None and not isinstance(title, str):
        raise wrong_type("title", title, "a text, or None")
    if loader is None and (float_model is not None or batch_num is not None):
        raise ConfigError("loader must be an iterable of batches where float_model or batch_num "
                          "is given, but is None")
    if batch_num is not None:
        check_int("batch_num", batch_num, 1)
    errors, found = _measure(model, loader, float_model, batch_num)
    text = page.page(title or type(model).__name__, _subtitle(model),
                     list(_content(model, errors, found, history, sensitivities)),
                     ", ".join(f"{name} {version}" for name, version in versions().items()))
    try:
        write_together({os.fspath(path): write_bytes(text.encode("utf-8"))})
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}") from error


def _measure(model, loader, float_model, batch_num):
    """(:class:`LayerErrors` or None, :class:`Distributions`)"""
    distributions = Distributions(model)
    with eager_evaluation(model):
        distributions.see_weights()
    if loader is None:
        return None, distributions
    comparison = LayerComparison(model, float_model)
    for args, kwargs in iter_batches(model, loader, batch_num, "looking at layers"):
        comparison.add(args, kwargs)
        with eager_evaluation(model), capture_calls(distributions.layers, distributions.see):
            model(*args, **kwargs)
    return comparison.result(), distributions


def _content(model, errors, distributions, history, sensitivities):
    rows = summary_rows(model)
    yield page.facts(_facts(model, rows, errors))
    if errors is not None:
        yield page.section("Errors of layers", page.paragraph(_ERRORS), _error_bars(errors))
    if sensitivities is not None:
        yield _sensitivities(sensitivities)
    yield page.section("Layers", _layers(rows, errors, distributions))
    yield page.section("Values, and where they are clipped", page.paragraph(_VALUES),
                       *_histograms(errors, distributions))
    if history is not None:
        yield page.section("Scales over time", page.paragraph(_SCALES), _scales(history))


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
        yield "SQNR of the model's output", f"{shown(errors.output)} dB", _in_percent(errors.output)
        for name in errors.worst()[:1]:
            yield "worst layer alone", name or "(model)", f"{shown(errors[name].alone)} dB"
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
    """Bytes of parameters and statistics: (of the float model, of an export with integers)."""
    extra = set(extra_state_keys(model))
    before = sum(tensor.size * tensor.element_size()
                 for key, tensor in model.state_dict().items() if key not in extra)
    saved, seen = 0, set()
    for _, layer in quantized_layers(model):
        for weight in layer._paddleq_kind.weights:
            quantizer, parameter = layer.weight_parts(weight)[1], getattr(layer, weight)
            if isinstance(quantizer, FakeQuantize) and id(parameter) not in seen:
                seen.add(id(parameter))
                integer = 1 if quantizer.spec.bits <= 8 else 2
                saved += parameter.size * (parameter.element_size() - integer)
                saved -= 4 * quantizer.observer.channels
    return before, before - saved


def _error_bars(errors):
    rows = [(row.name or "(model)", (row.alone, row.accumulated)) for row in errors]
    plot = svg.bars(rows, ("alone", "accumulated"), "Errors of layers", "dB")
    return page.wide(plot, "errors of layers")


def _sensitivities(found):
    by_metric = found.float_metric is not None
    text = ("What the model's metric loses when one layer alone is quantized."
            if by_metric else
            "SQNR of the model's output when one layer alone is quantized: the shortest bars are "
            "the layers that it can least afford.")
    rows = [(row.name or "(model)", (row.drop if by_metric else row.sqnr,))
            for row in found.ranking()]
    names, unit = (("drop",), "") if by_metric else (("SQNR of the output",), "dB")
    plot = svg.bars(rows, names, "Sensitivity of the model to each layer", unit)
    return page.section("Sensitivity", page.paragraph(text),
                        page.wide(plot, "sensitivity of the model to each layer"))


def _layers(rows, errors, distributions):
    titles = ["layer", "type", "done", "weight", "activation", "why"]
    cells = [list(row) for row in rows]
    numbers = []
    if errors is not None:
        titles[3:3] = ["alone, dB", "accumulated, dB", "clipped"]
        numbers = [3, 4, 5]
        by_name = {row.name: row for row in errors}
        for row, line in zip(rows, cells):
            name = "" if row.name == "(model)" else row.name
            error, found = by_name.get(name), distributions.found.get(name, ())
            inputs = [each.share for each in found if each.fixed]
            line[3:3] = [shown(error.alone) if error else "",
                         shown(error.accumulated) if error else "",
                         f"{100 * max(inputs):.2g} %" if inputs else ""]
    return page.table("Every layer, what was done to it, or why not", titles, cells, numbers)


def _histograms(errors, distributions):
    worst = errors.worst(OPENED) if errors is not None and errors.ranking() else ()
    for number, (name, found) in enumerate(distributions.found.items()):
        found = sorted(found, key=lambda each: each.name)  # activations before weights
        plots = [_histogram(each) for each in found if each.histogram.total]
        if plots:
            remark = "one of the worst" if name in worst else ""
            yield page.foldable(name or "(model)", remark, page.figures(plots),
                                opened=name in worst or not worst and number < OPENED)


def _histogram(found):
    layer, part = part_of(found.name)
    limits = [limit for limit in (found.low, found.high) if limit is not None]
    counts, edges = found.histogram.shown(found.low, found.high, BARS)
    plot = svg.histogram(counts, edges, limits, found.narrowest, f"{part} of {layer}")
    return plot, f"{part}: {found.histogram.total:,} values, {100 * found.share:.3g} % clipped"


def _scales(history):
    plots = []
    for name, scales in history.scales.items():
        scales = [scale for scale in scales if math.isfinite(scale.low + scale.high)]
        if len({(scale.low, scale.high) for scale in scales}) < 2:
            continue
        steps = [scale.step for scale in scales]
        series = [("largest", steps, [scale.high for scale in scales])]
        if any(scale.low != scale.high for scale in scales):
            series.append(("smallest", steps, [scale.low for scale in scales]))
        title = " ".join(part_of(name))
        plots.append((svg.lines(series, f"scale of {title}"), title))
    return page.figures(plots) if plots else page.paragraph("None moved.")
