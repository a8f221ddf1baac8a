"""Computes every operator in every runtime and writes both pages "Operators and runtimes".

python docs/operator_runtimes.py takes about ten minutes. Names of operators: only these rows.
"""

import logging
import re
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path += [str(DOCS.parent), str(DOCS.parent / "tests/helpers")]
START, END = "<!-- operators: start -->\n", "<!-- operators: end -->\n"
PAGES = {"operators.md": {}, "operators.zh.md": {
    "right": "正确", "right, other form": "正确，改写", "refused by": "拒绝：", "wrong": "错误",
    "absent": "无此算子"}}


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


def rows(page):
    """Return {operator: entries} of a page."""
    table = page.partition(START)[2].partition(END)[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {each[0].strip("`"): each[1:] for each in cells if each and each[0].startswith("`")}


def written(page, found, words):
    """Return the text of a page with the rows ``found``."""
    before, rest = page.split(START)
    head = re.search(r"(\| .+\n)(\|[-|]+\n)", rest).group(0)
    lines = [f"| `{name}` | {' | '.join(_said(each, words) for each in entries)} |\n"
             for name, entries in found.items()]
    return before + START + head + "".join(lines) + END + rest.split(END)[1]


def _said(text, words):
    if text.startswith("refused by ") and words:
        return words["refused by"] + text[len("refused by "):]
    return words.get(text, text)


def main(names):
    """Measure and write."""
    import operator_conformance as conformance

    logging.disable(logging.WARNING)
    page = (DOCS / "operators.md").read_text(encoding="utf-8")
    known = {name: value for name, value in rows(page).items() if names and name not in names}
    found = {}
    for name in conformance.OPERATORS:
        if name not in known:
            with tempfile.TemporaryDirectory() as folder:
                cells = conformance.measure(name, Path(folder)) or {}
            known[name] = [entry(cells.get(each)) for each in conformance.RUNTIMES]
            print(name, known[name])
        found[name] = known[name]
    for each, words in PAGES.items():
        path = DOCS / each
        path.write_text(written(path.read_text(encoding="utf-8"), found, words), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
