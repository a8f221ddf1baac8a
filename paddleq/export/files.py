"""Writing a model's two files so that a killed export leaves the old model whole."""

from .._files import write_bytes, write_together
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
        write_together({
            params_path: lambda path: params.write(path, arrays, dtypes, proto),
            model_path: write_bytes(content),
        })
    except OSError as error:
        raise ExportError(f"cannot write {model_path}: {error}") from error
