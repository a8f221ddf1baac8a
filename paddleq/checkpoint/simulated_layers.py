"""Specs and states of the fake quantizers in checkpoints, and their adoption by a model."""

from dataclasses import replace

from .._checks import check_choice, hint
from .._paddle_compat import drop_programs
from ..engine.freeze import restore_float
from ..engine.state import leave_uncalled_float, quantized_layers
from ..errors import FormatError, ModelError
from ..fake_quant.fake_quantize import FakeQuantize, State
from ..nn.deployable import check_fields, describe_spec, spec_from
from ..nn.quantized_layer import QuantizedLayer

KIND = QuantizedLayer.__name__


def describe(layer):
    """Return plain values of the fake quantizers of a quantized layer, by attribute."""
    return {name: {"spec": describe_spec(quantizer.spec), "state": quantizer.state.value}
            for name, quantizer in layer.quantizers() if isinstance(quantizer, FakeQuantize)}


def leave_float(model, described, keys):
    """Make the quantized layers float that a checkpoint does not have as simulated ones.

    Args:
        described: name of a layer -> its entry in the checkpoint.
        keys: names of the tensors in the checkpoint.

    Raises:
        ModelError: a layer is part of a block, which cannot be taken back.
    """
    names = []
    for name, layer in quantized_layers(model):
        prefix = f"{name}." if name else ""
        own = tuple(f"{prefix}{part}." for part in layer._paddleq.parts)
        if not (described.get(name) == KIND or any(key.startswith(own) for key in keys)):
            names.append(name)
    if names:
        restore_float(model, dict.fromkeys(names, "float in the checkpoint"))


def adopt_specs(model, name, description):
    """Give the fake quantizers of the layer ``name`` the bits of a :func:`describe`.

    Raises:
        FormatError: the description is invalid.
        ModelError: the layer is not quantized, or its specs differ in more than the bits.
    """
    if not isinstance(description, dict):
        raise FormatError(f"{name!r} must be described by a dict, but is by {description!r}")
    layers = dict(quantized_layers(model))
    if name not in layers:
        raise ModelError(
            f"{name!r} simulates quantization in the checkpoint, but the model has no quantized "
            f"layer of that name{hint(name, layers)}; quantize the model with the configuration "
            "of the saved one, then load")
    for attribute, quantizer in layers[name].quantizers():
        if not isinstance(quantizer, FakeQuantize) or attribute not in description:
            continue  # the tensors tell of it
        own, entry = quantizer.spec, description[attribute]
        check_fields("a quantizer", entry, ("spec", "state"))
        spec = spec_from(entry["spec"])
        check_choice("state", entry["state"], [each.value for each in State])
        if spec is None or spec.binary != own.binary or spec != replace(
                own, bits=spec.bits, narrow_range=spec.narrow_range, limits=spec.limits):
            raise ModelError(f"{attribute} of the layer {name!r} is {own} in the model and {spec} "
                             "in the checkpoint, which differ in more than the bits; quantize the "
                             "model with the configuration of the saved one")
        if spec != own:
            template = layers[name]._paddleq.templates.get(attribute)
            for each in (quantizer, template):
                if each is not None:
                    each.observer.spec = spec
            drop_programs(layers[name])


def adopt_states(model, described):
    """Set the states of the fake quantizers from the descriptions of :func:`adopt_specs`."""
    for name, layer in quantized_layers(model):
        for attribute, quantizer in layer.quantizers():
            if attribute in described.get(name, {}) and isinstance(quantizer, FakeQuantize):
                quantizer.set_state(described[name][attribute]["state"])
    if described:
        leave_uncalled_float(model)
