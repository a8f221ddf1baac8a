"""Write docs/api.md from `__all__` of the public modules: python docs/generate_api.py"""

import importlib
import pathlib
import types

PAGE = pathlib.Path(__file__).resolve().parent / "api.md"
MODULES = ["paddleq", "paddleq.amct", "paddleq.golden_stick", "paddleq.paddleslim",
           "paddleq.config", "paddleq.observers", "paddleq.functional", "paddleq.algorithms",
           "paddleq.analysis", "paddleq.nn", "paddleq.export", "paddleq.deploy", "paddleq.recipes",
           "paddleq.errors"]
HEAD = """\
# API

Public names with their docstrings. The examples run in CI. `python docs/generate_api.py`
generates this page from `__all__` of the public modules.
"""


def public_names(module):
    """Return the classes and functions of ``__all__``, or those that the module defines."""
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__]
    return [name for name in names
            if isinstance(getattr(module, name), (type, types.FunctionType))]


def page():
    """Return the text of the page."""
    parts = [HEAD]
    for name in MODULES:
        path = name.split(".")
        module = importlib.import_module(path[0])
        for part in path[1:]:
            module = getattr(module, part, None) or importlib.import_module(name)
        parts.append(f"## `{name}`\n")
        parts += [f"::: {name}.{each}\n" for each in public_names(module)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
