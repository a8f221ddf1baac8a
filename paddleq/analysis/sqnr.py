"""Signal-to-quantization-noise ratio: how much louder a tensor is than its error."""

import math

import paddle

from ..errors import ModelError, NonFiniteError


class SQNR:
    """SQNR of a tensor that comes in batches: 10 * log10(sum(r^2) / sum((q - r)^2)) dB.

    6 dB are one bit; 40 dB an error of 1 %. The sums are kept in double precision.

    Args:
        what: what it is of, for messages.
    """

    def __init__(self, what):
        self.what = what
        self.signal = self.noise = 0.0
        self.batches = 0

    def add(self, reference, quantized):
        """Take in tensors (in lists, tuples or dicts, at will) and what quantization made of them.

        Raises:
            ModelError: they are not of one shape.
            NonFiniteError: NaN or infinity among them.
        """
        pairs = list(zip(tensors_in(reference), tensors_in(quantized)))
        for r, q in pairs:
            if list(r.shape) != list(q.shape):
                raise ModelError(f"{self.what} has the shape {list(q.shape)} in the quantized "
                                 f"model, but {list(r.shape)} in the float one; they must be the "
                                 "same network on the same data")
            signal, noise = _energy(r), _energy(q - r)
            if not (math.isfinite(signal) and math.isfinite(noise)):
                raise NonFiniteError(f"{self.what} has NaN or infinite values; remove that batch "
                                     "or mend the model")
            self.signal += signal
            self.noise += noise
        self.batches += bool(pairs)

    @property
    def db(self):
        """The ratio in dB; infinite without an error, None where nothing was taken in."""
        if not self.batches:
            return None
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def _energy(x):
    return x.astype("float64").square().sum().item()


def tensors_in(value):
    """The float tensors in a tensor, or in nested lists, tuples and dicts, in a fixed order."""
    if isinstance(value, paddle.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def shown(db):
    """A ratio as a table shows it."""
    return "" if db is None else f"{db:.1f}"
