"""Input slots of quantized layers: quantizers for each input of each call in a forward pass."""

import copy
import dataclasses

import paddle

from ..fake_quant.fake_quantize import FakeQuantize


def slot_name(stem, slot):
    """Return the attribute name of the quantizer or preprocess of input number ``slot``."""
    return stem if slot == 0 else f"{stem}_{slot}"


def is_float_tensor(x):
    return getattr(x, "dtype", None) in (paddle.float32, paddle.float16, paddle.bfloat16,
                                         paddle.float64)


def map_inputs(layer, args, kwargs, quantize, call=0):
    """Return the arguments of a call of ``layer`` with ``quantize(slot, x)`` for each input ``x``.

    Values that are not float tensors stay. The slots of a call follow those of the call before it.
    """
    args, kwargs, names = list(args), dict(kwargs), layer._paddleq.arguments
    for slot in slots_of_call(layer, call):
        position = layer._paddleq.kind.inputs[slot]
        if position < len(args):
            args[position] = _quantized(slot, args[position], quantize)
        elif position < len(names) and names[position] in kwargs:
            kwargs[names[position]] = _quantized(slot, kwargs[names[position]], quantize)
    return args, kwargs


def slots_of_call(layer, call):
    """Return the slots of the inputs of call number ``call`` in a forward pass."""
    state = layer._paddleq
    count = len(state.kind.inputs) // state.calls
    return range(call * count, (call + 1) * count)


def add_call(layer):
    """Add quantizers for one more call in a forward pass to a layer without weights."""
    state = layer._paddleq
    count = len(state.kind.inputs) // state.calls
    for first, template in state.templates.items():
        stem, _, slot = first.rpartition("_")
        stem, slot = (stem, int(slot)) if slot.isdigit() else (first, 0)
        each_call = 1 if stem == "output_quantizer" else count
        attribute = slot_name(stem, slot + state.calls * each_call)
        part, before = copy.deepcopy(template), getattr(layer, first, None)
        if isinstance(part, FakeQuantize):
            part.label = f"{state.name}.{attribute}"
        if isinstance(part, FakeQuantize) and isinstance(before, FakeQuantize):
            follow(part, before)
        for each in [part, *part.sublayers()]:
            each.training = layer.training
        setattr(layer, attribute, part)
        state.parts += (attribute,)
    inputs = state.kind.inputs[:count]
    state.calls += 1
    state.kind = dataclasses.replace(state.kind, inputs=inputs * state.calls)


def later_calls(layer):
    """Return (quantizer of a later call, quantizer of the first call) pairs of a layer."""
    state = layer._paddleq
    count = len(state.kind.inputs) // state.calls
    pairs = [(layer.input_parts(slot)[1], layer.input_parts(slot % count)[1])
             for slot in range(count, len(state.kind.inputs))]
    pairs += [(getattr(layer, slot_name("output_quantizer", call), None),
               getattr(layer, "output_quantizer", None)) for call in range(1, state.calls)]
    return [pair for pair in pairs if all(isinstance(each, FakeQuantize) for each in pair)]


def follow(quantizer, first):
    """Set the state and switches of ``quantizer`` to those of ``first``."""
    quantizer.set_state(first.state)
    quantizer.observer_enabled = first.observer_enabled
    quantizer.fake_quant_enabled = first.fake_quant_enabled


# Not a function inside map_inputs: Paddle 2.6 traces no closure that calls itself.
def _quantized(slot, x, quantize):
    if isinstance(x, (list, tuple)):  # the members of paddle.concat share one scale
        return type(x)(_quantized(slot, item, quantize) for item in x)
    return quantize(slot, x) if is_float_tensor(x) else x
