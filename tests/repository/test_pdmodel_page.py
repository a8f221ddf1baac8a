"""Code, operator table and links of docs/pdmodel_from_pir.md."""

import re
import runpy

import pytest
from paths import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "pdmodel_from_pir.md").read_text(encoding="utf-8")


def blocks(kind):
    """Code in the page, without the indentation of the list that it is in."""
    pattern = re.compile(rf"^( *)```{kind}\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    for indent, code in pattern.findall(PAGE):
        yield re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


def squeezed(text):
    return " ".join(text.split())


TABLE = runpy.run_path(str(DOCS / "operator_table.py"))


@pytest.mark.parametrize("name", TABLE["PAGES"])
def test_operator_table_is_up_to_date(name):
    page = (DOCS / name).read_text(encoding="utf-8")
    assert TABLE["updated"](page, TABLE["PAGES"][name]) == page, (
        "out of date: run python docs/operator_table.py")


@pytest.mark.needs_pir
def test_python_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python"))
    exec(compile(code, "pdmodel_from_pir.md", "exec"), {})
    assert (tmp_path / "out" / "old.pdmodel").is_file()


def test_example_is_part_of_the_operator_table_and_cases():
    row, case = blocks("text")
    table = (DOCS.parent / "paddleq/export/pir_to_program/operator_table.txt").read_text(
        encoding="utf-8")
    cases = (DOCS.parent / "tests/helpers/pir_cases.py").read_text(encoding="utf-8")
    assert squeezed(row) in squeezed(table)
    assert len(case.splitlines()) == 2
    for line in case.splitlines():
        assert line in cases.splitlines()


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(links) > 5
    assert [link for link in links if not (DOCS / link).exists()] == []
