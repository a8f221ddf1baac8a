"""Layers that hold their weights as integers and dequantize them when they run."""

import copy

import paddle
from paddle import nn

from .._layer_state import state_of
from .._paddle_compat import own_parameters
from ..errors import ModelError
from ..functional import abs_max, dequantize, quantize
from ..spec import PerChannel, PerTensor, QuantSpec
from .class_swap import substituted, swapped_class
from .layer_types import kind_of

# Layer classes by the op types under which programs show their weights.
_LAYERS = {
    "conv2d": (nn.Conv1D, nn.Conv2D),
    "depthwise_conv2d": (nn.Conv1D, nn.Conv2D),
    "conv3d": (nn.Conv3D,),
    "conv2d_transpose": (nn.Conv1DTranspose, nn.Conv2DTranspose),
    "depthwise_conv2d_transpose": (nn.Conv1DTranspose, nn.Conv2DTranspose),
    "matmul_v2": (nn.Linear,),
    "lookup_table_v2": (nn.Embedding,),
}


class IntegerWeightLayer:
    """Mixin: the weights are integer buffers under the parameters' names, with their scales."""

    prefix = "Integer"

    def swapped_forward(self, args, kwargs):
        weights = {name: self.dequantized_weight(name) for name in self.weight_specs}
        with substituted(self, weights):
            return self._float_class.forward(self, *args, **kwargs)

    def dequantized_weight(self, name):
        """The float weight that the integers stand for."""
        integers, scale = getattr(self, name), getattr(self, f"{name}_scale")
        return dequantize(integers.astype("float32"), scale, self.weight_specs[name])

    def extra_repr(self):
        specs = ", ".join(f"{name}={spec}" for name, spec in self.weight_specs.items())
        return f"{super().extra_repr()}, {specs}"


def store_integer_weights(model, op_types, bits, per_channel):
    """A copy of ``model``, in evaluation mode, whose weights are integers.

    Raises:
        ModelError: it has no weight of these types.
    """
    model = copy.deepcopy(model)
    model.eval()
    classes = tuple(cls for op in op_types for cls in _LAYERS.get(op, ()))
    shared, count = {}, 0
    for layer in model.sublayers(include_self=True):
        kind = kind_of(layer)
        if kind is None or not isinstance(layer, classes):
            continue
        specs = {}
        with paddle.no_grad():
            for name, axis in kind.weights.items():
                parameter = getattr(layer, name)
                if id(parameter) not in shared:
                    granularity = PerChannel(axis) if per_channel else PerTensor()
                    spec = QuantSpec(bits, granularity=granularity)
                    scale = abs_max(parameter, spec)
                    # The parameter is kept, so that no other one gets its id.
                    shared[id(parameter)] = (
                        parameter, quantize(parameter, scale, spec).astype(spec.storage), scale,
                        spec)
                _, integers, scale, specs[name] = shared[id(parameter)]
                del own_parameters(layer)[name]
                layer.register_buffer(name, integers)
                layer.register_buffer(f"{name}_scale", scale)
        layer.__class__ = swapped_class(IntegerWeightLayer, type(layer))
        layer.weight_specs = specs
        state_of(layer).note = "weights stored as integers"
        count += 1
    if not count:
        raise ModelError(f"the model has no weight of the op types {', '.join(sorted(op_types))}")
    return model
