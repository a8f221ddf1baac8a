"""What the algorithms know about the input of a Linear layer."""

import paddle

from .._checks import check_choice, wrong_value
from ..errors import CalibrationError, NonFiniteError
from ..functional.qparams import as_dtype

NEEDS = ("abs_max", "mean_abs", "hessian", "range")


class Statistics:
    """Of one Linear input [..., K], gathered batch by batch; no sample is kept.

    Inputs of half precision are accumulated in float32. The Hessian and the mean magnitudes are
    running means over the tokens, so that they do not grow with the length of a calibration.

    Args:
        needs: which of "abs_max", "mean_abs", "hessian" and "range" to gather. The others raise
            when they are asked for.

    Attributes:
        tokens: how many input vectors have been seen.

    Examples:
        >>> import paddle
        >>> from paddleq.algorithms import Statistics
        >>> statistics = Statistics({"abs_max", "hessian"})
        >>> statistics.update(paddle.to_tensor([[1.0, -2.0]]))
        >>> statistics.update(paddle.to_tensor([[3.0, 0.0]]))
        >>> statistics.tokens, statistics.abs_max.tolist(), statistics.hessian.tolist()
        (2, [3.0, 2.0], [[5.0, -1.0], [-1.0, 2.0]])
    """

    def __init__(self, needs):
        self.needs = frozenset(needs)
        for need in self.needs:
            check_choice("needs", need, NEEDS)
        self.tokens = 0
        self._found = {}

    def update(self, x):
        """Take in a batch of inputs, [..., K]; one without tokens changes nothing.

        Raises:
            NonFiniteError: it holds NaN or infinity, or numbers whose squares are too large for
                float32 where the Hessian is asked for.
            ConfigError: its K is not that of the batches before.

        The statistics then stay as they were.
        """
        if 0 in x.shape:
            return
        with paddle.no_grad():
            x = as_dtype(x.detach(), paddle.float32).reshape([-1, x.shape[-1]])
            if not bool(paddle.isfinite(x).all()):
                raise NonFiniteError("an input of the layer holds NaN or infinity")
            for old in self._found.values():
                if old.shape[0] != x.shape[1]:
                    raise wrong_value("x", list(x.shape), f"[..., {old.shape[0]}] as it was before")
            hessian = _mean_square(x) if "hessian" in self.needs else None
            self.tokens += x.shape[0]
            magnitude = x.abs() if self.needs & {"abs_max", "mean_abs"} else None
            if "abs_max" in self.needs:
                self._extend("abs_max", magnitude.max(axis=0), paddle.maximum)
            if "mean_abs" in self.needs:
                self._average("mean_abs", magnitude.mean(axis=0), x.shape[0])
            if "range" in self.needs:
                # Of each feature: divided_by() must know which feature an extreme belongs to.
                self._extend("min", x.min(axis=0), paddle.minimum)
                self._extend("max", x.max(axis=0), paddle.maximum)
            if "hessian" in self.needs:
                self._average("hessian", hessian, x.shape[0])

    def _extend(self, name, new, extreme):
        old = self._found.get(name)
        self._found[name] = new if old is None else extreme(old, new)

    def _average(self, name, new, tokens):
        old = self._found.get(name)
        if old is not None:
            share = tokens / self.tokens
            new = old.scale_(1.0 - share).add_(new.scale_(share))
        self._found[name] = new

    def _of(self, need, *names):
        if need not in self.needs:
            raise wrong_value("needs", sorted(self.needs), f"with {need!r}, which is asked for now")
        if not self.tokens:
            raise CalibrationError("no calibration data has reached the layer: its statistics "
                                   "are empty")
        return [self._found[name] for name in names]

    @property
    def abs_max(self):
        """max|x| of each feature, [K]."""
        return self._of("abs_max", "abs_max")[0]

    @property
    def mean_abs(self):
        """Mean of |x| of each feature, [K]."""
        return self._of("mean_abs", "mean_abs")[0]

    @property
    def hessian(self):
        """Mean of x xT over the tokens, [K, K]: half of the second derivative of the output's
        squared error by each column of the weight."""
        return self._of("hessian", "hessian")[0]

    @property
    def range(self):
        """(lowest, highest) value of all features, each of shape [1]."""
        low, high = self._of("range", "min", "max")
        return low.min().reshape([1]), high.max().reshape([1])

    def divided_by(self, s):
        """The statistics of x / s, for a factor s [K] above 0; these here stay as they are.

        Examples:
            >>> import paddle
            >>> from paddleq.algorithms import Statistics
            >>> statistics = Statistics({"abs_max"})
            >>> statistics.update(paddle.to_tensor([[1.0, 6.0]]))
            >>> statistics.divided_by(paddle.to_tensor([1.0, 3.0])).abs_max.tolist()
            [1.0, 2.0]
        """
        quotient = Statistics(self.needs)
        quotient.tokens = self.tokens
        with paddle.no_grad():
            for name, value in self._found.items():
                if name == "hessian":
                    quotient._found[name] = (value / s.unsqueeze(1)).divide_(
                        s.unsqueeze(0).expand(value.shape))
                else:
                    quotient._found[name] = value / s
        return quotient


def _mean_square(x):
    """Mean of x xT over the rows of x."""
    x = x * x.shape[0] ** -0.5
    square = paddle.matmul(x, x, transpose_x=True)
    # Of such a matrix no element is larger than the largest of its diagonal.
    if not bool(paddle.isfinite(paddle.diagonal(square)).all()):
        raise NonFiniteError("an input of the layer is so large that its square is not finite in "
                             "float32")
    return square
