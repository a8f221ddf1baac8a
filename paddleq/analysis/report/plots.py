"""Matplotlib plots of quantization errors, value distributions and scales.

The HTML report embeds them as SVG, VisualDL shows them as images. Figures of pyplot would stay in
memory until they are closed, and may open windows.
"""

import math
import re
from html import escape
from io import StringIO
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BARS = 72
# Colours of the plots and the variables of the report's style sheet that replace them, so that an
# embedded plot follows the light or dark scheme of the page.
FIRST, SECOND, LIMIT, TEXT, GRID = "#2f6cab", "#c2571a", "#b3261e", "#556170", "#e4e8ed"
_VARIABLES = {FIRST: "--first", SECOND: "--second", LIMIT: "--limit", TEXT: "--soft",
              GRID: "--grid"}
_STYLE: Dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 8, "figure.dpi": 100, "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "text.color": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
    "xtick.bottom": False, "ytick.left": False, "grid.color": GRID}
_styled = rc_context(_STYLE)  # as a decorator: whatever the user's settings are


@_styled
def bars(rows: Mapping[str, Sequence[Optional[float]]], names: Sequence[str], unit: str):
    """Plot horizontal bars: for each label of ``rows`` one value for each of at most two names.

    ``None`` draws no bar, infinity a bar that is longer than all others.
    """
    finite = [value for values in rows.values() for value in values
              if value is not None and math.isfinite(value)]
    longest = 1.1 * max([1.0, *map(abs, finite)])
    margin = 0.3 + 0.075 * max(map(len, rows), default=0)
    width, height = margin + 8.0, 1.0 + 0.3 * len(rows)
    figure = Figure((width, height))
    figure.subplots_adjust(left=margin / width, right=1 - 0.5 / width, bottom=0.5 / height,
                           top=1 - 0.3 / height)
    axes = figure.add_subplot(1, 1, 1)
    places, thickness = np.arange(len(rows)), 0.8 / len(names)
    for number, (name, color) in enumerate(zip(names, (FIRST, SECOND))):
        drawn = {place + (number - (len(names) - 1) / 2) * thickness: value
                 for place, values in zip(places, rows.values())
                 if (value := values[number]) is not None}
        container = axes.barh(list(drawn), np.clip(list(drawn.values()), -longest, longest),
                              thickness, label=name, color=color)
        axes.bar_label(container, ["no error" if value == math.inf else f"{value:.1f}"
                                   for value in drawn.values()], padding=3, fontsize=7)
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    if rows:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False,
                    borderaxespad=0.0)
    return figure


def error_bars(errors):
    """Plot :class:`~paddleq.analysis.LayerErrors`: the SQNR of each layer, in model order."""
    return bars({row.name or "(model)": (row.alone, row.accumulated) for row in errors
                 if row.alone is not None}, ("alone", "accumulated"), "SQNR in dB")


def sensitivity_bars(found):
    """Plot :class:`~paddleq.analysis.Sensitivities`, worst layer first."""
    in_db = found.float_metric is None
    return bars({row.name or "(model)": (row.sqnr if in_db else row.drop,)
                 for row in found.ranking()}, ("SQNR of the output" if in_db else "drop",),
                "dB" if in_db else "metric")


@_styled
def histograms(distributions, title: str = ""):
    """Plot distributions side by side on a logarithmic scale, with lines at the clipping limits."""
    width = 3.6 * len(distributions)
    figure = Figure((width, 2.1 + 0.4 * bool(title)))
    figure.subplots_adjust(left=0.5 / width, right=1 - 0.1 / width, bottom=0.14,
                           top=0.8 if title else 0.95, wspace=0.2)
    if title:
        figure.suptitle(title, fontsize=10)
    for number, found in enumerate(sorted(distributions, key=lambda each: each.name), start=1):
        axes = figure.add_subplot(1, len(distributions), number)
        counts, edges = found.histogram.rebin(found.low, found.high, BARS)
        axes.set_yscale("log")
        axes.stairs(counts, edges, fill=True, color=FIRST, baseline=0.5)
        axes.set_ylim(0.5, 2.0 * max(counts.max(), 1))
        margin = 0.02 * (edges[-1] - edges[0])  # shows limits at the edges
        axes.set_xlim(edges[0] - margin, edges[-1] + margin)
        axes.minorticks_off()
        widest = {found.low, found.high} - {None}
        for limit in sorted(widest):
            axes.axvline(limit, color=LIMIT, linewidth=1.4)
        for limit in sorted(set(found.narrowest) - widest):
            axes.axvline(limit, color=LIMIT, linewidth=1.0, linestyle="--")
        if title:
            axes.set_title(f"{found.part}, {100 * found.clipped_share:.3g} % clipped", fontsize=9)
        axes.grid(axis="y")
        axes.locator_params(axis="x", nbins=5)
    return figure


@_styled
def lines(series: Sequence[Tuple[str, Sequence[int], Sequence[float]]]):
    """Plot one or two series (name, steps, values) over the steps."""
    figure = Figure((3.6, 1.6))
    figure.subplots_adjust(left=0.15, right=0.96, bottom=0.25, top=0.95)
    axes = figure.add_subplot(1, 1, 1)
    for (name, steps, values), style, color in zip(series, ("-", "--"), (FIRST, SECOND)):
        axes.plot(steps, values, style, color=color, label=name,
                  marker="o" if len(steps) == 1 else None)
    axes.set_xlabel("step")
    axes.grid(axis="y")
    axes.locator_params(nbins=4)
    return figure


def to_svg(figure, title: str, description: str) -> str:
    """Return ``figure`` as an ``<svg>`` element with a title and a description.

    The same figure gives the same text. Identifiers are unique to ``title``.
    """
    buffer = StringIO()
    # Matplotlib derives the identifiers of an SVG from this salt, or from random numbers.
    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={
            "Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return svg.replace("<svg ", '<svg role="img" ', 1).replace(">", ">" + head, 1).strip()


@_styled
def to_image(figure) -> np.ndarray:
    """Return ``figure`` as a uint8 array [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
