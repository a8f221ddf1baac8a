"""Layers and parameters of a saved model, of which :class:`~.saved_model.SavedModel` is made."""

from typing import Any, Dict, Set, Tuple

import numpy as np
import paddle
from paddle import nn
from paddle.nn.initializer import Constant

from .._paddle_compat import FORWARD_HOOKS, own_buffers, own_parameters, own_sublayers
from ..errors import ModelError
from .layers import LayerBinding, make_layer, transposed_to


class ProgramLayers(nn.Layer):
    """Layers of the weighted operators of a program, and its other parameters."""

    bindings: Dict[str, LayerBinding]
    parameter_places: Dict[str, Tuple[str, str]]
    _shapes: Dict[str, Tuple[list, Any]]  # name of each parameter -> shape, data type
    _read_names: Set[str]  # names of the variables that operators read

    def _add_layers(self, program):
        for name, binding in self.bindings.items():
            layer = make_layer(binding, program)
            if self._shapes[binding.weight][1] != "float32":
                layer.to(dtype=self._shapes[binding.weight][1])
            for attribute, parameter in binding.parameters.items():
                owner, other = self.parameter_places.get(parameter, ("", ""))
                value = getattr(layer, attribute)
                shared = getattr(getattr(self, owner), other) if owner else None
                if shared is not None and list(shared.shape) == list(value.shape):
                    setattr(layer, attribute, shared)
                    continue
                value.set_value(transposed_to(value.shape, program.arrays[parameter], binding,
                                              attribute))
                self.parameter_places.setdefault(parameter, (name, attribute))
            self.add_sublayer(name, layer)

    def _add_other_parameters(self, program):
        # Paddle 2.6 marks parameters with stop_gradient only, the converter with is_parameter only.
        trainable = {var.name for var in program.desc.blocks[0].vars
                     if var.is_parameter or not var.stop_gradient} - program.constants
        for name, array in program.arrays.items():
            if name in self.parameter_places or name not in self._read_names:
                continue
            attribute = name.replace(".", "_").replace("@", "_")
            while hasattr(self, attribute):
                attribute += "_"
            dtype = self._shapes[name][1]
            if name in trainable and array.ndim and array.size and array.dtype.kind == "f":
                value = self.create_parameter(list(array.shape), dtype=dtype,
                                              default_initializer=Constant(0.0))
                value.set_value(np.ascontiguousarray(array))
                self.add_parameter(attribute, value)
            else:
                value = paddle.to_tensor(np.ascontiguousarray(array).reshape(array.shape))
                if dtype == "bfloat16":
                    value = paddle.zeros(array.shape, "bfloat16")
                    value.set_value(array)
                self.register_buffer(attribute, value)
            self.parameter_places[name] = ("", attribute)

    def _parameter(self, name):
        """Return the current value of a parameter as the program keeps it."""
        if name not in self.parameter_places:
            raise ModelError(f"the program reads {name!r} before it is computed")
        owner, attribute = self.parameter_places[name]
        value = getattr(getattr(self, owner) if owner else self, attribute)
        if owner:
            binding = self.bindings[owner]
            if binding.transposed and attribute == "weight":
                value = value.t()
            if list(value.shape) != self._shapes[name][0]:
                value = value.reshape(self._shapes[name][0])
        return value

    def _keep_objects(self, layers, parameters, buffers):
        """Restore layers, parameters and buffers that remain, with their new values."""
        for name, old in layers.items():
            new = own_sublayers(self).get(name)
            if new is None:
                continue
            for attribute, value in new.named_parameters(include_sublayers=False):
                kept = own_parameters(old).get(attribute)
                if kept is not None:
                    kept.set_value(value)
                    setattr(new, attribute, kept)
            if own_parameters(old).keys() == own_parameters(new).keys():
                own_buffers(old).update(own_buffers(new))
                own_sublayers(self)[name] = old
            else:
                for hooks in FORWARD_HOOKS:
                    new.__dict__[hooks] = old.__dict__[hooks]
        for now, then in ((own_parameters(self), parameters), (own_buffers(self), buffers)):
            for name in now.keys() & then.keys():
                if now[name].shape == then[name].shape:
                    then[name].set_value(now[name])
                    now[name] = then[name]
