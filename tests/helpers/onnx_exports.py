"""Comparison of ONNX exports of functions with the functions in dygraph mode."""

import numpy as np
import paddle
from paddle import nn
from runtimes import onnxruntime

import paddleq

SPEC = paddle.static.InputSpec


class Net(nn.Layer):
    """A function of one to three inputs, with layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, y=None, z=None):
        given = [each for each in (x, y, z) if each is not None]
        return self.function(*given, **dict(self.named_children()))


_RANDOM = np.random.RandomState(0)  # modules draw when they are imported, before any seed


def normal(*shape):
    return _RANDOM.randn(*shape).astype(np.float32)


def written_equals_model(function, arrays, path, dynamic=(0,), tolerance=2e-6, **layers):
    """Export, and compare with the model in dygraph mode, on the given arrays."""
    net = Net(function, **layers)
    net.eval()
    spec = [SPEC([None if i in dynamic else size for i, size in enumerate(array.shape)],
                 str(array.dtype), f"x{number}") for number, array in enumerate(arrays)]
    paddleq.export.to_onnx(net, path / "m", spec)
    with paddle.no_grad():
        expected = net(*map(paddle.to_tensor, arrays))
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    for found, wanted in zip(onnxruntime(path / "m", arrays), expected):
        assert found.shape == tuple(wanted.shape)
        bound = tolerance * max(1, np.abs(found).max(initial=0))
        distance = np.subtract(found, wanted.numpy(), dtype=np.float64)  # of booleans too
        assert np.abs(distance).max(initial=0) <= bound
