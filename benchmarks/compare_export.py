"""Comparison of exported files with the simulation, in a process that runs a user's script.

:func:`recording` makes the exporting functions of paddleq compare each file right after it is
written, so that the scripts themselves need no change.
"""

import os
import sys

import numpy as np
import paddle
from paddle import inference

import paddleq
from paddleq import engine, export
from paddleq._atomic_write import temporary_folder
from paddleq.deploy.model_file import ModelFile
from paddleq.deploy.runtimes.base import load_reference
from paddleq.deploy.worst_layer import _cut_paddle
from paddleq.export.program.op_desc import inputs
from paddleq.export.program.passes.stored_weights import WEIGHTED_OPS, stored_weights
from paddleq.frontends.paddleslim import quant_post

NMS = {"multiclass_nms3": ("BBoxes", "Scores"), "matrix_nms": ("BBoxes", "Scores")}


def recording():
    """Compare every later export; return the list that receives one dict for each file."""
    rows = []
    save, program, write = export.save, quant_post.quantized_program, quant_post.save_program
    calibrated = []

    def save_and_compare(model, path, *args, **kwargs):
        save(model, path, *args, **kwargs)
        rows.append(compare(model, str(path)))

    def program_of(model, *args, **kwargs):
        calibrated.append(model)
        return program(model, *args, **kwargs)

    def write_and_compare(made, folder, model_filename, *args, **kwargs):
        write(made, folder, model_filename, *args, **kwargs)
        static = not paddle.in_dynamic_mode()
        paddle.disable_static()
        rows.append(compare(calibrated[-1],
                            os.path.join(folder, os.path.splitext(model_filename)[0])))
        if static:
            paddle.enable_static()

    export.save = save_and_compare
    quant_post.quantized_program, quant_post.save_program = program_of, write_and_compare
    return rows


def compare(model, path):
    """Return the distances of the file at ``path`` from ``model``, which is left in evaluation.

    "as it stands": largest difference over the largest magnitude of an output or of an input of
    NMS. "int8": norm of the difference of stock Paddle Inference int8 over the norm of the change
    of the output for another input. "bound": the same for the simulation, when the input of each
    activation quantizer moves by up to half a step and 255 steps follow a ReLU, as in the runtime.
    """
    file = ModelFile(path + ".pdmodel")
    arrays, others = _inputs(file, 0), _inputs(file, 1)
    names = [info.name for info in file.inputs]
    engine.finalize(model)
    engine.set_state(model, "validation")
    model.eval()
    expected, heads = _simulated(model, names, arrays)
    size = [float(np.linalg.norm(a.astype("float64") - b)) if a.shape == b.shape else
            float(np.linalg.norm(a)) for a, b in zip(expected, _simulated(model, names, others)[0])]
    rng = np.random.default_rng(2)

    def move(quantizer, args):
        noise = rng.uniform(-0.5, 0.5, args[0].shape).astype("float32")
        return (args[0] + paddle.to_tensor(noise) * quantizer.scale, *args[1:])

    def widen(quantizer, args, output):
        if args[0].min().item() < 0:
            return output
        return (args[0] / quantizer.scale).round().clip(0, 255) * quantizer.scale

    moved, wide = (_simulated(model, names, arrays, **hooks)[0]
                   for hooks in ({"pre": move}, {"post": widen}))
    row = {"file": os.path.join(*path.split(os.sep)[-2:]),
           "as it stands": max(_distance(_as_it_stands(file, arrays), expected),
                               _heads_distance(file, arrays, heads)),
           "bound": (1.25 * _relative(moved, expected, size) + _relative(wide, expected, size)
                     + 1e-3),
           "layers": _layers(file.program)}
    try:
        row["int8"] = _relative(_int8(path, names, arrays), expected, size)
    except Exception as error:  # each runtime has types of its own
        row["int8"] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return row


def _layers(program):
    """Return "quantized/all" convolutions and products with a weight in the file."""
    ops = program.desc.blocks[0].ops
    stored = stored_weights(program, ops)
    weights = [inputs(op, WEIGHTED_OPS[op.type])[0] for op in ops if op.type in WEIGHTED_OPS]
    weights = [name for name in weights if name in stored or name in program.arrays]
    return f"{sum(name in stored for name in weights)}/{len(weights)}"


def _inputs(file, seed):
    rng = np.random.default_rng(seed)
    arrays, size = [], (64, 64)
    for info in file.inputs:
        shape = [-1 if each is None else int(each) for each in info.shape]
        if len(shape) == 4:
            size = [have if have > 0 else give for have, give in zip(shape[2:], size)]
            shape = [max(shape[0], 1), shape[1], *size]
    for info in file.inputs:
        shape = [-1 if each is None else int(each) for each in info.shape]
        if info.name == "im_shape":
            arrays.append(np.float32([size]))
        elif info.name == "scale_factor":
            arrays.append(np.ones([1, 2], np.float32))
        else:
            shape = [max(shape[0], 1), shape[1], *size] if len(shape) == 4 else [
                max(each, 1) for each in shape]
            arrays.append(rng.normal(size=shape).astype(info.dtype))
    return arrays


def _simulated(model, names, arrays, pre=None, post=None):
    """Return the outputs in dynamic mode with hooks at the quantizers, and the inputs of NMS."""
    tensors, heads = [paddle.to_tensor(each) for each in arrays], []
    ops = sys.modules.get("ppdet.modeling.ops")
    kept, hooks = {}, []
    for name, layer in model.named_sublayers():
        if isinstance(layer, paddleq.FakeQuantize) and "activation_" in name.rpartition(".")[2]:
            hooks += [layer.register_forward_pre_hook(pre)] if pre else []
            hooks += [layer.register_forward_post_hook(post)] if post else []
    for name in ("multiclass_nms", "matrix_nms"):
        if ops is not None and hasattr(ops, name):
            kept[name] = getattr(ops, name)
            setattr(ops, name, _recorded(kept[name], heads))
    paddle.jit.enable_to_static(False)
    try:
        with paddle.no_grad():
            if isinstance(model, paddleq.SavedModel) or ops is None:
                outputs = model(*tensors)
            else:
                outputs = model(dict(zip(names, tensors)))
    finally:
        paddle.jit.enable_to_static(True)
        for name, function in kept.items():
            setattr(ops, name, function)
        for hook in hooks:
            hook.remove()
    return [np.asarray(each) for each in _leaves(outputs)], heads


def _recorded(function, heads):
    def call(bboxes, scores, *args, **kwargs):
        heads.append((np.asarray(bboxes), np.asarray(scores)))
        return function(bboxes, scores, *args, **kwargs)
    return call


def _leaves(value):
    if isinstance(value, dict):
        value = [value[key] for key in value]
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in _leaves(each)]
    return [value] if isinstance(value, paddle.Tensor) else []


def _as_it_stands(file, arrays):
    session = load_reference(file)
    given = {info.name: each for info, each in zip(file.inputs, arrays)}
    found = session.run([given[info.name] for info in session.inputs])
    session.close()
    return found


def _distance(found, expected):
    """Return the largest difference over the largest magnitude of each output."""
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected)):
        return float("inf")
    return max((float(np.abs(a.astype("float64") - b).max() / max(np.abs(b).max(), 1e-30))
                for a, b in zip(found, expected) if b.size), default=0.0)


def _heads_distance(file, arrays, heads):
    ops = [op for op in file.program.desc.blocks[0].ops if op.type in NMS]
    worst = 0.0 if len(ops) == len(heads) else float("inf")
    for op, expected in zip(ops, heads):
        for slot, value in zip(NMS[op.type], expected):
            with temporary_folder() as folder:
                part = _cut_paddle(file, inputs(op, slot)[0], folder)
                worst = max(worst, _distance(_as_it_stands(part, arrays), [value]))
    return worst


def _int8(path, names, arrays):
    """Return the outputs of stock Paddle Inference in int8."""
    config = inference.Config(path + ".pdmodel", path + ".pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.enable_mkldnn()
    config.enable_mkldnn_int8()
    predictor = inference.create_predictor(config)
    for name, array in zip(names, arrays):
        predictor.get_input_handle(name).copy_from_cpu(array)
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu()
            for name in predictor.get_output_names()]


def _relative(found, expected, sizes):
    """Return the largest norm of a difference over ``sizes``; NaN for other shapes."""
    if any(a.shape != b.shape for a, b in zip(found, expected)):
        return float("nan")
    return max((float(np.linalg.norm(a.astype("float64") - b)) / max(size, 1e-30)
                for a, b, size in zip(found, expected, sizes) if b.size), default=0.0)
