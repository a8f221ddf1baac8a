"""The package as it is installed."""

import subprocess
import sys

from paths import ROOT


def test_importing_without_paddle_says_which_wheels_there_are():
    code = "import sys; sys.modules['paddle'] = None; import paddleq"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE,
                          text=True, check=False)
    assert done.returncode != 0
    assert "paddleq[cpu]" in done.stderr and "paddleq[gpu]" in done.stderr


def test_the_package_carries_what_type_checkers_need():
    assert (ROOT / "paddleq" / "py.typed").is_file()
