"""Import order of the packages, and constructs that the library does not use.

``ORDER`` is the order of the design: a package may import the packages before it.
"""

import ast
import pathlib

import pytest
from paths import TESTS

import paddleq

ROOT = pathlib.Path(paddleq.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
GROUND = {"errors", "__version__", "_checks", "_layer_state", "_atomic_write", "_paddle_compat",
          "_registry", "_distributed"}
ORDER = ["number_formats", "spec", "functional", "observers", "fake_quant", "config", "graph", "nn",
         "engine", "checkpoint", "algorithms", "export", "saved_model", "analysis", "post_training",
         "frontends", "amct", "golden_stick", "paddleslim", "deploy", "recipes", "cli", "__main__"]


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_parts(path):
    """Parts of paddleq that a file imports, at its top or inside a function."""
    package = ["paddleq", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "paddleq":
                yield name[1] if len(name) > 1 else "paddleq"


def edges():
    """(part, imported part) -> files, for imports that leave their part."""
    found = {}
    for path in FILES:
        part = part_of(path)
        if part == "__init__":
            continue
        for other in imported_parts(path):
            if other != part:
                found.setdefault((part, other), set()).add(str(path.relative_to(ROOT)))
    return found


def test_import_order_contains_every_package():
    assert {part_of(path) for path in FILES} - {"__init__"} <= GROUND | set(ORDER)


def test_packages_import_only_earlier_packages():
    wrong = {f"{part} imports {other}": sorted(files)
             for (part, other), files in edges().items() if other not in GROUND
             and (part in GROUND or ORDER.index(other) > ORDER.index(part))}
    assert wrong == {}


def test_import_parser_finds_imports_of_known_modules():
    """The parser on imports whose answer is known."""
    assert "fake_quant" in set(imported_parts(ROOT / "nn" / "integer_layer.py"))
    assert "nn" in set(imported_parts(ROOT / "nn" / "quantized_layer.py"))  # from . import tracing
    qat = ROOT / "frontends" / "paddleslim" / "qat.py"
    assert {"spec", "observers"} <= set(imported_parts(qat))


def test_test_modules_do_not_import_each_other():
    """Shared code of tests is in ``tests/helpers``."""
    wrong = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            wrong += [f"{path}: {name}" for name in names
                      if name.rpartition(".")[2].startswith("test_") or name == "conftest"]
    assert wrong == []


UNPICKLING = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path):
    wrong = []
    if path.name == "restricted_unpickler.py":  # tests/checkpoint attacks it
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wrong += [alias.name for alias in node.names if alias.name in UNPICKLING]
        elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLING:
            wrong.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("paddle.load", "np.load"):  # ruff has rules for eval, exec and yaml.load
                wrong.append(f"line {node.lineno}: {name}")
    assert wrong == []
