"""Reading a saved model of either format."""

import os

from ..pir_to_program import from_pir
from .program import Program


def load_saved(model_path, params_path):
    """The :class:`~.program.Program` of a ``.pdmodel``, ``__model__`` or PIR ``.json``.

    Args:
        model_path: the file of the model.
        params_path: the file of all parameters; for the older formats also a folder with a file
            for each. None: there are none.

    Raises:
        FormatError: a file is missing or damaged.
        UnsupportedOperatorError: a PIR program has an operation without legacy counterpart.
    """
    if os.fspath(model_path).endswith(".json"):
        return from_pir(model_path, params_path)
    return Program.load(model_path, params_path)
