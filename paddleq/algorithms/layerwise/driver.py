"""Quantizing a network decoder layer by decoder layer, each on what the quantized ones before give.

For each decoder layer: gather statistics of what its Linears read, smooth, round, put integers in
their place; find the ranges of its keys and values; run it again, now quantized, for what the next
one reads. At any time there are the statistics of one decoder layer and the outputs of one.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Dict

from ...config import LayerConfig
from ...engine import eager_evaluation, iter_batches
from ...errors import CalibrationError, PaddleqError
from ...nn import IntegerLinear
from ...nn.class_swap import replace_layers
from ...nn.kv_cache import PER_CHANNEL
from ..linear import quantize_linears
from .fold_smoothing import divide, norm_before
from .kv_calibration import quantize_caches
from .replay import Walk
from .resume import Resume, fingerprint
from .schedule import checked_helper, choose, decoder_layers, homes_of, stages_of
from .shared_inputs import find_groups, gather


def quantize_layer_by_layer(network, helper=None, config=None, batches=None, resume_dir=None,
                            progress=True):
    """Quantize Linears and KV caches of a network, in place, decoder layer by decoder layer.

    Linears that read the very same tensor, and have the same policy, share their statistics and
    their smoothing factor. Where that tensor comes from a norm with a weight of its own and nobody
    else reads it, the factor goes into the norm; else the layer divides its input. Linears outside
    of the decoder layers (a ``lm_head``) come last.

    Args:
        network: a ``paddle.nn.Layer``. Whoever holds one of its Linears, holds the quantized one
            afterwards; the float weights are freed, unless others hold the parameters.
        helper: a :class:`NetworkHelper`. Default None: a :class:`StackHelper`.
        config: a :class:`~paddleq.config.QuantConfig` for Linears, and for layers of
            ``MultiHeadAttention`` or ``KVCache`` whose configuration has ``kv_cache``.
        batches: an iterable of batches as :func:`paddleq.calibrate` takes them. They are held in
            memory, and so is what one decoder layer gives for all of them. May be None where no
            policy needs data.
        resume_dir: folder for finished decoder layers (made if it is not there). A run that was
            killed goes on with the first layer that is not in it, to the same bits. Default None.
        progress: show a progress bar, on terminals only. Default True.

    Returns:
        A :class:`Quantized`.

    Raises:
        CalibrationError: a layer needs data and none reached it; names it.
        NonFiniteError: NaN or infinity reached a layer; names it and the batch.
        ModelError: there are no decoder layers, or nothing to quantize.
        ConfigError, ConfigTypeError: an argument of a wrong kind, or ``resume_dir`` holds another
            run: says what differs.
        FormatError: a file in ``resume_dir`` is damaged.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import SmoothQuant, quantize_layer_by_layer
        >>> from paddleq.config import LayerConfig, QuantConfig
        >>> network = paddle.nn.TransformerEncoder(
        ...     paddle.nn.TransformerEncoderLayer(32, 2, 64, normalize_before=True), num_layers=2)
        >>> config = QuantConfig()
        >>> config.add_type(paddle.nn.Linear, LayerConfig(
        ...     QuantSpec(4, granularity=PerGroup(16)), smoother=SmoothQuant()))
        >>> config.add_type(paddle.nn.MultiHeadAttention, LayerConfig(kv_cache="per_token"))
        >>> config.add_pattern("out_proj$", None)
        >>> done = quantize_layer_by_layer(network, None, config, [paddle.rand([1, 4, 32])])
        >>> network.layers[0].linear1.quant_type, done.absorbed["layers.0.linear1"]
        ('SmoothQuant-W4-per_group', 'layers.0.norm2')
    """
    helper = checked_helper(network, helper)
    layers = decoder_layers(network, helper)
    inputs = _inputs(network, batches)
    linears, caches, _ = choose(network, helper, config)
    hungry = [name for name, (_, policy) in linears.items() if policy.needs] + [
        name for name, (_, kind) in caches.items() if kind == PER_CHANNEL]
    if hungry and not inputs:
        raise CalibrationError("batches must hold at least one batch, for "
                               f"{', '.join(hungry)}, but {'is' if batches is None else 'holds'} "
                               "none")
    with eager_evaluation(network):
        walk = Walk(network, layers, inputs if hungry else [])
        homes = homes_of(network, walk.layers)
        driver = _Driver(network, walk, homes, stages_of(walk.layers, homes, linears, caches))
        resume = None if resume_dir is None else Resume(resume_dir, fingerprint(
            network, [name for name, _ in walk.layers],
            {name: policy for name, (_, policy) in linears.items()},
            {name: kind for name, (_, kind) in caches.items()}, inputs))
        return driver.run(resume, progress)


@dataclass
class Quantized:
    """What :func:`quantize_layer_by_layer` did.

    Attributes:
        linears: name -> :class:`LayerConfig` of each Linear that was quantized.
        kv_caches: name -> "per_channel" or "per_token".
        absorbed: name of a Linear -> name of the norm that its smoothing factor went into. (A
            decoder layer that was loaded from ``resume_dir`` is not in it.)

    Examples:
        >>> from paddleq.algorithms import Quantized
        >>> Quantized(kv_caches={"layers.0.self_attn": "per_token"}).linears
        {}
    """

    linears: Dict[str, LayerConfig] = field(default_factory=dict)
    kv_caches: Dict[str, str] = field(default_factory=dict)
    absorbed: Dict[str, str] = field(default_factory=dict)


class _Driver:
    def __init__(self, network, walk, homes, stages):
        self.network, self.walk, self.homes, self.stages = network, walk, homes, stages
        self.names = {id(layer): name
                      for name, layer in network.named_sublayers(include_self=True)}
        self.done = Quantized()

    def run(self, resume, progress):
        from tqdm import tqdm

        finished = 0 if resume is None else resume.finished
        with tqdm(self.stages, desc="quantizing", disable=None if progress else True,
                  leave=False) as bar:
            for place, stage in enumerate(bar):
                bar.set_postfix_str(stage.name)
                if stage.number is not None and stage.number < finished:
                    resume.load(stage.number, stage.layer)
                else:
                    self.quantize(stage)
                    if resume is not None and stage.number is not None:
                        resume.save(stage.number, stage.layer)
                self.done.linears.update({n: policy for n, (_, policy) in stage.linears.items()})
                self.done.kv_caches.update({n: kind for n, (_, kind) in stage.caches.items()})
                if any(later.needs_data for later in self.stages[place + 1:]):
                    for batch in self.batches:
                        self.walk.advance(stage.number, batch)
        return self.done

    @property
    def batches(self):
        return range(len(self.walk.inputs))

    def quantize(self, stage):
        if stage.needs_data:
            if stage.shared:
                self.walk.run_everything(f"several decoder layers hold {stage.shared[0]}")
            self.walk.enter(stage.number, {name: layer for name, (layer, _) in [
                *stage.linears.items(), *stage.caches.items()]})
        for names, statistics in self.statistics(stage):
            self.quantize_group(stage, names, statistics)
        if stage.caches:
            quantize_caches(self.network, stage.caches, partial(self.walk.run, stage.number),
                            len(self.batches))

    def statistics(self, stage):
        """(names, statistics) of Linears to be quantized together; each is forgotten then."""
        run = partial(self.walk.run, stage.number)
        layers = {name: stage.linears[name][0] for name in stage.hungry}
        found = []
        if layers:
            groups = []
            for names in find_groups(layers, [partial(run, batch) for batch in self.batches]):
                by_policy = {}
                for name in names:
                    by_policy.setdefault(stage.linears[name][1], []).append(name)
                groups += by_policy.values()
            found = gather(layers, groups, lambda name: stage.linears[name][1].needs, run,
                           len(self.batches))
        while found:
            yield found.pop(0)
        for name in stage.linears:
            if name not in layers:
                yield [name], None

    def quantize_group(self, stage, names, statistics):
        linears = [stage.linears[name][0] for name in names]
        policy = stage.linears[names[0]][1]
        try:
            outcome = quantize_linears([linear.weight for linear in linears], policy, statistics)
        except PaddleqError as error:
            raise type(error)(f"{', '.join(names)}: {error}") from error
        input_scale = outcome.input_scale
        if input_scale is not None:
            norm = self.norm_before(stage, linears)
            if norm is not None:
                divide(norm, input_scale)
                input_scale = None
                self.done.absorbed.update(dict.fromkeys(names, self.names[id(norm)]))
        replace_layers(self.network, [
            (linear, IntegerLinear.from_linear(linear, weight, policy.activation_spec,
                                               outcome.activation, input_scale, policy.algorithm))
            for linear, weight in zip(linears, outcome.weights)])

    def norm_before(self, stage, linears):
        candidates = [layer for layer in self.network.sublayers(include_self=True)
                      if self.homes.get(id(layer)) == {stage.number}]
        return norm_before(self.network, candidates, linears,
                           partial(self.walk.run, stage.number, 0))


def _inputs(network, batches):
    if batches is None:
        return []
    return list(iter_batches(network, batches, allow_empty=True))
