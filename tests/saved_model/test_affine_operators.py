"""Forms of affine operators in programs that Paddle's public functions do not write."""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from runtimes import paddle_inference, relative_error
from saved_models import run, save

import paddleq
from paddleq.export.program.op_builder import OpBuilder
from paddleq.export.program.op_desc import (
    DENSE_TENSOR,
    make_op,
    replace_ops,
    set_output,
    tensor_of,
)
from paddleq.export.program.program import Program
from paddleq.saved_model.affine import Affine, Refused
from paddleq.saved_model.reshaped_axes import moved_axis

_C = 5
_VECTOR, _OTHER = np.linspace(0.5, 1.5, _C, dtype="f4"), np.linspace(-1.0, 1.0, _C, dtype="f4")


def _elementwise(kind, value, axis, swapped=False, names="XY"):
    def make(builder, source, target):
        constant = builder.parameter("constant", value.astype(np.float32))
        pair = (constant, source) if swapped else (source, constant)
        return [make_op(f"elementwise_{kind}", dict(zip(names, pair)), {"Out": target}, axis=axis)]
    return make


def _affine_channel(builder, source, target):
    return [make_op("affine_channel", {"X": source, "Scale": builder.parameter("s", _VECTOR),
                                       "Bias": builder.parameter("b", _OTHER)},
                    {"Out": target}, data_layout="NCHW")]


def _scale(**attributes):
    return lambda builder, source, target: [
        make_op("scale", {"X": source}, {"Out": target}, **attributes)]


def _scale_tensor(builder, source, target):
    factor = builder.parameter("factor", np.array([1.7], np.float32))
    return [make_op("scale", {"X": source, "ScaleTensor": factor}, {"Out": target}, scale=1.0,
                    bias=0.25, bias_after_scale=True)]


def _filled(builder, source, target):
    block = builder.program.desc.blocks[0]
    constant = builder.variable(block, "filled", [1])
    return [make_op("fill_constant", {}, {"Out": constant}, shape=[1], value=1.75, dtype=5,
                    str_value="1.75"),
            make_op("elementwise_mul", {"X": source, "Y": constant}, {"Out": target}, axis=-1)]


def _column(vector):
    return vector[:, None, None]


# name -> (function that makes operators, the same in numpy)
FORMS = {
    "axis 1": (_elementwise("mul", _VECTOR, 1), lambda y: y * _column(_VECTOR)),
    "axis 1 and ones at the end": (_elementwise("add", _OTHER[:, None], 1),
                                   lambda y: y + _column(_OTHER)),
    "four axes": (_elementwise("div", _VECTOR.reshape(1, _C, 1, 1), -1),
                  lambda y: y / _column(_VECTOR)),
    "constant first": (_elementwise("sub", _column(_OTHER), -1, swapped=True),
                       lambda y: _column(_OTHER) - y),
    "no axes": (_elementwise("mul", np.float32(-0.3).reshape(()), -1), lambda y: y * -0.3),
    "affine_channel": (_affine_channel, lambda y: y * _column(_VECTOR) + _column(_OTHER)),
    "bias before scale": (_scale(scale=1.5, bias=0.5, bias_after_scale=False),
                          lambda y: (y + 0.5) * 1.5),
    "bias after scale": (_scale(scale=-1.5, bias=0.5, bias_after_scale=True),
                         lambda y: y * -1.5 + 0.5),
    "tensor as scale": (_scale_tensor, lambda y: y * np.float32(1.7) + 0.25),
    "filled constant": (_filled, lambda y: y * 1.75)}

UNFOLDED = {
    "a constant for each pixel": (
        _elementwise("mul", np.linspace(0.5, 1.5, 36, dtype="f4").reshape(6, 6), -1),
        lambda y: y * np.linspace(0.5, 1.5, 36, dtype="f4").reshape(6, 6)),
    "a constant for each row": (_elementwise("add", np.linspace(0, 1, 6, dtype="f4"), 2),
                                lambda y: y + np.linspace(0, 1, 6, dtype="f4")[:, None]),
    "divided by the data": (_elementwise("div", _VECTOR.reshape(_C, 1, 1), -1, swapped=True),
                            lambda y: _column(_VECTOR) / y),
    "not finite": (_elementwise("add", np.float32(np.inf).reshape(1), -1), lambda y: y + np.inf)}


def program_with(make, prefix):
    """(layer, model) of a convolution, the operators, and hard_swish."""
    net = nn.Conv2D(3, _C, 3)
    save(net, prefix, [InputSpec([None, 3, 8, 8], "float32", "x")])
    program = Program.load(f"{prefix}.old.pdmodel", f"{prefix}.old.pdiparams")
    builder, block = OpBuilder(program), program.desc.blocks[0]
    add = next(op for op in block.ops if op.type == "elementwise_add")
    (target,) = add.outputs[0].arguments
    inner = builder.variable_like(block, target, "inner")
    scaled = builder.variable_like(block, target, "scaled")
    ops = []
    for op in block.ops:
        ops.append(op)
        if op.type == "elementwise_add":
            set_output(op, "Out", inner)
            ops += [*make(builder, inner, scaled),
                    make_op("hard_swish", {"X": scaled}, {"Out": target})]
    replace_ops(block, ops)
    return net, paddleq.SavedModel.from_program(program)


@pytest.mark.parametrize("name", [*FORMS, *UNFOLDED])
def test_forms_of_affine_operators(name, prefix):
    make, expected = {**FORMS, **UNFOLDED}[name]
    net, model = program_with(make, prefix)
    x = np.random.randn(2, 3, 8, 8).astype(np.float32)
    result = model.fold_affines()
    assert bool(result.folded) == (name in FORMS)
    if name == "not finite":
        return
    if name in FORMS:
        kinds = [op.type for op in model.to_program().desc.blocks[0].ops if op.type != "reshape2"]
        assert kinds[:4] == ["feed", "conv2d", "elementwise_add", "hard_swish"]
    y = expected(net.to(dtype="float64")(paddle.to_tensor(x.astype(np.float64))).numpy())
    y = y * np.clip(y + 3, 0, 6) / 6
    most = 1e-5 if name == "divided by the data" else 2e-6  # quotients of small numbers
    assert relative_error(run(model, [x])[0], y) < most
    model.save(f"{prefix}.folded")
    assert relative_error(paddle_inference(f"{prefix}.folded", [x])[0], y) < most


def test_weights_of_other_types_stay(prefix):
    _, model = program_with(FORMS["axis 1"][0], prefix)
    program = model.to_program()
    for name in list(program.arrays):
        program.arrays[name] = program.arrays[name].astype(np.float16)
    for var in program.desc.blocks[0].vars:
        if var.type.type == DENSE_TENSOR:
            tensor_of(var).data_type = 4  # float16
    half = paddleq.SavedModel.from_program(program)
    assert not half.fold_affines().folded


@pytest.mark.parametrize("before, after, axis", [
    ([2, 6, 4], [2, 24], 1), ([2, 6, 4], [12, 4], 1), ([2, 6, 4], [12, 4], 2),
    ([2, 6, 4], [2, 2, 3, 4], 2), ([2, 24], [2, 6, 4], 1), ([2, 5, 24], [2, 5, 3, 2, 4], 2),
    ([2, 5, 3, 2, 4], [2, 5, 24], 2), ([2, 5, 3, 2, 4], [10, 24], 3), ([2, 6], [2, 6, 1, 1], 1),
    ([2, 6, 1, 1], [2, 6], 1), ([1, 6, 4], [6, 4], 1), ([4, 6], [6, 4], 0), ([3, 4], [12], 0)])
def test_maps_of_reshaped_tensors(before, after, axis):
    """A map that is returned is that of the reshaped tensor; the others are refused."""
    x, vector = np.random.randn(*before), np.random.rand(before[axis]) + 0.5
    for values in (vector, np.repeat(vector[:1], before[axis]), np.repeat(
            vector[:2], before[axis] // 2) if before[axis] % 2 == 0 else vector):
        column = values.reshape([-1 if i == axis else 1 for i in range(len(before))])
        affine = Affine(values, values + 1.0, axis)
        expected = (x * column + column + 1.0).reshape(after)
        try:
            moved = moved_axis(list(before), list(after), affine)
        except Refused:
            assert not any(np.allclose(expected, x.reshape(after) * scale + scale + 1.0)
                           for scale in _columns_of(expected, x, after))
            continue
        shape = [-1 if i == moved.axis else 1 for i in range(len(after))]
        found = x.reshape(after) * moved.scale.reshape(shape) + moved.shift.reshape(shape)
        np.testing.assert_allclose(found, expected)


def _columns_of(expected, x, after):
    """Scales of each axis of the shape ``after`` that its first elements have."""
    scale = (expected - 1.0) / (x.reshape(after) + 1.0)
    for axis in range(len(after)):
        yield scale[tuple(slice(None) if i == axis else slice(1) for i in range(len(after)))]


@pytest.mark.parametrize("before, after, axis, expected", [
    (["n", "l", 24], ["a", "b", 3, 8], 2, None), (["n", 6, "h", "w"], ["n", 6, "hw"], 1, 1),
    (["n", "c", 6], ["m", 6], 2, 1), (["n", 4, "h", "w"], ["m", 4, "k"], 1, None),
    (["n", 6, 2], ["n", "?"], 1, None)])
def test_maps_of_tensors_with_unknown_sizes(before, after, axis, expected):
    affine = Affine(np.arange(1.0, before[axis] + 1), np.zeros(before[axis]), axis)
    if expected is None and after[-1] != "?":
        with pytest.raises(Refused, match="cannot be followed"):
            moved_axis(before, after, affine)
    elif after[-1] == "?":
        assert moved_axis(before, after, affine).scale.tolist() == np.repeat(
            affine.scale, 2).tolist()
    else:
        assert moved_axis(before, after, affine).axis == expected
