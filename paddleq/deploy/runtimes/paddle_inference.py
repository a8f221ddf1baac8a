"""Paddle Inference."""

import contextlib
import logging
import os
from typing import Optional, Union

from ..._atomic_write import temporary_folder
from ..._checks import check_bool
from ..._paddle_compat import framework_proto
from ...errors import ConfigError, ExportError
from ...export.paddle.int8_kernels import use_int8_kernels
from ...export.paddle.lower import MarkerRemoval, ProgramLowering
from ...export.paddle.markers_from_program import raise_to_markers
from ...export.pir_to_program import load_program
from ...export.program.inference import run_predictor
from ...export.program.op_desc import all_inputs, all_outputs, make_op
from ...export.program.validate import contradictions_reported
from ...export.provenance_file import Provenance
from ..model_file import TensorInfo, model_files, pdmodel_prefix
from ..saturation import fallback_reason, has_vnni, saturating_layers
from .base import CompiledOperator, Runtime, Session, convert_errors, register_runtime

_logger = logging.getLogger("paddleq")


@register_runtime("paddle")
class PaddleInference(Runtime):
    """Paddle Inference with oneDNN, for ``.pdmodel``, and for ``.json`` after conversion."""

    title, module = "Paddle Inference", "paddle"
    kinds = (".pdmodel", ".json")
    remedy = "pip install 'paddleq[cpu]'"
    automatic = True
    references = (".pdmodel", ".json")

    int8_types = frozenset((
        "concat", "conv2d", "depthwise_conv2d", "elementwise_add", "elementwise_mul",
        "elementwise_sub", "fc", "fused_conv2d", "fused_elementwise_add", "fused_elementwise_mul",
        "fused_elementwise_sub", "fused_matmul", "fused_transpose", "fusion_gru", "fusion_lstm",
        "matmul", "matmul_v2", "nearest_interp", "nearest_interp_v2", "pool2d", "reshape2", "slice",
        "split", "transpose2"))

    def load(self, file, threads, as_is=False):
        return _Session(*self._load(file, threads, as_is))

    def compiled_operators(self, file, threads):
        with temporary_folder() as folder:
            _, _, fallback = self._load(file, threads, False, folder)
            desc = framework_proto().ProgramDesc()
            with open(os.path.join(folder, _OPTIMIZED), "rb") as saved:
                desc.ParseFromString(saved.read())
        return [each for block in desc.blocks for each in _operators(block)], fallback

    def _load(self, file, threads, as_is, optimized=None):
        """Return (Paddle's predictor, file, reason for float kernels)."""
        program = file.check()
        int8, fallback, changed = file.quantized and not as_is, "", False
        if int8:
            program = load_program(file.path, file.params)
            fallback, changed = _prepare(program, has_vnni())
        with temporary_folder() as folder, convert_errors(
                self.title, file):
            try:
                made = _predictor(file, program if changed else None, folder, threads, as_is,
                                  int8 and not fallback, optimized)
            except RuntimeError as error:
                if not int8 or fallback:
                    raise
                fallback = ("computed in float: Paddle Inference refuses it in int8: "
                            f"{str(error).strip().splitlines()[-1]}")
                made = _predictor(file, None, folder, threads, as_is, False, optimized)
        return made, file, fallback


_OPTIMIZED = "_optimized.pdmodel"  # Paddle's name
_CONVERSIONS = {"quantize", "dequantize", "requantize", "assign"}


def _operators(block):
    """Return the :class:`CompiledOperator` of each operator of a block.

    oneDNN selects a kernel by the type of its input. Paddle's passes append attributes that are
    there already.
    """
    integers, producers, found = set(), {}, []
    for op in block.ops:
        if op.type in ("feed", "fetch"):
            continue
        read, written = all_inputs(op), all_outputs(op)
        int8 = not integers.isdisjoint(read)
        to_float = op.type == "dequantize" or any(
            each.b for each in op.attrs if each.name == "force_fp32_output")
        fused = any(each.name == "output_data_type" and each.s in ("int8", "uint8")
                    for each in op.attrs)  # a transposition that quantizes
        if op.type == "quantize" or fused or int8 and not to_float:
            integers.update(written)
        name = written[0] if written else op.type
        found.append(CompiledOperator(
            name, op.type, "int8" if int8 else "float", op.type in _CONVERSIONS,
            tuple(producers[each] for each in read if each in producers)))
        producers.update(dict.fromkeys(written, name))
    return found


def _predictor(file, program, folder, threads, as_is, int8, optimized):
    """Return Paddle's predictor of ``program``, or of the one in ``file`` where that is None.

    ``optimized`` is a folder for the program after Paddle's passes, or None.
    """
    from paddle import inference

    model, params = file.path, file.params or ""
    if program is not None or file.kind != ".pdmodel":
        model, params = (os.path.join(folder, name) for name in ("m.pdmodel", "m.pdiparams"))
        (program or file.program).save(model, params, workarounds=False)
    config = inference.Config(model, params)
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    if as_is:
        config.switch_ir_optim(False)
        config.disable_mkldnn()
    else:
        config.enable_mkldnn()
        if int8:
            config.enable_mkldnn_int8()
    if optimized is not None:
        config.enable_save_optim_model(True)
        config.set_optim_cache_dir(optimized)
    return inference.create_predictor(config)


def _prepare(program, vnni):
    """Change a quantized program in place; return (reason for float kernels or "", changed)."""
    layers = [] if vnni else saturating_layers(program)
    if not layers:
        return "", bool(use_int8_kernels(program))
    with contextlib.suppress(ExportError):  # fake_* operators: computed in float as they are
        _make_float(program)
    return fallback_reason("Paddle Inference", layers), True


@contradictions_reported()
def _make_float(program):
    """Replace quantized weights by float weights and quantizers of activations by clips, in place.

    A program that keeps its weights in float (``fake_*`` operators) raises ``ExportError``.
    """
    _QuantizerClips(program, raise_to_markers(program)).run()


class _QuantizerClips(MarkerRemoval):
    """Restore the float program, with activations clipped to the range of their quantizers."""

    def activation(self, marker):
        return ProgramLowering.activation(self, marker)

    def quantize_dequantize(self, marker):
        mark = marker.mark
        step = float(mark.abs_max.item()) / mark.spec.quant_max
        return [make_op("clip", {"X": marker.source}, {"Out": marker.target},
                        min=mark.spec.quant_min * step, max=mark.spec.quant_max * step)]


def to_paddle_int8(path: Union[str, "os.PathLike[str]"], out: Union[str, "os.PathLike[str]"],
                   vnni: Optional[bool] = None) -> int:
    """Write a copy of a ``.pdmodel`` for Paddle Inference with ``enable_mkldnn_int8()`` only.

    :class:`Predictor` makes such a copy itself; for an application that uses Paddle Inference
    directly, e.g. in C++, make it once. Paddle Inference's int8 kernels apply the step of one
    column of a Linear's weight to another column, which loses up to a third of an output of a
    transformer. The copy multiplies by the steps after the products
    (:mod:`~paddleq.export.paddle.int8_kernels`), and has float weights where other tools
    stored integers for layers that the mode does not support. It needs the int8 switch.

    On x86 processors without VNNI, int8 kernels may saturate
    (:mod:`~paddleq.deploy.saturation`). A copy for them of a model in which a layer may saturate
    has float weights throughout; weights of at most 7 bits keep int8 kernels for Linear layers and
    for convolutions whose input is not the output of relu.

    Args:
        path: prefix of the ``.pdmodel`` and ``.pdiparams``.
        out: prefix of the copies; another than ``path``.
        vnni: True for processors with VNNI, False for all. Default: as this processor.

    Returns:
        The number of layers that were changed. 0: the copy is equal to the model.

    Raises:
        FormatError: the model is missing or damaged.
        ConfigError: ``out`` is ``path``.
        ExportError: the copy cannot be written.

    Examples:
        >>> import tempfile, paddle, paddleq
        >>> net, x = paddle.nn.Sequential(paddle.nn.Linear(16, 4)), paddle.rand([8, 16])
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [x])
        >>> path = tempfile.mkdtemp() + "/net"
        >>> ptq.save_quantized_model(quantized, path)
        >>> paddleq.deploy.to_paddle_int8(path, path + "_int8", vnni=True)
        1
    """
    source, target = pdmodel_prefix("path", path), pdmodel_prefix("out", out)
    if os.path.abspath(source) == os.path.abspath(target):
        raise ConfigError(f"out must be another prefix than path, but both are {source!r}: the "
                          "copy runs only in Paddle Inference's int8 mode")
    vnni = has_vnni() if vnni is None else check_bool("vnni", vnni)
    (file,) = model_files(source + ".pdmodel")
    program = load_program(file.path, file.params)
    provenance = Provenance.of_saved("pdmodel", program, [file.path, file.params], vnni=vnni)
    layers = [] if vnni else saturating_layers(program)
    if layers:
        _logger.warning("%s: %s", target, fallback_reason("Paddle Inference", layers))
        _make_float(program)
    count = len(layers) or use_int8_kernels(program)
    program.save(target + ".pdmodel", target + ".pdiparams", provenance, workarounds=False)
    return count


class _Session(Session):
    def __init__(self, predictor, file, fallback):
        self._predictor, self._file, self.fallback = predictor, file, fallback
        known = {info.name: info for info in file.inputs}
        names = predictor.get_input_names()
        self.inputs = [known.get(name, TensorInfo(name, "float32", None)) for name in names]
        self.outputs = file.outputs

    def run(self, arrays):
        with convert_errors("Paddle Inference", self._file):
            return run_predictor(self._predictor,
                                 {info.name: array for info, array in zip(self.inputs, arrays)})

    def clone(self):
        return _Session(self._predictor.clone(), self._file, self.fallback)
