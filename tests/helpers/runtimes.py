"""Run exported files in the installed runtimes and return the outputs as arrays."""

from collections import Counter

import numpy as np
import paddle
import paddle.inference as inference

from paddleq import PTQ
from paddleq.deploy import has_vnni
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

# Bits of weights that int8 kernels compute exactly on this processor, see deploy/saturation.py.
INT8_WEIGHT_BITS = 8 if has_vnni() else 7
# Layers in the graph that OpenVINO runs.
LAYERS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")


def int8_ptq():
    """PTQ with weights of the most bits that int8 kernels of this processor compute exactly."""
    return PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))


def quantized(net, x, types=None):
    """(the PTQ, a copy of ``net`` that is quantized on ``x``) for int8 kernels.

    ``types``: names of the types of layers to quantize; None: the default ones.
    """
    ptq = int8_ptq()
    types = {} if types is None else {"quantizable_layer_type": types}
    model = ptq.quantize(net, **types)
    ptq.calibrate(model, [paddle.to_tensor(x)])
    return ptq, model


def compare_every_file(net, x, path, sizes=None, refused=()):
    """Assert that a quantized ``net`` with one output is its simulation in all files and runtimes.

    Args:
        sizes: dimensions of the input in the files; None: those of ``x``.
        refused: endings of the files that OpenVINO does not read.
    """
    ptq, model = quantized(net, x)
    with paddle.no_grad():
        wanted = model(paddle.to_tensor(x)).numpy()
    spec = [paddle.static.InputSpec(list(x.shape) if sizes is None else sizes, "float32", "x")]
    for form in ("pdmodel", "openvino", "onnx"):
        ptq.save_quantized_model(model, path, spec, format=form)
    (found,) = paddle_inference(path, [x])
    assert (found == wanted).all()
    for (found,) in (paddle_inference(path, [x], ir_optim=True, onednn=True),
                     paddle_inference(path, [x], ir_optim=True, int8=True), onnxruntime(path, [x]),
                     *(openvino(path, [x], ending=each) for each in ("pdmodel", "xml")
                       if each not in refused)):
        assert relative_error(found, wanted) <= 1e-5


def paddle_inference(path, inputs, **how):
    """Outputs of ``path.pdmodel`` in Paddle Inference; see :func:`predictor`."""
    return predictor(path, **how)(inputs)


def predictor(path, ir_optim=False, int8=False, threads=1, onednn=False):
    """``path.pdmodel`` in Paddle Inference, as a function from arrays to arrays.

    As it stands unless ``ir_optim``; ``onednn``: with its kernels in float, which are the default
    from Paddle 3 on. One thread, as in dygraph: with another number of them large
    sums are added in another order.
    """
    config = inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.switch_ir_optim(ir_optim)
    config.set_cpu_math_library_num_threads(threads)
    if int8 or onednn:
        config.enable_mkldnn()
    if int8:
        config.enable_mkldnn_int8()
    made = inference.create_predictor(config)

    def run(inputs):
        names = made.get_input_names()
        assert len(names) == len(inputs), (names, len(inputs))
        for name, value in inputs.items() if isinstance(inputs, dict) else zip(names, inputs):
            made.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(value))
        made.run()
        return [made.get_output_handle(name).copy_to_cpu() for name in made.get_output_names()]

    return run


def onnxruntime(path, inputs, as_is=True, saved_as=None):
    """Outputs of ``path.onnx`` in ONNX Runtime; as it stands, or as it optimizes the graph.

    ``saved_as``: write the graph that it makes of it there.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if as_is:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if saved_as is not None:
        options.optimized_model_filepath = str(saved_as)
    session = ort.InferenceSession(f"{path}.onnx", options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    assert len(names) == len(inputs), (names, len(inputs))
    return session.run(None, dict(zip(names, inputs)))


def onnx_graph(path):
    """(nodes, constants by name, opset) of an ONNX file, which is checked on the way."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    return list(model.graph.node), constants, model.opset_import[0].version


def openvino(path, inputs, as_is=True, ending="pdmodel", integers=True):
    """Outputs of ``path.pdmodel`` in OpenVINO; see :func:`compiled`."""
    return compiled(path, as_is, ending, integers)(inputs)


def compiled(path, as_is=True, ending="pdmodel", integers=True):
    """``path.pdmodel`` in OpenVINO, as a function from arrays to arrays.

    Several inputs are a dict by their names: OpenVINO has an order of its own.

    ``as_is``: it computes the graph that is in the file. Otherwise it may, as is its default,
    quantize what goes into a matrix product with integer weights, and move scales through the
    graph, which costs accuracy of its own. Without ``integers`` it computes all of it in float: an
    int8 convolution with a fused addition does not round its own output.
    """
    import openvino as ov

    settings = {"EXECUTION_MODE_HINT": "ACCURACY"} if as_is else {}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    if not integers or as_is and not has_vnni():
        settings["LP_TRANSFORMS_MODE"] = "NO"  # its int8 kernels saturate with weights of 8 bits
    made = ov.Core().compile_model(f"{path}.{ending}", "CPU", settings)
    return lambda inputs: [np.array(value) for value in made(
        inputs if isinstance(inputs, dict) else list(inputs)).values()]


def precisions(model):
    """(kind, precision) of the layers of a compiled model of OpenVINO, with their numbers."""
    info = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    return Counter((each["layerType"].astype(str), each["runtimePrecision"].astype(str))
                   for each in info if each["layerType"].astype(str).startswith(LAYERS))


def relative_error(found, expected):
    """Relative L2 distance."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
