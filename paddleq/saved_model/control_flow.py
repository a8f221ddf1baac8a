"""Control flow and tensor arrays of saved programs."""

import paddle

from ..errors import ModelError


def run_while(run_block, op, values):
    """Run the block of a ``while`` operator until its condition is False."""
    condition = op.input("Condition")
    while bool(values[condition].item()):
        run_block(op.attributes["sub_block"], values)


def run_conditional_block(run_block, op, values):
    """Run the block of a ``conditional_block`` operator if its condition holds."""
    conditions = [values[name] for slot in ("Cond", "Condition")
                  for name in op.inputs.get(slot, ())]
    scalar = op.get("is_scalar_condition", False)
    if all(each.item() if scalar else each.size > 0 for each in conditions):
        run_block(op.attributes["sub_block"], values)


def run_select_input(_run_block, op, values):
    """Set the output of ``select_input`` to the input that the mask selects."""
    chosen = int(values[op.input("Mask")].item())
    values[op.output("Out")] = values[op.inputs["X"][chosen]]


def run_select_output(_run_block, op, values):
    """Set the output of ``select_output`` that the mask selects."""
    chosen = int(values[op.input("Mask")].item())
    values[op.outputs["Out"][chosen]] = values[op.input("X")]


def run_write_to_array(_run_block, op, values):
    """Set one entry of a tensor array."""
    place = int(values[op.input("I")].item())
    array = list(values.get(op.output("Out")) or [])
    array += [None] * (place + 1 - len(array))
    array[place] = values[op.input("X")]
    values[op.output("Out")] = array


def run_read_from_array(_run_block, op, values):
    """Read one entry of a tensor array."""
    array, place = values[op.input("X")], int(values[op.input("I")].item())
    if not -len(array) <= place < len(array):
        raise ModelError(f"the saved model reads entry {place} of the tensor array "
                         f"{op.input('X')!r}, which has {len(array)}")
    values[op.output("Out")] = array[place]


def run_tensor_array_to_tensor(_run_block, op, values):
    """Concatenate or stack the entries of a tensor array."""
    array, axis = values[op.input("X")], op.get("axis", 0)
    stacked = op.get("use_stack", False)
    values[op.output("Out")] = (paddle.stack if stacked else paddle.concat)(array, axis)
    if op.output("OutIndex") is not None:
        sizes = [1 if stacked else each.shape[axis] for each in array]
        values[op.output("OutIndex")] = paddle.to_tensor(sizes, "int32")


CONTROL_FLOW = {
    "while": run_while, "conditional_block": run_conditional_block,
    "conditional_block_infer": run_conditional_block, "select_input": run_select_input,
    "select_output": run_select_output, "write_to_array": run_write_to_array,
    "read_from_array": run_read_from_array,
    "tensor_array_to_tensor": run_tensor_array_to_tensor,
}
