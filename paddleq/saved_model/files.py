"""Find the files of a saved model."""

import os
from typing import Optional, Tuple, Union

from .._checks import check_path
from ..errors import FormatError
from ..export.provenance_file import PADDLE_MODELS, paddle_models

_OTHERS = (".onnx", ".xml", ".bin", ".nb")


def find_files(folder: str, model: Optional[str] = None,
               parameters: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """Return the paths of the model and of its parameters in the folder of a saved model.

    Args:
        model, parameters: file names in it. Default: the only ``.pdmodel``, else the only
            ``.json`` (of two with one name, that which the record beside them describes), else
            ``__model__``; and the ``.pdiparams`` of the same name, else
            ``__params__``, else the folder itself, which has one file for each parameter.
    """
    folder = check_path("model_dir", folder, "the folder of a saved model")
    if model is not None:
        model = check_path("model_filename", model, "the name of a file")
    if parameters is not None:
        parameters = check_path("params_filename", parameters, "the name of a file")
    if not os.path.isdir(folder):
        raise FormatError(f"model_dir must be a folder, but there is none at {folder}")
    names = sorted(os.listdir(folder))
    if model is None:
        found = next(filter(None, ([name for name in names if name.endswith(ending)]
                                   for ending in (*PADDLE_MODELS, "__model__"))), [])
        if len(found) != 1:
            raise FormatError(f"model_filename must be given: {folder} holds "
                              f"{', '.join(found) or 'no .pdmodel, .json or __model__'}")
        (model,) = found
        if model.endswith(PADDLE_MODELS):
            model = os.path.basename(paddle_models(
                os.path.join(folder, os.path.splitext(model)[0]))[0])
    path, (stem, ending) = os.path.join(folder, model), os.path.splitext(model)
    if parameters is None:
        parameters = f"{stem}.pdiparams" if ending in PADDLE_MODELS else "__params__"
        if parameters not in names:
            return path, None if ending == ".json" else folder
    return path, os.path.join(folder, parameters)


def locate(path: Union[str, os.PathLike]) -> Tuple[str, Optional[str]]:
    """Return the paths of the model and of its parameters, given prefix, file or folder."""
    path = check_path("path", path, "a folder, file or prefix of a saved model")
    if os.path.isdir(path):
        return find_files(path)
    if path.endswith(_OTHERS):
        raise FormatError(f"{path} is a file for another runtime: give the .pdmodel or .json that "
                          "it was made of, or its prefix")
    for model in [path] if os.path.isfile(path) else paddle_models(path):
        folder, name = os.path.split(model)
        return find_files(folder or ".", name)
    raise FormatError(f"there is no saved model at {path}: neither a folder nor a file nor the "
                      "prefix of a .pdmodel or .json")
