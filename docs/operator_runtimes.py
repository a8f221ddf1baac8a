"""Computes operators and layers in every runtime and writes the pages "Operators and runtimes".

python docs/operator_runtimes.py takes about ten minutes. Names of operators or layers: only these
rows.
"""

import logging
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path += [str(DOCS.parent), str(DOCS.parent / "tests/helpers")]
TABLES = ("operators", "layers")
PAGES = {"operators.md": {}, "operators.zh.md": {
    "right": "正确", "right, other form": "正确，改写", "refused by": "拒绝：", "wrong": "错误",
    "absent": "无此算子", "right / other form / refused": "正确 / 改写 / 拒绝"}}


def entry(cell):
    """Text of a result, in English."""
    if cell is None:
        return "absent"
    if cell.verdict == "right":
        return "right, other form" if cell.rewritten else "right"
    return f"refused by {_author(cell.reason)}" if cell.verdict == "refused" else "wrong"


def _author(reason):
    for each in ("paddle2onnx", "OpenVINO"):
        if reason.startswith(each):
            return each
    if "operator table" in reason or "ONNX form" in reason or "paddleq" in reason:
        return "paddleq"
    return "Paddle"


def _parts(page, table):
    """Return the text of a page before a table, the table, and the text behind it."""
    before, _, rest = page.partition(f"<!-- {table}: start -->\n")
    lines, _, after = rest.partition(f"<!-- {table}: end -->\n")
    return before, lines, after


def rows(page, table):
    """Return {name: entries} of a table of a page."""
    cells = [line.strip("| ").split(" | ") for line in _parts(page, table)[1].splitlines()]
    return {each[0].strip("`"): each[1:] for each in cells if each and each[0].startswith("`")}


def written(page, table, found, words):
    """Return the text of a page with the rows ``found`` in a table."""
    before, lines, after = _parts(page, table)
    head = re.search(r"(\| .+\n)(\|[-|]+\n)", lines).group(0)
    lines = [f"| `{name}` | {' | '.join(_said(each, words) for each in entries)} |\n"
             for name, entries in found.items()]
    lines.append(f"| {_said('right / other form / refused', words)} | "
                 f"{' | '.join(map(_counts, zip(*found.values())))} |\n")
    return (before + f"<!-- {table}: start -->\n" + head + "".join(lines)
            + f"<!-- {table}: end -->\n" + after)


def _counts(column):
    """Numbers of the entries of a column."""
    counts = Counter(each.partition(" by ")[0] for each in column)
    return " / ".join(str(counts[each]) for each in ("right", "right, other form", "refused"))


def _said(text, words):
    if text.startswith("refused by ") and words:
        return words["refused by"] + text[len("refused by "):]
    return words.get(text, text)


def main(names):
    """Measure and write."""
    import layer_conformance as layers
    import operator_conformance as operators

    logging.disable(logging.WARNING)
    for table, measure, cases in (("operators", operators.measure, operators.OPERATORS),
                                  ("layers", layers.measure, layers.LAYERS)):
        page = (DOCS / "operators.md").read_text(encoding="utf-8")
        known, found = rows(page, table), {}
        for name in cases:
            if name not in known or not names or name in names:
                with tempfile.TemporaryDirectory() as folder:
                    cells = measure(name, Path(folder)) or {}
                known[name] = [entry(cells.get(each)) for each in operators.RUNTIMES]
                print(name, known[name])
            found[name] = known[name]
        for each, words in PAGES.items():
            path = DOCS / each
            path.write_text(written(path.read_text(encoding="utf-8"), table, found, words),
                            encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
