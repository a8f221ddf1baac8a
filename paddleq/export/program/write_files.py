"""Writing an export's files so that one that is killed leaves the old model whole."""

from ..._atomic_write import write_bytes, write_together
from ...errors import ExportError
from . import pdiparams as params


def write_model(model_path, content, params_path, arrays, dtypes, proto, record=None):
    """Write both files beside their targets, then rename them into place.

    Args:
        model_path, params_path: the targets; their folders are made.
        content: bytes of the model.
        arrays, dtypes, proto: see :func:`.params.write`.
        record: see :func:`write_export`.

    Raises:
        ExportError: the target cannot be written.
    """
    write_export(model_path, {
        params_path: lambda path: params.write(path, arrays, dtypes, proto),
        model_path: write_bytes(content),
    }, record)


def write_export(model_path, writers, record=None):
    """Write the files of one export, all or none.

    Args:
        model_path: the one of them that is the model.
        writers: see :func:`paddleq._atomic_write.write_together`.
        record: the :class:`~..provenance_file.Record` to lie beside them. None: none, as for what is no
            export but on its way to one.

    Raises:
        ExportError: a target cannot be written.
    """
    try:
        if record is None:
            write_together(writers)
        else:
            record.write_with(model_path, writers)
    except OSError as error:
        raise ExportError(f"cannot write {model_path}: {error}") from error
