"""Saving keeps the scales that a user set and does not change the model.

Class of defects: an exporter recomputed all scales from the observers' statistics.
"""

import copy

import numpy as np
import onnx
import paddle
import pytest
from onnx import numpy_helper
from paddle import nn

import paddleq
from paddleq.errors import CalibrationError
from paddleq.export.pir_to_program.reader import load_program
from paddleq.fake_quant import FakeQuantize
from paddleq.observers import FixedScaleObserver

STEP = 0.5
SPEC = [paddle.static.InputSpec([None, 4])]
X = paddle.linspace(-1.0, 1.0, 8).reshape([2, 4])


def quantized(name="AbsmaxQuantizer"):
    return paddleq.PTQ(name).quantize(nn.Sequential(nn.Linear(4, 3)))


def by_set_qparams(name):
    model = quantized(name)
    paddleq.calibrate(model, [X])
    model[0].activation_quantizer.set_qparams(STEP)
    return model


def by_set_qparams_while_calibrating(name):
    model = quantized(name)
    model(X)
    model[0].activation_quantizer.set_qparams(STEP)
    return model


def by_set_qparams_without_data(name):
    model = quantized(name)
    model[0].activation_quantizer.set_qparams(STEP)
    return model


def by_buffer(name):
    model = quantized(name)
    model(X)
    model[0].activation_quantizer.abs_max.set_value(np.float32([STEP * 127]))
    return model


def by_state_dict(name):
    model = quantized(name)
    model(X)
    state = {key: value.numpy() for key, value in by_set_qparams(name).state_dict().items()}
    assert model.set_state_dict(state) == ([], [])
    return model


def by_fixed_observer(name):
    class Fixed(FakeQuantize):
        def __init__(self):
            super().__init__(FixedScaleObserver(scale=STEP))

    model = paddleq.QAT(act_quantize=Fixed).quantize(nn.Sequential(nn.Linear(4, 3)))
    model.eval()
    return model


def by_fixed_observer_calibrating(name):
    model = by_fixed_observer(name)
    paddleq.set_fake_quantize(model, "calibration")
    return model


def step_in_onnx(folder):
    graph = onnx.load(str(folder / "m.onnx")).graph
    node = next(each for each in graph.node if each.op_type == "QuantizeLinear")
    return next(numpy_helper.to_array(each) for each in graph.initializer
                if each.name == node.input[1])


def scale_of(program, operator, slot):
    """Return the step of the first operator whose type begins with ``operator``."""
    names = [each.arguments[0] for op in program.desc.blocks[0].ops if op.type.startswith(operator)
             for each in op.inputs if each.parameter == slot]
    return program.arrays[names[0]] / 127


def in_pdmodel(model, folder):
    paddleq.export.save(model, str(folder / "m"), SPEC)
    program = load_program(str(folder / "m.pdmodel"), str(folder / "m.pdiparams"))
    return scale_of(program, "quantize_linear", "Scale")


def in_fake_ops(model, folder):
    paddleq.export.save(model, str(folder / "m"), SPEC, onnx_format=False)
    program = load_program(str(folder / "m.pdmodel"), str(folder / "m.pdiparams"))
    return scale_of(program, "fake_", "InScale")


def in_onnx(model, folder):
    paddleq.export.to_onnx(model, str(folder / "m"), SPEC)
    return step_in_onnx(folder)


def in_onnx_format(model, folder):
    paddleq.export.save(model, str(folder / "m"), SPEC, format="onnx")
    return step_in_onnx(folder)


def in_checkpoint(model, folder):
    paddleq.save_checkpoint(model, str(folder / "m"))
    state = paddleq.checkpoint.read_state(str(folder / "m.safetensors"))
    return state["0.activation_quantizer.abs_max"] / 127


def in_summary(model, folder):
    row = paddleq.engine.summary_rows(model)[0]
    return float(row.activation.rpartition("scale ")[2])


DOORS = [by_set_qparams, by_set_qparams_while_calibrating, by_set_qparams_without_data, by_buffer,
         by_state_dict, by_fixed_observer, by_fixed_observer_calibrating]
EXPORTERS = [in_pdmodel, in_fake_ops, in_onnx, in_onnx_format, in_checkpoint, in_summary]


@pytest.mark.parametrize("observer", ["AbsmaxQuantizer", "KLQuantizer"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("export", EXPORTERS)
def test_a_scale_that_the_user_set_is_exported(observer, door, export, tmp_path):
    model = door(observer)
    before = {key: value.numpy() for key, value in model.state_dict().items()}
    found = np.asarray(export(model, tmp_path))
    assert np.allclose(found, STEP, rtol=1e-4), found
    for key, value in model.state_dict().items():
        assert np.array_equal(before[key], value.numpy()), key


@pytest.mark.parametrize("observer", ["AbsmaxQuantizer", "KLQuantizer", "HistQuantizer"])
@pytest.mark.parametrize("export", [in_pdmodel, in_fake_ops, in_onnx])
def test_saving_during_calibration_does_not_change_the_model(observer, export, tmp_path):
    model = quantized(observer)
    model(X)
    before = {key: value.numpy() for key, value in model.state_dict().items()}
    found = export(model, tmp_path)
    for key, value in model.state_dict().items():
        assert np.array_equal(before[key], value.numpy()), key
    assert model[0].activation_quantizer.state is paddleq.State.CALIBRATION
    other = copy.deepcopy(model)
    paddleq.PTQ(observer).convert(other)
    assert np.allclose(found, other[0].activation_quantizer.scale.numpy(), rtol=1e-6)
    # Calibration continues.
    model(2.0 * X)
    paddleq.PTQ(observer).convert(model)
    assert model[0].activation_quantizer.scale.item() > 1.5 * np.asarray(found).item()


def test_layer_without_data_and_scale_is_named(tmp_path):
    with pytest.raises(CalibrationError, match="0.activation_quantizer"):
        paddleq.export.save(quantized(), str(tmp_path / "m"), SPEC)


def test_recalibration_replaces_a_user_set_scale():
    model = by_set_qparams("AbsmaxQuantizer")
    paddleq.calibrate(model, [X])
    assert model[0].activation_quantizer.abs_max.item() == 1.0
