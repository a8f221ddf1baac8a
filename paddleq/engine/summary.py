"""Summary of a model: the quantization of each layer, or the reason that it is float."""

from typing import Any, NamedTuple, Optional

import paddle

from .._checks import check_layer
from .._layer_state import read_state
from .._paddle_compat import own_parameters, own_sublayers
from ..config import SkipKind, SkipReason
from ..fake_quant.fake_quantize import FakeQuantize
from ..graph import FoldedNorm
from ..nn.block import BlockMember
from ..nn.class_swap import float_class
from ..nn.deployable import DeployableLayer, describe_spec
from ..nn.quantized_layer import QuantizedLayer
from ..spec import QuantSpec
from .state import is_left_float, quantized_layers


def table(rows):
    """Format rows of texts as a table with aligned columns; the first row holds the titles."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])


def summary(model):
    """Return a table of all layers: status, bits, granularity, range of the scales, reason.

    Args:
        model: any ``paddle.nn.Layer``, quantized or not.

    Returns:
        A string.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(4, 2), paddle.nn.ReLU())
        >>> _ = paddleq.QAT().quantize(net)
        >>> for line in paddleq.summary(net).splitlines()[2:]:
        ...     print(" | ".join(cell.strip().split(",")[0] for cell in line.split("|")))
        0 | Linear | quantized | int8 per_channel(1) | int8 per_tensor | quantized by type Linear
        1 | ReLU | left |  |  | no rule matches
    """
    return table([("layer", "type", "done", "weight", "activation", "why"),
                  *(row[:6] for row in summary_rows(model))])


class SummaryRow(NamedTuple):
    """Cells of a layer's line in :func:`summary`.

    ``reason`` is the :class:`~paddleq.config.SkipReason` of a layer that is left float, None for
    other layers and where the reason is not one of :class:`~paddleq.config.SkipKind`.
    """

    name: str
    type: str
    done: str
    weight: str
    activation: str
    why: str
    reason: Optional[SkipReason] = None


def summary_rows(model):
    """Return a :class:`SummaryRow` for each layer that :func:`summary` shows."""
    check_layer("model", model)
    rows, added = [], {id(layer) for _, layer in layers_added_later(model)}
    for name, layer in model.named_sublayers(include_self=True):
        state, cls = read_state(layer), float_class(layer).__name__
        if isinstance(layer, QuantizedLayer) and is_left_float(layer):
            row: Any = (cls, "left", "", "", str(state.reason), state.reason)
        elif isinstance(layer, QuantizedLayer):
            row = (cls, "quantized", *_quantizer_cells(layer), state.note)
        elif isinstance(layer, BlockMember):
            row = (cls, "fused", "", "", state.note)
        elif isinstance(layer, FoldedNorm):
            row = ("BatchNorm", "folded", "", "", state.note)
        elif state.calibrator is not None:
            row = (cls, "calibrating", "", "", str(state.calibrator))
        elif isinstance(layer, DeployableLayer):
            row = (type(layer).__name__, "deployed", *_specs(layer),
                   state.note or layer.quant_type)
        elif _is_shown(layer, name, model):
            reason = SkipReason(SkipKind.ADDED_LATER) if id(layer) in added else state.reason
            row = (type(layer).__name__, "left", "", "",
                   state.note or str(reason or "the model was not quantized"), reason)
        else:
            continue
        rows.append(SummaryRow(name or "(model)", *row))
    return rows


def layers_added_later(model):
    """Return (name, layer) pairs of layers that were added or replaced after quantization.

    The quantization of a model, or of a part of it, leaves a state on each of its layers.
    """
    records = [f"{name}." if name else "" for name, layer in
               model.named_sublayers(include_self=True) if read_state(layer).provenance is not None]
    inside = set()  # parts of quantized layers, such as quantizers and preprocesses
    for _, layer in quantized_layers(model):
        inside |= {id(part) for name in layer._paddleq.parts if name in own_sublayers(layer)
                   for part in own_sublayers(layer)[name].sublayers(include_self=True)}
    return [(name, layer) for name, layer in model.named_sublayers()
            if "_paddleq" not in layer.__dict__ and name.startswith(tuple(records))
            and id(layer) not in inside and not isinstance(layer, (DeployableLayer, FakeQuantize))]


def _quantizer_cells(layer):
    """Return (weights, activation) of a quantized layer."""
    weights, inputs = [], []
    for name, quantizer in layer.quantizers():
        text = _described(quantizer, layer, name)
        if name == "output_quantizer":
            inputs.append(f"output {text}")
        else:
            (inputs if name.startswith("activation_quantizer") else weights).append(text)
    return "; ".join(weights) or "float", "; ".join(inputs) or "float"


def layer_rows(model):
    """Return the content of :func:`summary` as plain values: a dict for each layer.

    Its keys are ``name``, ``type``, ``done``, ``why`` and, for a quantized layer, ``quantizers``:
    observer, bits, granularity and range of the scales of each.
    """
    layers = {name or "(model)": layer
              for name, layer in model.named_sublayers(include_self=True)}
    rows = []
    for row in summary_rows(model):
        quantizers = _plain_quantizers(layers[row.name])
        rows.append({"name": row.name, "type": row.type, "done": row.done, "why": row.why,
                     **({"quantizers": quantizers} if quantizers else {})})
    return rows


def _plain_quantizers(layer):
    if isinstance(layer, DeployableLayer):
        specs = {"weight": getattr(layer, "weight_spec", None),
                 "activation": getattr(layer, "activation_spec", None)}
        return {name: plain_spec(spec) for name, spec in specs.items() if spec is not None}
    if not isinstance(layer, QuantizedLayer) or is_left_float(layer):
        return {}
    return {attribute.replace("_quantizer", ""): _plain_quantizer(quantizer, layer, attribute)
            for attribute, quantizer in layer.quantizers()}


def _plain_quantizer(quantizer, layer, attribute):
    name = {} if type(quantizer) is FakeQuantize else {"quantizer": type(quantizer).__name__}
    if not isinstance(quantizer, FakeQuantize):
        return name
    found = qparams_in(layer, attribute, quantizer)
    return {**name, "observer": type(quantizer.observer).__name__,
            **plain_spec(quantizer.spec, None if found is None else found[0])}


def plain_spec(spec: QuantSpec, scale: Any = None) -> dict:
    """Return a :class:`~paddleq.QuantSpec` and the span of its scales as plain values."""
    usual = describe_spec(QuantSpec())
    unusual = {name: value for name, value in describe_spec(spec).items()
               if value != usual.get(name) and name not in ("bits", "granularity")}
    return {"bits": spec.bits, "granularity": str(spec.granularity), **unusual,
            **({} if scale is None else {"scale": _span(scale)})}


def _is_shown(layer, name, model):
    """Return True for leaf layers and for containers with parameters."""
    if isinstance(layer, FakeQuantize):
        return False
    parent: Any = model
    for part in name.split("."):
        if isinstance(parent, QuantizedLayer):
            return False
        parent = own_sublayers(parent).get(part, parent)
    return not own_sublayers(layer) or any(p is not None for p in own_parameters(layer).values())


def _specs(layer):
    """Return (weight, activation) of a deployable layer; empty for a KV cache."""
    if not hasattr(layer, "weight_spec"):
        return "", ""
    return tuple(str(spec or "float") for spec in (layer.weight_spec, layer.activation_spec))


def _described(quantizer, layer, attribute):
    if not isinstance(quantizer, FakeQuantize):
        return type(quantizer).__name__
    found = qparams_in(layer, attribute, quantizer)
    if found is None:
        return f"{quantizer.spec}, no scale yet"
    return f"{quantizer.spec}, scale {_span(found[0])}"


def _span(scale):
    low, high = scale.min().item(), scale.max().item()
    return f"{high:.4g}" if low == high else f"{low:.4g}..{high:.4g}"


def qparams_in(layer, attribute, quantizer):
    """Return (scale, zero point or None) of a FakeQuantize of ``layer``, or None."""
    if quantizer.observer.dynamic:
        name = attribute[: -len("_quantizer")]
        weight, (preprocess, _) = layer.weight_to_quantize(name), layer.weight_parts(name)
        with paddle.no_grad():
            found = quantizer.qparams_of(weight if preprocess is None else preprocess(weight))
    elif quantizer.initialized:
        found = quantizer.qparams_of(None)
    else:
        return None
    abs_max, zero_point = found
    return abs_max / float(quantizer.spec.quant_max), zero_point


def extra_state_keys(model):
    """Return the keys of ``model.state_dict()`` that the float model does not have.

    A float checkpoint loads into a quantized model; these keys are then reported as missing.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddleq.QAT().quantize(paddle.nn.Sequential(paddle.nn.Linear(4, 2)))
        >>> keys = paddleq.extra_state_keys(net)
        >>> [k for k in net.state_dict() if k not in keys]
        ['0.weight', '0.bias']
    """
    ours = tuple(f"{name}.{part}." if name else f"{part}."
                 for name, layer in quantized_layers(model) for part in layer._paddleq.parts)
    return [key for key in model.state_dict() if key.startswith(ours)]
