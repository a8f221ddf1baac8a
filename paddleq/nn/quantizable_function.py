"""Layer that quantizes the inputs of a function, such as matmul, add or concat."""

from paddle import nn

from .._checks import check_int, wrong_type
from .layer_types import register_layer


class QuantizableFunction(nn.Layer):
    """Wrap a function so that its tensor arguments can be quantized.

    Create it in a model's ``__init__`` and call it in ``forward`` in place of the function. In a
    float model it only calls the function. ``QAT`` and ``PTQ`` quantize each of the first
    ``inputs`` positional arguments. A list of tensors (``paddle.concat``) is one argument whose
    members share one scale.

    Args:
        function: a callable on tensors.
        inputs: number of quantized positional arguments. Default 2.

    Raises:
        ConfigTypeError, ConfigError: ``function`` is not callable, ``inputs`` is below 1.

    Examples:
        >>> import paddle, paddleq
        >>> class Scores(paddle.nn.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.matmul = paddleq.QuantizableFunction(paddle.matmul)
        ...     def forward(self, q, k):
        ...         return self.matmul(q, k, transpose_y=True)
        >>> net = paddleq.QAT().quantize(Scores())
        >>> list(net(paddle.ones([2, 4]), paddle.ones([3, 4])).shape)
        [2, 3]
    """

    def __init__(self, function, inputs=2):
        super().__init__()
        if not callable(function):
            raise wrong_type("function", function, "a callable")
        self.inputs = check_int("inputs", inputs, 1)
        self.function = function

    def forward(self, *args, **kwargs):
        """Call the function."""
        return self.function(*args, **kwargs)

    def extra_repr(self):
        return getattr(self.function, "__name__", repr(self.function))


register_layer(QuantizableFunction, weights={}, inputs=None)
