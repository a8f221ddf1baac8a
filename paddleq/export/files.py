"""Writing a model's two files so that a killed export leaves the old model whole."""

import errno
import os
import tempfile

from ..errors import ExportError
from . import params


def write_model(model_path, content, params_path, arrays, dtypes, proto):
    """Write both files beside their targets, then rename them into place.

    Args:
        model_path, params_path: the targets; their folders are made.
        content: bytes of the model.
        arrays, dtypes, proto: see :func:`.params.write`.

    Raises:
        ExportError: the target cannot be written.
    """
    try:
        for path in (model_path, params_path):
            if os.path.isdir(path):  # found out by the second rename it would be too late
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        folder = os.path.dirname(os.path.abspath(model_path))
        os.makedirs(folder, exist_ok=True)
        # A folder of its own on the same file system: whatever happens, it goes as a whole.
        with tempfile.TemporaryDirectory(prefix=".paddleq-", dir=folder) as beside:
            new_model, new_params = (os.path.join(beside, n) for n in ("model", "params"))
            params.write(new_params, arrays, dtypes, proto)
            with open(new_model, "wb") as file:
                file.write(content)
            os.makedirs(os.path.dirname(os.path.abspath(params_path)), exist_ok=True)
            os.replace(new_params, params_path)
            os.replace(new_model, model_path)
    except OSError as error:
        raise ExportError(f"cannot write {model_path}: {error}") from error
