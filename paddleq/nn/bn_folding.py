"""Training with a batch norm folded into the weight of the layer before it.

The deployed weight is the folded one, w*gamma/sigma, so training quantizes that. gamma and beta are
parameters of the norm, mu_b and sigma_b = sqrt(variance + epsilon) statistics of the batch, mu_r
and sigma_r the running statistics, q is the weight's quantizer and b the layer's bias:

- one conv: BN(conv(x, q(w*gamma/sigma_r)) * sigma_r/gamma + b)
- two conv: conv(x, w) + b gives the statistics of the batch;
  conv(x, q(w*gamma/sigma_r)) * sigma_r/sigma_b + beta + gamma*(b - mu_b)/sigma_b
- frozen, and outside of training: conv(x, q(w*gamma/sigma_r)) + beta + gamma*(b - mu_r)/sigma_r

Without quantization, the first two equal batch norm. The formulas use the running statistics from
before the step.
"""

import paddle
from paddle import nn

from .._paddle_compat import (
    RUNNING_STATISTICS,
    StateDictNotice,
    batch_norm_state,
    is_traced_by_save,
)
from ..errors import ModelError
from ..fake_quant.recompute import in_first_pass, is_repeated_pass
from ..functional import EPS
from ..functional.fake_quant import as_dtype
from ..graph.dataflow import channel_axis
from ..graph.fold_batch_norm import scaled_weight
from .class_swap import substituted


class NormFolding(StateDictNotice):
    """Forward of a quantized layer with a folded batch norm."""

    def __init__(self, one_conv, freeze_at):
        super().__init__()
        self.one_conv = one_conv  # the formula of training: with one convolution or with two
        self.freeze_at = freeze_at  # training steps before the running statistics are fixed
        self.register_buffer("step", paddle.zeros([1], dtype="int64"))
        self.__dict__["norm"] = None

    def refusal_reason(self, norm):
        """Return the reason that ``norm`` cannot be folded in training, or None."""
        if isinstance(norm, nn.SyncBatchNorm) and not self.one_conv:
            return ("SyncBatchNorm computes its statistics over all devices, folding with two "
                    "convs on one; fold with one conv")
        if batch_norm_state(norm).trainable_statistics:
            return "it computes the batch's statistics in evaluation too (trainable_statistics)"
        return None

    def fold(self, norm):
        """Set the batch norm, without making it a sublayer."""
        self.__dict__["norm"] = norm

    def compute(self, layer, args, kwargs):
        """Compute the output of ``layer`` and the norm."""
        # Not named forward, because hooks on all layers (paddle.flops) expect tensors.
        norm = self.norm
        if (not norm.training or batch_norm_state(norm).use_global_stats
                or is_traced_by_save()):
            return self._with_running_statistics(layer, args, kwargs)
        if not paddle.in_dynamic_mode():
            raise ModelError(
                f"{layer._paddleq.name} is trained with a folded batch norm, which needs dynamic "
                "mode: train without paddle.jit.to_static, or set bn_fold to False")
        frozen, sigma = in_first_pass((id(self), "step"), self._count)
        if frozen:
            return self._with_running_statistics(layer, args, kwargs)
        formula = self._one_conv if self.one_conv else self._two_conv
        return formula(layer, args, kwargs, sigma)

    def _count(self):
        """Count a step; return True if the statistics are fixed, and the sigma from before it."""
        before = self.step.item()  # read each time, because set_state_dict changes the buffer
        with paddle.no_grad():
            paddle.assign(self.step + 1, self.step)
        return before >= self.freeze_at, self._sigma()

    def folded_weight(self, layer):
        """Return the folded weight of ``layer`` before quantization."""
        return scaled_weight(layer, self._gamma() / self._sigma())

    def extra_repr(self):
        return f"{'one' if self.one_conv else 'two'} conv, freeze_at={self.freeze_at}"

    def _one_conv(self, layer, args, kwargs, sigma):
        # gamma cancels out here; its gradient comes from the norm. The gradient through the weight
        # is rounding noise divided by gamma, which is large for a small gamma.
        gamma = self._gamma().detach()
        gamma = paddle.where(gamma.abs() < EPS, paddle.ones_like(gamma), gamma)
        c = self._run(layer, args, kwargs, gamma / sigma, None)
        aligned = _aligner(layer, c)
        z = _full(c) * aligned(sigma / gamma)
        if layer.bias is not None:
            z = z + aligned(layer.bias)
        if not is_repeated_pass():
            return self.norm.float_forward(as_dtype(z, c.dtype))
        # The norm updates copies, because the first pass has updated its statistics.
        copies = {name: getattr(self.norm, name).clone() for name in RUNNING_STATISTICS}
        with substituted(self.norm, copies):
            return self.norm.float_forward(as_dtype(z, c.dtype))

    def _two_conv(self, layer, args, kwargs, sigma):
        running = batch_norm_state(self.norm)
        u = _full(layer.float_forward({}, args, kwargs))
        aligned = _aligner(layer, u)
        others = [i for i in range(len(u.shape)) if i != channel_axis(layer) % len(u.shape)]
        mean = u.mean(axis=others)
        variance = (u - aligned(mean)).square().mean(axis=others)
        gamma = self._gamma()
        c = self._run(layer, args, kwargs, gamma / sigma, None)
        batch_sigma = paddle.sqrt(variance + running.epsilon)
        # The mean of u includes b.
        centre = -mean if layer.bias is None else layer.bias - mean
        shift = self._beta() + gamma * centre / batch_sigma
        y = _full(c) * aligned(sigma / batch_sigma) + aligned(shift)
        if not is_repeated_pass():
            with paddle.no_grad():
                for old, new in ((running.mean, mean), (running.variance, variance)):
                    paddle.assign(old * running.momentum + new * (1.0 - running.momentum), old)
        return as_dtype(y, c.dtype)

    def _with_running_statistics(self, layer, args, kwargs):
        factor = self._gamma() / self._sigma()
        mean = batch_norm_state(self.norm).mean
        mean = mean if layer.bias is None else mean - layer.bias
        return self._run(layer, args, kwargs, factor, self._beta() - mean * factor)

    def _run(self, layer, args, kwargs, factor, bias):
        weight = layer.quantized_weight("weight", scaled_weight(layer, factor))
        return layer.float_forward({"weight": weight, "bias": bias}, args, kwargs)

    def _sigma(self):
        running = batch_norm_state(self.norm)
        return paddle.sqrt(running.variance + running.epsilon)

    def _gamma(self):
        gamma = getattr(self.norm, "weight", None)
        return paddle.ones_like(batch_norm_state(self.norm).mean) if gamma is None else gamma

    def _beta(self):
        beta = getattr(self.norm, "bias", None)
        return paddle.zeros_like(batch_norm_state(self.norm).mean) if beta is None else beta


def _aligner(layer, y):
    """Return a function that reshapes a vector to broadcast along the channels of ``y``."""
    shape = [1] * len(y.shape)
    shape[channel_axis(layer)] = -1
    return lambda vector: vector.reshape(shape)


def _full(y):
    return y if y.dtype == paddle.float64 else as_dtype(y, paddle.float32)
