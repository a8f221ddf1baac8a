"""The package as it is installed."""

import ast
import importlib
import operator
import subprocess
import sys

import pytest
from paths import ROOT

import paddleq


def test_import_without_paddle_names_the_extras_with_paddle():
    code = "import sys; sys.modules['paddle'] = None; import paddleq"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE,
                          text=True, check=False)
    assert done.returncode != 0
    assert "paddleq[cpu]" in done.stderr and "paddleq[gpu]" in done.stderr


def test_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse((ROOT / "paddleq" / "__init__.py").read_text(encoding="utf-8"))
    imports = [each for node in tree.body if isinstance(node, ast.If) for each in node.body
               if isinstance(each, ast.ImportFrom)]
    lazy = {name: module for module, names in paddleq._HOMES.items() for name in names.split()}
    assert lazy == {each.name: f".{node.module}" for node in imports if node.module
                    for each in node.names}
    assert set(paddleq.__all__) <= {*lazy, *(each.name for node in imports if not node.module
                                             for each in node.names)}


@pytest.mark.parametrize("name", ["PTQ", "SavedModel", "deploy", "nn", "amct"])
def test_names_are_found_in_any_order_of_imports(name):
    code = (f"import sys, paddleq; assert 'paddle' not in sys.modules; first = paddleq.{name}; "
            f"from paddleq import {name}; assert first is {name}; assert '{name}' in dir(paddleq)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'QTA'"):
        paddleq.QTA  # noqa: B018


def test_package_has_the_marker_of_type_checkers():
    assert (ROOT / "paddleq" / "py.typed").is_file()


@pytest.mark.parametrize("name", ["amct", "golden_stick", "paddleslim"])
def test_front_ends_are_modules_of_the_package(name):
    module = importlib.import_module(f"paddleq.{name}")
    front_end = importlib.import_module(f"paddleq.frontends.{name}")
    assert module.__all__ == front_end.__all__
    for each in module.__all__:
        assert getattr(module, each) is getattr(front_end, each)


# Names of PaddleSlim that the scripts of PaddleOCR, PaddleDetection, PaddleSeg and PaddleClas use.
@pytest.mark.parametrize("module, name, target", [
    ("paddleslim", "QAT", "QAT"), ("paddleslim", "PTQ", "PTQ"),
    ("paddleslim.dygraph.quant", "QAT", "QAT"), ("paddleslim.dygraph.quant", "PTQ", "PTQ"),
    ("paddleslim.quant", "quant_post_static", "quant_post_static"),
    ("paddleslim.quant", "quant_post_dynamic", "quant_post_dynamic"),
    ("paddleslim.auto_compression", "AutoCompression", "paddleslim.AutoCompression"),
])
def test_names_of_paddleslim_are_below_paddleq(module, name, target):
    paddleq = importlib.import_module("paddleq")
    expected = operator.attrgetter(target)(paddleq)
    assert getattr(importlib.import_module(f"paddleq.{module}"), name) is expected
    found = paddleq
    for part in [*module.split("."), name]:  # without an import of its own
        found = getattr(found, part)
    assert found is expected
