"""Reference of a quantized Linear, in float64 numpy from the formulas of its configuration."""

import numpy as np
from algorithm_reference import numpy_clip_losses, numpy_gptq, numpy_grid, numpy_rounded

from paddleq import PerToken
from paddleq.algorithms import AWQ, GPTQ, SmoothQuant


class Scheme:
    """Linears that read the same inputs, quantized.

    Args:
        weights: list of float64 [K, N_i].
        x: float64 [tokens, K], all inputs of the calibration.
        policy: a LayerConfig.

    Attributes:
        s: [K], what the input is divided by.
        held: what the integers stand for, of W * s, for each weight.
        exact: no step of it depends on how sums are rounded, but for ties.
    """

    def __init__(self, weights, x, policy):
        self.policy = policy
        self.exact = policy.algorithm in ("", "SmoothQuant")
        self.s = self._smoothing(weights, x)
        self._low, self._high = (x / self.s).min(), (x / self.s).max()
        self.held = [self._rounded(weight * self.s[:, None], x / self.s) for weight in weights]

    def linear(self, index, x, bias):
        """The output of the Linear number ``index`` for its input x."""
        return self.activation(x) @ self.held[index] + bias

    def activation(self, x):
        """x / s as the integers hold it."""
        spec, x = self.policy.activation, x / self.s
        if spec is None:
            return x
        if isinstance(spec.granularity, PerToken):
            step, zero = np.abs(x).max(-1, keepdims=True) / 127, 0.0
        elif spec.symmetric:
            step, zero = max(-self._low, self._high) / 127, 0.0
        else:
            low, high = min(self._low, 0.0), max(self._high, 0.0)
            step = (high - low) / 255
            zero = np.rint(-low / step)
        step = np.maximum(step, 1e-12)
        return (np.clip(np.rint(x / step) + zero, spec.quant_min, spec.quant_max) - zero) * step

    def _smoothing(self, weights, x):
        smoother = self.policy.smoother
        if isinstance(smoother, SmoothQuant):
            largest = np.abs(x).max(0)
            of_weights = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
            s = largest**smoother.strength / of_weights**(1 - smoother.strength)
            return np.where(largest == 0, 1.0, s)
        if isinstance(smoother, AWQ):
            return min(self._awq_factors(weights, x), key=lambda s: sum(
                ((x / s @ numpy_rounded(weight * s[:, None], self.policy.weight) - x @ weight)
                 ** 2).sum() for weight in weights))
        return np.ones(x.shape[1])

    def _awq_factors(self, weights, x):
        awq = self.policy.smoother
        ratios = awq.ratios or [i / awq.grids_num for i in range(awq.grids_num)]
        magnitude = np.abs(x).mean(0)
        magnitude = np.maximum(magnitude / magnitude.mean(), 1e-4)
        shares = np.concatenate([self._shares(weight) for weight in weights], axis=1).mean(1)
        shares = np.maximum(shares, 1e-4) if awq.duo_scaling else np.ones(len(shares))
        factors = [np.ones(len(shares))] if awq.duo_scaling else []
        for ratio in ratios:
            s = magnitude**ratio / shares**(1 - ratio)
            factors.append(s / np.sqrt(s.max() * s.min()))
        return factors

    def _shares(self, weight):
        """|w| / max|w| of those that have the same scale."""
        scale, _, group_of = numpy_grid(np.abs(weight), self.policy.weight)
        return np.abs(weight) / (scale * self.policy.weight.quant_max)[group_of]

    def _rounded(self, weight, x):
        spec, smoother, rounder = self.policy.weight, self.policy.smoother, self.policy.rounder
        clip = 1.0
        if isinstance(smoother, AWQ) and smoother.clip:
            factors, losses = zip(*numpy_clip_losses(weight, x, spec, smoother.grids_num))
            clip = np.array(factors)[np.argmin(losses, axis=0)]
        if not isinstance(rounder, GPTQ):
            return numpy_rounded(weight, spec, clip)
        found = numpy_gptq(weight, x.T @ x / len(x), spec, rounder.damping, rounder.act_order,
                           rounder.static_groups, clip)
        rows = found["group_of"]
        held = (found["integers"] - found["zero"][rows]) * found["scale"][rows]
        return held[np.argsort(found["order"])]
