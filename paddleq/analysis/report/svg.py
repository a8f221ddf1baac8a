"""Plots as SVG text that stands in a page: bars, histograms, lines.

Colours are those of classes in the page's style, so that they follow its light or dark scheme. Each
plot has a title and a description, which is what a screen reader says.
"""

import math
from html import escape

ROW, LABEL_WIDTH = 26, 6.6  # height of a row of bars; width of a letter


def bars(rows, names, title, unit):
    """Horizontal bars, a group for each row.

    Args:
        rows: list of (label, values), a value for each of ``names``; None: no bar; infinite: as
            long as the plot.
        names: of the series, at most two.
        title: what the plot shows.
        unit: behind each number.
    """
    finite = [value for _, values in rows for value in values
              if value is not None and math.isfinite(value)]
    ticks = _ticks(min([0.0, *finite]), max([1.0, *finite]))
    left = 16 + LABEL_WIDTH * max((len(label) for label, _ in rows), default=0)
    width, height = left + 880, 34 + ROW * len(rows)
    at = _scale(ticks[0], ticks[-1], left, width - 60)
    parts = [_legend(names, left)]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="18" '
                     f'y2="{height - 16}"/>')
        parts.append(_text(at(tick), height - 3, f"{tick:g}", "tick middle"))
    thick = (ROW - 8) / len(names)
    for number, (label, values) in enumerate(rows):
        top = 20 + ROW * number
        parts.append(_text(left - 8, top + ROW / 2 + 1, label, "label end"))
        for series, value in enumerate(values):
            if value is None:
                continue
            end = at(min(max(value, ticks[0]), ticks[-1]))
            y, start = top + 3 + thick * series, min(at(0.0), end)
            shown = "no error" if value == math.inf else f"{value:.1f}"
            parts.append(
                f'<rect class="series{series}" x="{start:.1f}" y="{y:.1f}" '
                f'width="{abs(end - at(0.0)):.1f}" height="{thick - 1:.1f}">'
                f"<title>{escape(f'{label}, {names[series]}: {shown} {unit}')}</title></rect>")
            parts.append(_text(max(end, at(0.0)) + 4, y + thick / 2 + 3, shown, "value"))
    return _svg(width, height, title, f"{len(rows)} groups of bars, in {unit}", parts)


def histogram(counts, edges, limits, narrowest, title):
    """A histogram, its heights logarithmic, with lines at limits.

    Args:
        counts, edges: as numpy has them.
        limits: where to draw lines; ``narrowest``: dashed ones.
        title: what the plot shows.
    """
    width, height, left, bottom = 360, 170, 38, 140
    at = _scale(edges[0], edges[-1], left, width - 10)
    highest = max(1, math.ceil(math.log10(max(counts.max(), 1)) + 0.05))
    # A bar of one value is to be seen: the axis begins below 1.
    up = _scale(-0.3, highest, bottom, 14)
    parts = [_text(left - 4, up(power) + 4, _power(power), "tick end")
             + f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{up(power):.1f}" '
             f'y2="{up(power):.1f}"/>' for power in range(0, highest + 1, 1 + highest // 5)]
    outline = [f"M{at(edges[0]):.1f},{bottom}"]
    for count, start, end in zip(counts, edges, edges[1:]):
        y = up(math.log10(count)) if count else bottom
        outline.append(f"L{at(start):.1f},{y:.1f}H{at(end):.1f}")
    parts.append(f'<path class="series0" d="{"".join(outline)}V{bottom}Z"/>')
    for group, places in (("limit", set(limits)),
                          ("limit narrow", set(narrowest) - set(limits))):
        parts += [f'<line class="{group}" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="10" '
                  f'y2="{bottom}"><title>{x:.4g}</title></line>' for x in sorted(places)]
    parts += [_text(at(tick), bottom + 14, f"{tick:g}", "tick middle")
              for tick in _ticks(edges[0], edges[-1], 5) if edges[0] <= tick <= edges[-1]]
    about = (f"histogram of values from {edges[0]:.3g} to {edges[-1]:.3g}, clipped at "
             f"{' and '.join(f'{x:.4g}' for x in sorted(limits)) or 'nothing'}")
    return _svg(width, height, title, about, parts)


def lines(series, title):
    """Lines over steps, the area between the first two shaded.

    Args:
        series: list of (name, steps, values), one or two.
        title: what the plot shows.
    """
    width, height, left, bottom = 360, 150, 52, 122
    steps = [step for _, xs, _ in series for step in xs]
    values = [value for _, _, ys in series for value in ys]
    low, high = min(values), max(values)
    # (A scale that never moves: a line in the middle.)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    at = _scale(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1, left,
                width - 12)
    up = _scale(low - margin, high + margin, bottom, 10)
    parts = []
    for tick in _ticks(low - margin, high + margin, 4)[1:-1]:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{up(tick):.1f}" '
                     f'y2="{up(tick):.1f}"/>' + _text(left - 5, up(tick) + 4, f"{tick:.4g}",
                                                      "tick end"))
    for number, (name, xs, ys) in enumerate(series):
        points = [(at(x), up(y)) for x, y in zip(xs, ys)]
        if len(points) == 1:
            parts.append(f'<circle class="dot{number}" cx="{points[0][0]:.1f}" '
                         f'cy="{points[0][1]:.1f}" r="3"/>')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line{number}" points="{path}">'
                     f"<title>{escape(name)}</title></polyline>")
    ends = {min(steps), max(steps)}
    parts += [_text(at(step), bottom + 15, f"{step}", "tick middle") for step in sorted(ends)]
    parts.append(_text((left + width) / 2, bottom + 15, "step", "tick middle"))
    about = f"from {values[0]:.4g} to {series[0][2][-1]:.4g}, steps {min(steps)} to {max(steps)}"
    return _svg(width, height, title, about, parts)


def _svg(width, height, title, about, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} '
            f'{height:.0f}" width="{width:.0f}" height="{height:.0f}">'
            f"<title>{escape(title)}</title><desc>{escape(about)}</desc>{''.join(parts)}</svg>")


def _text(x, y, text, kind):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _legend(names, left):
    parts, x = [], left
    for number, name in enumerate(names):
        parts.append(f'<rect class="series{number}" x="{x:.0f}" y="2" width="12" height="10"/>')
        parts.append(_text(x + 17, 11, name, "label"))
        x += 30 + LABEL_WIDTH * len(name)
    return "".join(parts)


def _power(power):
    return f"{10 ** power}" if power < 4 else f"1e{power}"


def _scale(low, high, start, end):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low, high, count=8):
    """About ``count`` round numbers that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]
