"""What front doors that read saved models do alike."""

import os

from ..._checks import hint, wrong_type
from ...errors import ConfigError, FormatError
from ...export.program.passes.stored_weights import WEIGHTED_OPS

LINEAR_OPS = ("mul", "matmul", "matmul_v2")


def check_op_types(given):
    """The op types that a ``quantizable_op_type`` stands for: "mul" means Linear in any form."""
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise wrong_type("quantizable_op_type", given, "a list of op types")
    types = set()
    for entry in given:
        if entry not in WEIGHTED_OPS:
            raise ConfigError(f"quantizable_op_type does not know {entry!r}"
                              f"{hint(entry, WEIGHTED_OPS)}; valid: {', '.join(WEIGHTED_OPS)}")
        types.update(LINEAR_OPS if entry == "mul" else (entry,))
    return types


def find_files(folder, model, parameters):
    """(path of the model, path of the parameters) in the folder of a saved model.

    Args:
        folder: the folder.
        model, parameters: names in it, or None where they can be found.

    Raises:
        FormatError: there is no such folder, or nothing or too much to choose from.
    """
    if not os.path.isdir(folder):
        raise FormatError(f"model_dir must be a folder, but there is none at {folder}")
    names = sorted(os.listdir(folder))
    if model is None:
        found = ([n for n in names if n.endswith(".pdmodel")]
                 or [n for n in names if n.endswith(".json")]
                 or [n for n in names if n == "__model__"])
        if len(found) != 1:
            raise FormatError(f"model_filename must be given: {folder} holds "
                              f"{', '.join(found) or 'no .pdmodel, .json or __model__'}")
        model = found[0]
    if parameters is None:
        stem, ending = os.path.splitext(model)
        stem = stem if ending in (".pdmodel", ".json") else None
        for candidate in ([f"{stem}.pdiparams"] if stem else ["__params__"]):
            if candidate in names:
                parameters = candidate
    path = os.path.join(folder, model)
    if parameters is None and model.endswith(".json"):
        return path, None
    # Without a file for all of them, each parameter has a file of its own beside the model.
    return path, os.path.join(folder, parameters) if parameters else folder
