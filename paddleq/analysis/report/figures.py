"""Pictures of histograms and errors for VisualDL, drawn by matplotlib."""

import numpy as np

FLOAT, QUANTIZED, LIMIT = "#3b6ea8", "#c8641e", "#b3261e"
BARS = 64
INCH = 100  # pixels


def histograms(distributions, title):
    """An image of the distributions side by side, with lines where they are clipped.

    Args:
        distributions: list of :class:`~paddleq.analysis.distributions.Distribution`.

    Returns:
        uint8 array [height, width, 3].
    """
    width = 3.0 * len(distributions)
    figure = _figure(width, 2.8)
    figure.subplots_adjust(left=0.45 / width, right=1 - 0.1 / width, bottom=0.12, top=0.8,
                           wspace=0.2)
    figure.suptitle(title, fontsize=10)
    for number, found in enumerate(sorted(distributions, key=lambda each: each.name), start=1):
        axes = figure.add_subplot(1, len(distributions), number)
        counts, edges = found.histogram.shown(found.low, found.high, BARS)
        axes.set_yscale("log")
        axes.stairs(counts, edges, fill=True, color=FLOAT, baseline=0.5)
        axes.set_ylim(0.5, 2.0 * max(counts.max(), 1))
        axes.minorticks_off()
        for limit in {found.low, found.high} - {None}:
            axes.axvline(limit, color=LIMIT, linewidth=1.4)
        for limit in set(found.narrowest) - {found.low, found.high}:
            axes.axvline(limit, color=LIMIT, linewidth=1.0, linestyle="--")
        axes.set_title(f"{found.part}, {100 * found.share:.3g} % clipped", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
    return _image(figure)


def error_bars(errors):
    """An image of the SQNR of each layer, alone and accumulated, in the model's order.

    Args:
        errors: :class:`~paddleq.analysis.LayerErrors`.
    """
    rows = [row for row in errors if row.alone is not None]
    names = [row.name or "(model)" for row in rows]
    margin = 0.3 + 0.075 * max(map(len, names), default=0)
    width, height = margin + 6.0, 1.0 + 0.32 * len(rows)
    figure = _figure(width, height)
    figure.subplots_adjust(left=margin / width, right=1 - 0.2 / width, bottom=0.5 / height,
                           top=1 - 0.3 / height)
    axes = figure.add_subplot(1, 1, 1)
    places = np.arange(len(rows))
    # What has no error at all gets the longest bar.
    longest = max([1.0, *(value for row in rows for value in (row.alone, row.accumulated)
                          if value is not None and np.isfinite(value))])
    for shift, column, color in ((-0.2, "alone", FLOAT), (0.2, "accumulated", QUANTIZED)):
        lengths = [min(getattr(row, column) or 0.0, 1.1 * longest) for row in rows]
        axes.barh(places + shift, lengths, 0.4, label=column, color=color)
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("SQNR in dB: longer is better", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False,
                borderaxespad=0.0)
    return _image(figure)


def _figure(width, height):
    # Not pyplot's: that keeps figures, and may open windows.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=INCH)
    FigureCanvasAgg(figure)
    return figure


def _image(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
