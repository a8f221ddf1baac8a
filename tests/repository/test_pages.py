"""Every code block of the documentation runs, page by page, in the order in which it stands.

Python blocks of a page share their names. Bash blocks run in the page's folder with ``paddleq`` on
the path; where a block is nothing but calls of ``paddleq``, they are made in this process, because
starting Paddle takes longer than what they do (tests/cli runs every command as a process).
A block whose first line is a comment that is a file's name (``# recipe.yaml``) is that file. What a
page needs and a reader has already (data, a trained net) is in a comment that begins with
``<!-- setup``. A block that must not run here is preceded by ``<!-- not run: why -->``.

A page in Chinese has the blocks of the page in English, and so is not run a second time.
"""

import ast
import linecache
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import textwrap

import paddle
import pytest
from paths import ROOT

from paddleq.cli.main import main

PAGES = sorted(str(path.relative_to(ROOT)) for path in [
    *ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("demo/*.md"),
    *ROOT.glob("benchmarks/*.md")])
TRANSLATIONS = {page: page.replace("_cn.md", ".md").replace(".zh.md", ".md") for page in PAGES
                if page.endswith(("_cn.md", ".zh.md"))}
PIECES = re.compile(
    r"^<!--\s*not run: (?P<why>[^\n]+?)\s*-->\n+^```(?P<skipped>\w*)\n.*?^```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^(?:#|//) ([\w./-]+\.\w+)\n")
RUN = ("python", "bash")
SHOWN = ("", "text", "yaml", "json", "mermaid")  # nothing to run


def pieces(page):
    """(language, code) of what is to run, in order; ``file:NAME`` for what is to be written."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in PIECES.finditer(text):
        if found["why"] is not None:
            continue
        if found["setup"] is not None:
            yield "python", found["setup"]
            continue
        language, code = found["language"], found["code"]
        name = FILE.match(code)
        if name:
            yield f"file:{name[1]}", code
        elif language in RUN:
            yield language, code
        else:
            assert language in SHOWN, f"{page} has a block of {language!r}"


ELSEWHERE = {"docs/pdmodel_from_pir.md"}  # needs Paddle 3: test_pdmodel_page.py runs it
RUNNING = [page for page in PAGES
           if page not in ELSEWHERE | set(TRANSLATIONS) and any(pieces(page))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with ``paddleq`` on the path."""
    command = tmp_path / "bin" / "paddleq"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m paddleq "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    here = tmp_path / "page"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    return here


SHELL = re.compile(r"""[$`"|&;<>*?\[{~#!\\]""")


def own_calls(code):
    """Return the arguments of each call of ``paddleq``, None if the block needs a shell."""
    lines = code.replace("\\\n", " ").splitlines()
    calls = [shlex.split(line) for line in lines if line.strip()]
    more = any(SHELL.search(re.sub("'[^']*'", "", line)) for line in lines)
    return None if more or any(call[0] != "paddleq" for call in calls) else [
        call[1:] for call in calls]


@pytest.mark.parametrize("page", RUNNING)
def test_code_blocks_run(page, folder, capsys):
    paddle.seed(0)
    names = {"__name__": "page"}
    for number, (language, code) in enumerate(pieces(page)):
        if language.startswith("file:"):
            target = folder / language[5:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(code, encoding="utf-8")
        elif language == "python":
            # to_static reads the source of a class that the block defines.
            name = f"{page[:-3]}.block{number}.py"
            linecache.cache[name] = len(code), None, code.splitlines(True), name
            exec(compile(code, name, "exec"), names)
        elif own_calls(code) is not None:
            for arguments in own_calls(code):
                assert main(arguments) == 0, f"paddleq {arguments}\n{capsys.readouterr()}"
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=folder, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_blocks_that_need_a_shell_are_recognized():
    assert own_calls("paddleq ptq 'a b' \\\n  --input 'x:?x3'\n\npaddleq run r.yaml\n") == [
        ["ptq", "a b", "--input", "x:?x3"], ["run", "r.yaml"]]
    for code in ("paddleq inspect m > m.json\n", "paddleq run $HOME/r.yaml\n", "grep a b\n",
                 "paddleq run *.yaml\n", "paddleq run r.yaml || true\n"):
        assert own_calls(code) is None


def test_main_pages_are_run():
    assert {"README.md", "docs/recipes.md", "docs/command_line.md"} <= set(RUNNING)


FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(^|\s+)(#|//) .*$", re.MULTILINE)


def without_comments(language, code):
    """Return the code of a block without its comments, which translations translate."""
    if language == "python":
        return ast.dump(ast.parse(textwrap.dedent(code)))
    return [line.rstrip() for line in COMMENT.sub("", code).splitlines() if line.strip()]


def outline(page):
    """Return the structure that a translation keeps: headings, list items, tables, pictures."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    shape = []
    for line in text.splitlines():
        if line.startswith("#"):
            shape.append(line.partition(" ")[0])
        elif re.match(r" *(-|\d+\.) ", line):
            shape.append("item")
        elif line.startswith("|"):
            shape.append(len(re.findall(r"(?<!\\)\|", line)) - 1)
        elif line.startswith("!["):
            shape.append(LINK.findall(line))
    return shape


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_translation_has_the_same_code_and_outline(page):
    ours, theirs = ([(language, without_comments(language, code)) for language, code
                     in FENCE.findall((ROOT / each).read_text(encoding="utf-8"))]
                    for each in (page, TRANSLATIONS[page]))
    assert ours == theirs
    assert outline(page) == outline(TRANSLATIONS[page])


def test_every_page_has_a_translation():
    """The API reference, which is generated from docstrings, has none."""
    docs = {page for page in PAGES if page.startswith("docs/")}
    assert docs - set(TRANSLATIONS) - set(TRANSLATIONS.values()) == {"docs/api.md"}


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(path):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"),
                  flags=re.MULTILINE | re.DOTALL)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
             for title in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES)
def test_link_targets_exist(page):
    path = ROOT / page
    wrong = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        if not there.exists() or anchor and there.suffix == ".md" and anchor not in anchors(there):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_reachable_from_the_index():
    seen, todo = set(), [ROOT / "docs" / "index.md"]
    while todo:
        path = todo.pop().resolve()
        if path in seen or path.suffix != ".md" or not path.exists():
            continue
        seen.add(path)
        todo += path.parent.glob(f"{path.stem}.*.md")  # in other languages
        todo += [path.parent / link.partition("#")[0]
                 for link in LINK.findall(path.read_text(encoding="utf-8"))
                 if not link.startswith("http")]
    assert [page for page in PAGES if page.startswith("docs/")
            and (ROOT / page).resolve() not in seen] == []


def test_bash_is_installed():
    assert shutil.which("bash")
