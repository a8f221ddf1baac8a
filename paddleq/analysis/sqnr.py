"""Signal-to-quantization-noise ratio (SQNR) of tensors."""

import math
from typing import Any, List, Optional, Tuple

import paddle

from .._paddle_compat import scalar
from ..algorithms.distillation.losses import is_distribution
from ..errors import ModelError, NonFiniteError
from ..graph.calls import tensors_in

_TINY = 1e-30  # smallest probability whose logarithm is used


class SQNR:
    """SQNR of a tensor over several batches: 10 * log10(sum(r^2) / sum((q - r)^2)) dB.

    One bit is worth 6 dB; 40 dB are an error of 1 %. The sums are kept in double precision.
    """

    def __init__(self, name: str):
        self.name = name
        self.signal = self.noise = 0.0
        self.batches = 0

    def add(self, reference: Any, quantized: Any) -> None:
        """Add a batch of tensors, or of nested lists, tuples and dicts of tensors."""
        pairs = list(zip(float_tensors(reference), float_tensors(quantized)))
        for r, q in pairs:
            if list(r.shape) != list(q.shape):
                raise ModelError(f"{self.name} has the shape {list(q.shape)} in the quantized "
                                 f"model, but {list(r.shape)} in the float one; they must be the "
                                 "same network on the same data")
            signal, noise = _energy(r), _energy(q - r)
            if not (math.isfinite(signal) and math.isfinite(noise)):
                raise NonFiniteError(f"{self.name} has NaN or infinite values; remove that batch "
                                     "or correct the model")
            self.signal += signal
            self.noise += noise
        self.batches += bool(pairs)

    @property
    def db(self) -> Optional[float]:
        """Ratio in dB. Infinite without an error, ``None`` before the first batch."""
        if not self.batches:
            return None
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def _energy(x):
    return scalar(x.astype("float64").square().sum())


def float_tensors(value: Any) -> List[paddle.Tensor]:
    """Return the float tensors in nested lists, tuples and dicts, in a fixed order."""
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def comparable_outputs(reference: Any, quantized: Any
                       ) -> Tuple[List[paddle.Tensor], List[paddle.Tensor]]:
    """Return the float tensors of two outputs, probabilities as logits without their mean.

    A tensor is probabilities if the rows of the reference are. They saturate: a single row whose
    largest one changes outweighs all others.
    """
    pairs = [(_logits(r), _logits(q)) if r.shape == q.shape and is_distribution(r) else (r, q)
             for r, q in zip(float_tensors(reference), float_tensors(quantized))]
    return [r for r, _ in pairs], [q for _, q in pairs]


def _logits(x):
    logits = x.astype("float64").clip(_TINY).log()
    return logits - logits.mean(-1, keepdim=True)


def format_db(db: Optional[float]) -> str:
    """Return a ratio with one decimal, or an empty text for ``None``."""
    return "" if db is None else f"{db:.1f}"
