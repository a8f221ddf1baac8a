"""Entry points of the conversion: read files of Paddle 3 and convert them."""

import os
from contextlib import contextmanager
from typing import Optional, Union

from ..._checks import check_path
from ...errors import ConfigError, ExportError, FormatError
from ..program import pdiparams as params
from ..program.passes.backward_slices import PADDLE_3, write_backward_slices
from ..program.passes.runtime_workarounds import apply_runtime_workarounds
from ..program.passes.transposed_convolutions import resolve_output_sizes
from ..program.program import Program
from ..program.validate import CONTRADICTIONS
from ..provenance_file import Provenance, check_files
from .convert import Converter, damaged
from .pir_graph import read_pir

Path = Union[str, "os.PathLike[str]"]


def from_pir(model_path: Path, params_path: Optional[Path] = None) -> Program:
    """Read a PIR ``.json`` and its parameters (None: there are none); see :func:`load_program`."""
    check_files(model_path, params_path)
    block = read_pir(model_path)
    stored = block.stored_parameters()
    if stored and params_path is None:
        raise FormatError(f"{model_path} has {len(stored)} parameters, but there is no file of "
                          "parameters beside it")
    reserved = {"feed", "fetch"} & set(stored)
    if reserved:
        raise FormatError(f"{model_path}: a parameter must not be called {min(reserved)!r}")
    dtypes = {name: value.dtype for name, value in stored.items()}
    arrays = {}
    if params_path is not None:
        arrays = params.read(params_path, dtypes,
                             {name: value.shape for name, value in stored.items()})
    with _damage_reported(model_path):
        program = Converter({name: (array, dtypes[name]) for name, array in arrays.items()}).run(
            block)
        write_backward_slices(program, PADDLE_3)
        resolve_output_sizes(program, computed=True)
    return program


@contextmanager
def _damage_reported(model_path):
    """Raise FormatError with the path for errors that a damaged program causes."""
    try:
        yield
    except ExportError:
        raise
    except RecursionError as error:
        raise FormatError(f"{model_path} is nested too deeply") from error
    except CONTRADICTIONS as error:
        raise damaged(model_path, error) from error


def load_program(model_path: Path, params_path: Optional[Path]) -> Program:
    """Read a saved model of either format as a :class:`~paddleq.export.program.program.Program`.

    Args:
        model_path: the ``.pdmodel``, ``__model__`` or PIR ``.json``.
        params_path: the file of all parameters; for the older formats also a folder with one file
            per parameter. None: there are none.

    Raises:
        FormatError: a file is missing or damaged.
        UnsupportedOperatorError: a PIR program has an operation without legacy counterpart.
    """
    if os.fspath(model_path).endswith(".json"):
        return from_pir(model_path, params_path)
    check_files(model_path, params_path)
    program = Program.load(model_path, params_path)
    write_backward_slices(program, program.desc.version.version)
    resolve_output_sizes(program, computed=True)
    return program


def to_program_desc(model: Path, output: Path, params_file: Optional[Path] = None) -> None:
    """Convert a model that Paddle 3 saved as PIR to the format that every runtime reads.

    Paddle 3 writes ``name.json`` and ``name.pdiparams``. Paddle-Lite, OpenVINO and the int8 mode of
    Paddle Inference read ``name.pdmodel`` and ``name.pdiparams``. The computation and the names of
    inputs, outputs and parameters are kept. Paddle 3 is not required.

    Args:
        model: path of the ``.json``, or the prefix without it.
        output: prefix of the files to write; ``.pdmodel`` and ``.pdiparams`` are appended.
            Existing files are replaced atomically.
        params_file: the parameters. None: ``.pdiparams`` beside the ``.json`` if it exists.

    Raises:
        FormatError: a file is missing, damaged, or no PIR program.
        UnsupportedOperatorError: an operator of the model is not in the table; names the operator
            and its layer.
        ExportError: the target cannot be written.

    Examples:
        >>> import os, tempfile
        >>> import paddle, paddleq
        >>> folder = tempfile.mkdtemp()
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.GELU())
        >>> spec = [paddle.static.InputSpec([None, 4], "float32", "x")]
        >>> paddle.jit.save(net, folder + "/net", input_spec=spec)
        >>> if os.path.exists(folder + "/net.json"):  # Paddle 3
        ...     paddleq.export.to_program_desc(folder + "/net", folder + "/old")
        ...     assert os.path.exists(folder + "/old.pdmodel")
    """
    model, output = check_path("model", model, "a path"), check_path("output", output, "a path")
    if params_file is not None:
        params_file = check_path("params_file", params_file, "a file of parameters")
    if model.endswith(".pdmodel"):
        raise FormatError(f"{model} is no PIR program: it has the format to be written already")
    if not model.endswith(".json"):
        model += ".json"
    if os.path.basename(output) == "" or os.path.isdir(output):
        raise ConfigError(f"output must be the prefix of files such as 'out/model', but is the "
                          f"folder {output!r}")
    if params_file is None and os.path.exists(model[:-len("json")] + "pdiparams"):
        params_file = model[:-len("json")] + "pdiparams"
    program = from_pir(model, params_file)
    with _damage_reported(model):
        apply_runtime_workarounds(program)
    program.save(output + ".pdmodel", output + ".pdiparams",
                 Provenance.of_saved("pdmodel", program, [model, params_file]), workarounds=False)
