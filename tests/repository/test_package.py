"""The package as it is installed."""

import importlib
import subprocess
import sys

import pytest
from paths import ROOT


def test_import_without_paddle_names_the_extras_with_paddle():
    code = "import sys; sys.modules['paddle'] = None; import paddleq"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE,
                          text=True, check=False)
    assert done.returncode != 0
    assert "paddleq[cpu]" in done.stderr and "paddleq[gpu]" in done.stderr


def test_package_has_the_marker_of_type_checkers():
    assert (ROOT / "paddleq" / "py.typed").is_file()


@pytest.mark.parametrize("name", ["amct", "golden_stick", "paddleslim"])
def test_front_ends_are_modules_of_the_package(name):
    module = importlib.import_module(f"paddleq.{name}")
    front_end = importlib.import_module(f"paddleq.frontends.{name}")
    assert module.__all__ == front_end.__all__
    for each in module.__all__:
        assert getattr(module, each) is getattr(front_end, each)
