"""Docstrings of public names, their examples, and the generated API page."""

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import types

import paddle
import pytest
from paths import ROOT

import paddleq
from paddleq.recipes.methods import METHODS

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PACKAGES = ["paddleq", "paddleq.observers", "paddleq.functional", "paddleq.config",
            "paddleq.algorithms", "paddleq.analysis", "paddleq.deploy",
            "paddleq.golden_stick"]
MODULES = ["paddleq", *sorted(
    info.name for info in pkgutil.walk_packages(paddleq.__path__, "paddleq.")
    if not info.name.endswith("__main__"))]


def public_names():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            yield f"{package}.{name}"


def resolve(dotted):
    package, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(package), name)


def examples(text):
    return doctest.DocTestParser().get_examples(text or "")


def own_members(module):
    """Public classes and functions that a module defines itself."""
    return {name: value for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            and (inspect.isclass(value) or inspect.isfunction(value))}


@pytest.mark.parametrize("dotted", public_names())
def test_public_name_has_a_docstring_with_an_example(dotted):
    value = resolve(dotted)
    if isinstance(value, types.ModuleType):
        # A module that is public by itself (errors, functional.kl) shows its parts.
        assert value.__doc__, f"{dotted} has no docstring"
        members = own_members(value)
        assert members
        bare = [name for name, member in members.items() if not inspect.getdoc(member)]
        assert bare == []
        shown = [text for text in (value.__doc__, *map(inspect.getdoc, members.values()))
                 if examples(text)]
        assert shown, f"no example in {dotted}"
    elif isinstance(value, (int, float)):
        # Python keeps no docstring of a constant: the source has a string below it.
        package = importlib.import_module(dotted.rpartition(".")[0])
        source = "".join(inspect.getsource(importlib.import_module(name))
                         for name in MODULES if name.startswith(package.__name__))
        name = dotted.rpartition(".")[2]
        assert any(line.startswith(f"{name} = ") and after.startswith('"""')
                   for line, after in zip(source.splitlines(), source.splitlines()[1:]))
    else:
        # Not inherited: a docstring of the base class is about something else.
        text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        assert text, f"{dotted} has no docstring"
        assert examples(text), f"the docstring of {dotted} has no >>> example"


@pytest.mark.parametrize("dotted", public_names())
def test_public_methods_have_docstrings(dotted):
    value = resolve(dotted)
    methods = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
    bare = [name for name, method in methods
            if not name.startswith("_") and method.__module__.startswith("paddleq")
            and not inspect.getdoc(method)]
    assert bare == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    """Runs in an empty folder, because examples may write files."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    failed = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        if not test.examples:
            continue
        paddle.seed(0)
        said = []
        result = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(
            test, out=said.append)
        failed += said if result.failed else []
    assert not failed, "".join(failed)


def test_examples_are_collected():
    """Guards against a collection that finds nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = sum(len(test.examples) for name in MODULES
                for test in finder.find(importlib.import_module(name), name))
    assert count > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_names_in_all_exist_and_are_unique(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_api_page_is_generated_from_public_names():
    api = runpy.run_path(str(ROOT / "docs" / "generate_api.py"))
    assert api["PAGE"].read_text(encoding="utf-8") == api["page"](), (
        "out of date: run python docs/generate_api.py")
    assert set(PACKAGES) - {"paddleq.frontends.golden_stick"} <= set(api["MODULES"])


@pytest.mark.parametrize("page", ["recipes.md", "recipes.zh.md"])
def test_pages_on_recipes_have_all_methods_and_their_keys(page):
    cells = [line.split("|")[1:] for line in (ROOT / "docs" / page).read_text(
        encoding="utf-8").splitlines() if line.startswith("| `quantize.")]
    keys = {key: value for name, value, *_ in cells
            for key in re.findall(r"`(?:quantize\.)?(\w+)`", name)}
    assert {name for name in METHODS if f"`{name}`" in keys["method"]} == set(METHODS)
    assert keys.keys() - {"method"} == {key for each in METHODS.values() for key in each.keys}
