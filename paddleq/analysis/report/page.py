"""The HTML page of a report, without what it reports: layout and colours.

It refers to nothing outside of itself, and runs no script.
"""

from html import escape

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c2430; --soft: #556170; --page: #f6f7f9;
  --card: #fff; --edge: #dbe0e6; --first: #2f6cab; --second: #c2571a; --limit: #b3261e;
  --grid: #e4e8ed; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6e9ee; --soft: #a5afbc; --page: #14181e;
  --card: #1d232b; --edge: #38414d; --first: #6ea8e5; --second: #f0965a; --limit: #ff8a80;
  --grid: #2c343f; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }}
h2 {{ font-size: 19px; margin: 0 0 8px; }}
h3 {{ font-size: 15px; margin: 0; display: inline; }}
p {{ margin: 0 0 10px; max-width: 75ch; }}
.soft, figcaption {{ color: var(--soft); }}
section {{ background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  padding: 18px 20px; margin-top: 18px; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 18px 0 0; }}
dl div {{ background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  padding: 10px 14px; }}
dt {{ color: var(--soft); font-size: 13px; }}
dd {{ margin: 0; font-size: 20px; font-weight: 600; overflow-wrap: anywhere; }}
dd small {{ display: block; font-size: 13px; font-weight: 400; color: var(--soft); }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
caption {{ text-align: left; color: var(--soft); padding-bottom: 8px; }}
th, td {{ text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; }}
thead th {{ color: var(--soft); font-weight: 600; white-space: nowrap; }}
tbody th {{ font-weight: 600; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
figure {{ margin: 0; }}
figcaption {{ font-size: 13px; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 14px 22px; }}
details {{ border-top: 1px solid var(--edge); padding: 8px 0; }}
summary {{ cursor: pointer; }}
summary:focus-visible, .scroll:focus-visible {{ outline: 2px solid var(--first);
  outline-offset: 2px; }}
svg {{ display: block; }}
.plots svg {{ max-width: 100%; height: auto; }}
svg text {{ fill: var(--soft); font-size: 11px; }}
svg text.label {{ fill: var(--text); font-size: 12px; }}
svg .middle {{ text-anchor: middle; }}
svg .end {{ text-anchor: end; }}
svg text.value {{ font-size: 9.5px; }}
.series0 {{ fill: var(--first); }}
.series1 {{ fill: var(--second); }}
.grid {{ stroke: var(--grid); }}
.limit {{ stroke: var(--limit); stroke-width: 1.6; }}
.narrow {{ stroke-dasharray: 4 3; stroke-width: 1.2; }}
.line0, .line1 {{ fill: none; stroke: var(--first); stroke-width: 1.8; }}
.line1 {{ stroke: var(--second); stroke-dasharray: 5 3; }}
.dot0, .dot1 {{ fill: var(--first); }}
@media print {{ body {{ background: none; }} section {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
</header>
{content}
<footer><p class="soft">{footer}</p></footer>
</main>
</body>
</html>
"""


def page(title, subtitle, content, footer):
    """The page; ``content`` is HTML, the rest text."""
    return _PAGE.format(title=escape(title), subtitle=escape(subtitle),
                        content="\n".join(content), footer=escape(footer))


def section(title, *content):
    """A section of the page; ``content`` is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def paragraph(text):
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def figures(list_of):
    """Plots beside each other: (SVG, text below it) each."""
    inner = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
                    for svg, caption in list_of)
    return f'<div class="plots">{inner}</div>'


def wide(html, what):
    """What may be wider than the page, in a region that scrolls; ``what`` names it."""
    return (f'<div class="scroll" role="region" aria-label="{escape(what)}" tabindex="0">{html}'
            "</div>")


def facts(pairs):
    """Key figures: (name, figure, remark) each."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}"
                    f"<small>{escape(remark)}</small></dd></div>"
                    for name, figure, remark in pairs)
    return f"<dl>{inner}</dl>"


def table(caption, titles, rows, numbers=()):
    """A table; the first cell of a row names it.

    Args:
        caption, titles, rows: texts.
        numbers: the columns that hold numbers.
    """
    def kind(column):
        return ' class="number"' if column in numbers else ""

    head = "".join(f'<th scope="col"{kind(i)}>{escape(title)}</th>'
                   for i, title in enumerate(titles))
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{kind(i)}>{escape(cell)}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>" for row in rows)
    return wide(f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n"
                f"<tbody>{body}</tbody></table>", caption)


def foldable(title, remark, content, opened=False):
    """A part that can be opened and closed; ``content`` is HTML."""
    return (f"<details{' open' if opened else ''}><summary><h3>{escape(title)}</h3> "
            f'<span class="soft">{escape(remark)}</span></summary>{content}</details>')
