"""Values, data types and pickles of tensors."""

import copyreg
from typing import Any

import paddle

from .lookup import private


def scalar(x: Any) -> float:
    """Return the value of a real tensor of one element.

    Paddle annotates ``Tensor.item()`` as complex too.
    """
    return x.item()


def dtype_name(dtype: Any) -> Any:
    """Return the name of a data type, such as "float32". Paddle annotates names as literals."""
    return str(dtype).replace("paddle.", "")


def make_tensors_picklable() -> None:
    """Let ``pickle`` store tensors and parameters with names, attributes and values.

    Paddle before 3.3 refuses to pickle them; Paddle 3.3 makes plain tensors of parameters.
    """
    copyreg.pickle(paddle.Tensor, _reduce_tensor)
    copyreg.pickle(_parameter_class(), _reduce_tensor)


def _parameter_class():
    return private("paddle.base.framework.EagerParamBase", "pickle models")


def _reduce_tensor(tensor):
    attributes = None
    if isinstance(tensor, _parameter_class()):
        # Initializers, which the others are, may be closures.
        attributes = {name: value for name, value in tensor.__dict__.items()
                      if name not in ("_init_func", "_init_op_creator")}
    dtype = dtype_name(tensor.dtype)
    return _make_tensor, (tensor.numpy(), dtype, tensor.name, tensor.stop_gradient,
                          tensor.persistable, attributes)


def _make_tensor(array, dtype, name, stop_gradient, persistable, attributes):
    tensor = paddle.to_tensor(array, dtype=dtype)
    if attributes is not None:
        value, tensor = tensor, _parameter_class()(list(array.shape), dtype, name=name)
        with paddle.no_grad():
            paddle.assign(value, tensor)
        tensor.__dict__.update(attributes)
    tensor.name, tensor.persistable = name, persistable
    tensor.stop_gradient = stop_gradient
    return tensor
