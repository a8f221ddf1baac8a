"""Style of docstrings, comments and English pages: statements instead of questions."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTION = re.compile(r"\s*(What|Whether|How|Which|Where|Who)\b")
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
MOST_WHATS = 0.3  # in 100 lines of prose


def docstrings(source):
    """Yield (line number, docstring) of a module and of its classes and functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield node.body[0].lineno, text


def prose(path):
    """Return the lines of docstrings and comments of a .py file, or of a page."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [line for line in source.splitlines() if line.strip()]
    comments = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT]
    return comments + [line for _, text in docstrings(source)
                       for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("folder", ["paddleq", "tests", "benchmarks", "demo"])
def test_docstrings_do_not_begin_with_a_question(folder):
    found = [f"{path.relative_to(ROOT)}:{number}: {text.splitlines()[0]}"
             for path in sorted((ROOT / folder).rglob("*.py"))
             for number, text in docstrings(path.read_text(encoding="utf-8"))
             if QUESTION.match(text)]
    assert found == []


def test_prose_rarely_contains_what():
    paths = [*(ROOT / "paddleq").rglob("*.py"),
             *(path for path in (ROOT / "docs").rglob("*.md") if not path.name.endswith(".zh.md"))]
    lines = [(path.relative_to(ROOT), line) for path in sorted(paths) for line in prose(path)]
    assert len(lines) > 5000
    found = [f"{path}: {line.strip()}" for path, line in lines if WHAT.search(line)]
    assert len(found) <= MOST_WHATS * len(lines) / 100, "\n".join(found)


@pytest.mark.parametrize("source, expected", [
    ('"""What it does."""', [True]),
    ('class A:\n    """\n    Which."""\n    def f(self):\n        """Whatever."""', [True, False]),
    ('def f():\n    # What\n    return "How"', []),
])
def test_questions_are_found(source, expected):
    assert [bool(QUESTION.match(text)) for _, text in docstrings(source)] == expected


def test_lines_of_prose_are_found(tmp_path):
    (tmp_path / "a.py").write_text('"""One.\n\nTwo.\n"""\nx = "# no"  # three\n', encoding="utf-8")
    (tmp_path / "a.md").write_text("# Title\n\nText\n", encoding="utf-8")
    assert prose(tmp_path / "a.py") == ["# three", "One.", "Two."]
    assert prose(tmp_path / "a.md") == ["# Title", "Text"]
