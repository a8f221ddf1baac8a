"""Compare a runtime with the simulation at every quantizer, apart from values on rounding borders.

A runtime that sums in another order moves a value near x.5 steps to the next integer. The layers
behind it spread such a difference over the whole output, of an untrained network by tens of per
cent, so that a bound on the output's error says nothing. Here the simulation continues behind each
quantizer with the integers of the runtime: the float operators between two quantizers then agree to
float precision, and each integer must be equal, or one off where the value is on a border.
"""

import numpy as np
import openvino as ov
import paddle
from runtimes import relative_error

from paddleq.export.program.program import Program
from paddleq.fake_quant.fake_quantize import FakeQuantize

FLOAT = 1e-5  # relative L2 distance of float tensors that differ in the order of summation
BORDER = 1e-2  # steps from x.5 within which a value may be rounded either way


def quantizers_of(path):
    """Return (input, dequantized output, step) of each activation quantizer, in order."""
    program = Program.load(f"{path}.pdmodel", f"{path}.pdiparams")
    found, dequantized = [], {}
    for op in program.desc.blocks[0].ops:
        slots = {slot.parameter: slot.arguments[0] for slot in [*op.inputs, *op.outputs]
                 if slot.arguments}
        if op.type == "dequantize_linear":
            dequantized[slots["X"]] = slots["Y"]
        if op.type == "quantize_linear":
            bits, = (attribute.i for attribute in op.attrs if attribute.name == "bit_length")
            abs_max = float(program.arrays[slots["Scale"]].reshape(-1)[0])
            found.append((slots["X"], slots["Y"], abs_max / (2 ** (bits - 1) - 1)))
    return [(x, dequantized[y], step) for x, y, step in found]


def openvino_tensors(path, inputs, names):
    """Return (the outputs of ``path.pdmodel`` in OpenVINO, the tensors ``names`` as a dict)."""
    core = ov.Core()
    model = core.read_model(f"{path}.pdmodel")
    count = len(model.outputs)
    kept = {output.get_any_name() for output in model.outputs} | {
        name for output in model.inputs for name in output.get_names()}
    model.add_outputs([name for name in names if name not in kept])
    compiled = core.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY",
                                                 "INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(inputs if isinstance(inputs, dict) else list(inputs))
    found = {name: np.array(value) for port, value in results.items() for name in port.get_names()}
    return [np.array(results[i]) for i in range(count)], found


def compare_in_openvino(net, path, inputs, as_list):
    """Assert that OpenVINO computes ``net`` from ``path.pdmodel``, apart from rounding borders.

    Args:
        net: the quantized network in evaluation mode.
        inputs: arrays by input name, or a list.
        as_list: function from the output of ``net`` to a list of tensors.

    Returns:
        The share of quantized values that a rounding border moved by one step.
    """
    remaining = quantizers_of(path)
    outputs, tensors = openvino_tensors(
        path, inputs, sorted({name for x, y, _ in remaining for name in (x, y)}))
    values = list(inputs.values()) if isinstance(inputs, dict) else inputs
    moved = total = 0

    def replace(quantizer, args, simulated):
        nonlocal moved, total
        source, target, step = remaining.pop(0)
        x, y = args[0].numpy(), simulated.numpy()
        if source in tensors:  # not an input of the model
            assert relative_error(tensors[source], x) <= FLOAT, source
        position, off = x.astype(np.float64) / step, np.rint((tensors[target] - y) / step)
        assert np.abs(off).max() <= 1, f"{target} is off by {np.abs(off).max()} steps"
        on_border = np.abs(np.abs(position - np.floor(position)) - 0.5) <= BORDER
        assert on_border[off != 0].all(), f"{target} differs off the rounding borders"
        moved, total = moved + np.count_nonzero(off), total + off.size
        return paddle.to_tensor(tensors[target])

    hooks = [layer.activation_quantizer.register_forward_post_hook(replace)
             for layer in net.sublayers()
             if isinstance(getattr(layer, "activation_quantizer", None), FakeQuantize)]
    assert hooks
    try:
        with paddle.no_grad():
            expected = as_list(net(*map(paddle.to_tensor, values)))
    finally:
        for hook in hooks:
            hook.remove()
    assert not remaining, f"quantizers of the file that the network does not run: {remaining}"
    for found, value in zip(outputs, expected):
        assert relative_error(found, value.numpy()) <= FLOAT
    return moved / total
