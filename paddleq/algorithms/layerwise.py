"""Quantizing a network decoder layer by decoder layer, each on what the quantized ones before give.

For each decoder layer: gather statistics of what its Linears read, smooth, round, put integers in
their place; find the ranges of its keys and values; run it again, now quantized, for what the next
one reads. At any time there are the statistics of one decoder layer and the outputs of one.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Optional

import paddle
from paddle import nn

from .._checks import check_choice, wrong_type, wrong_value
from ..engine import evaluation, model_inputs
from ..errors import CalibrationError, ModelError, NonFiniteError, PaddleqError
from ..nn import Int8KVCache, IntegerLinear
from ..nn.attention import hold_cache
from ..nn.kv_cache import PER_CHANNEL, PER_TOKEN
from ..nn.replace import replace_layers
from .absorb import divide, norm_before
from .linear import LinearPolicy, quantize_linears
from .network_helper import NetworkHelper, StackHelper, is_linear
from .readers import Ranges, find_groups, gather
from .resume import Resume, fingerprint
from .walk import Walk, patched_forward


def quantize_layer_by_layer(network, helper=None, policy_of=None, kv_policy_of=None, batches=None,
                            resume_dir=None, progress=True):
    """Quantize Linears and KV caches of a network, in place, decoder layer by decoder layer.

    Linears that read the very same tensor, and have the same policy, share their statistics and
    their smoothing factor. Where that tensor comes from a norm with a weight of its own and nobody
    else reads it, the factor goes into the norm; else the layer divides its input. Linears outside
    of the decoder layers (a ``lm_head``) come last.

    Args:
        network: a ``paddle.nn.Layer``. Whoever holds one of its Linears, holds the quantized one
            afterwards; the float weights are freed, unless others hold the parameters.
        helper: a :class:`NetworkHelper`. Default None: a :class:`StackHelper`.
        policy_of: function from a Linear's name to a :class:`LinearPolicy`, or to None for one that
            stays float. Default None: all do.
        kv_policy_of: function from the name of a ``MultiHeadAttention`` or ``KVCache`` to
            "per_channel", "per_token" or None. Default None: all caches stay float.
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
        >>> from paddleq.algorithms import LinearPolicy, SmoothQuant, quantize_layer_by_layer
        >>> network = paddle.nn.TransformerEncoder(
        ...     paddle.nn.TransformerEncoderLayer(32, 2, 64, normalize_before=True), num_layers=2)
        >>> policy = LinearPolicy(QuantSpec(4, granularity=PerGroup(16)), smoother=SmoothQuant())
        >>> done = quantize_layer_by_layer(
        ...     network, None, lambda name: None if "out_proj" in name else policy,
        ...     lambda name: "per_token", [paddle.rand([1, 4, 32])])
        >>> network.layers[0].linear1.quant_type, done.absorbed["layers.0.linear1"]
        ('SmoothQuant-W4-per_group', 'layers.0.norm2')
    """
    helper = _checked(network, helper)
    layers = _decoder_layers(network, helper)
    inputs = _inputs(network, batches)
    linears, caches = _chosen(network, helper, policy_of, kv_policy_of)
    hungry = [name for name, (_, policy) in linears.items() if policy.needs] + [
        name for name, (_, kind) in caches.items() if kind == PER_CHANNEL]
    if hungry and not inputs:
        raise CalibrationError("batches must hold at least one batch, for "
                               f"{', '.join(hungry)}, but {'is' if batches is None else 'holds'} "
                               "none")
    with evaluation(network), paddle.no_grad():
        walk = Walk(network, layers, inputs if hungry else [])
        driver = _Driver(network, walk, _stages(walk.layers, network, linears, caches))
        resume = None if resume_dir is None else Resume(resume_dir, fingerprint(
            network, [name for name, _ in walk.layers],
            {name: policy for name, (_, policy) in linears.items()},
            {name: kind for name, (_, kind) in caches.items()}, inputs))
        return driver.run(resume, progress)


@dataclass
class Quantized:
    """What :func:`quantize_layer_by_layer` did.

    Attributes:
        linears: name -> :class:`LinearPolicy` of each Linear that was quantized.
        kv_caches: name -> "per_channel" or "per_token".
        absorbed: name of a Linear -> name of the norm that its smoothing factor went into. (A
            decoder layer that was loaded from ``resume_dir`` is not in it.)

    Examples:
        >>> from paddleq.algorithms import Quantized
        >>> Quantized(kv_caches={"layers.0.self_attn": "per_token"}).linears
        {}
    """

    linears: Dict[str, LinearPolicy] = field(default_factory=dict)
    kv_caches: Dict[str, str] = field(default_factory=dict)
    absorbed: Dict[str, str] = field(default_factory=dict)


@dataclass
class _Stage:
    """A decoder layer, or what is outside of all of them, and what is to be done in it.

    ``linears`` and ``caches`` are name -> (layer, policy); ``shared`` are the names of those that
    several decoder layers hold.
    """

    number: Optional[int]
    name: str
    layer: Any
    linears: dict
    caches: dict
    shared: list = field(default_factory=list)

    @property
    def hungry(self):
        """Names of the Linears whose policy needs statistics."""
        return [name for name, (_, policy) in self.linears.items() if policy.needs]

    @property
    def needs_data(self):
        return bool(self.hungry) or any(kind == PER_CHANNEL for _, kind in self.caches.values())


class _Driver:
    def __init__(self, network, walk, stages):
        self.network, self.walk, self.stages = network, walk, stages
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
                # The stage holds what was float.
                self.stages[place].linears, self.stages[place].caches = {}, {}
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
            self.quantize_caches(stage)

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
            (linear, IntegerLinear.from_linear(linear, weight, policy.activation,
                                               outcome.activation, input_scale, policy.algorithm))
            for linear, weight in zip(linears, outcome.weights)])

    def norm_before(self, stage, linears):
        if stage.layer is not None:
            candidates = stage.layer.sublayers(include_self=True)
        else:
            inside = {id(part) for _, layer in self.walk.layers
                      for part in layer.sublayers(include_self=True)}
            candidates = [layer for layer in self.network.sublayers(include_self=True)
                          if id(layer) not in inside]
        return norm_before(self.network, candidates, linears,
                           partial(self.walk.run, stage.number, 0))

    def quantize_caches(self, stage):
        caches = {}
        for name, (layer, _) in stage.caches.items():
            if isinstance(layer, nn.MultiHeadAttention):
                hold_cache(layer)
                layer = layer.kv_cache
            caches[name] = layer
        ranges = self.ranges(stage, {name: cache for name, cache in caches.items()
                                     if stage.caches[name][1] == PER_CHANNEL})
        replace_layers(self.network, [
            (cache, Int8KVCache(PER_TOKEN, token_axis=cache.token_axis) if name not in ranges
             else Int8KVCache.from_abs_max(*ranges[name], token_axis=cache.token_axis))
            for name, cache in caches.items()])

    def ranges(self, stage, caches):
        """Name -> (max|k|, max|v|), once the layer's Linears are quantized."""
        if not caches:
            return {}
        found = {name: Ranges(cache.token_axis) for name, cache in caches.items()}

        def observing(name):
            def forward(original, k, v, past=None):
                try:
                    found[name].observe(k, v)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error} at {name} in batch {batch} of the calibration "
                                         "data") from None
                return original(k, v, past)
            return forward

        with ExitStack() as stack:
            for name, cache in caches.items():
                stack.enter_context(patched_forward(cache, observing(name)))
            for batch in self.batches:
                self.walk.run(stage.number, batch)
        unseen = [name for name, each in found.items() if each.found is None]
        if unseen:
            raise CalibrationError(f"no keys and values reached {', '.join(unseen)} in "
                                   f"{len(self.batches)} batches")
        return {name: each.found for name, each in found.items()}


def _checked(network, helper):
    if not isinstance(network, nn.Layer):
        raise wrong_type("network", network, "a paddle.nn.Layer")
    if helper is None:
        return StackHelper()
    if not isinstance(helper, NetworkHelper):
        raise wrong_type("helper", helper, "a NetworkHelper or None")
    return helper


def _decoder_layers(network, helper):
    known = {id(layer) for layer in network.sublayers(include_self=True)}
    layers = list(helper.decoder_layers(network))
    for name, layer in layers:
        if id(layer) not in known:
            raise wrong_value("decoder_layers()", name, "sublayers of the network")
    if not layers:
        raise ModelError("decoder_layers() of the network helper returned none")
    parts = {id(part): name for name, layer in layers for part in layer.sublayers()}
    for name, layer in layers:
        if id(layer) in parts:
            raise wrong_value("decoder_layers()", name, f"no part of {parts[id(layer)]}")
    return layers


def _inputs(network, batches):
    if batches is None:
        return []
    try:
        batches = iter(batches)
    except TypeError:
        raise wrong_type("batches", batches, "an iterable of batches") from None
    return [model_inputs(network, batch) for batch in batches]


def _chosen(network, helper, policy_of, kv_policy_of):
    """(name -> (Linear, policy), name -> (layer with a cache, kind)) of what is to be quantized."""
    linears, caches = {}, {}
    for name, layer in network.named_sublayers(include_self=True):
        policy = policy_of(name) if policy_of is not None and is_linear(layer) else None
        if policy is None:
            continue
        if not isinstance(policy, LinearPolicy):
            raise wrong_type(f"policy_of({name!r})", policy, "a LinearPolicy or None")
        if policy.weight is not None:
            linears[name] = layer, policy
    for name, layer in helper.kv_caches(network) if kv_policy_of is not None else []:
        kind = kv_policy_of(name)
        if kind is None:
            continue
        check_choice(f"kv_policy_of({name!r})", kind, (PER_CHANNEL, PER_TOKEN))
        if isinstance(getattr(layer, "kv_cache", layer), Int8KVCache):
            raise ModelError(f"the KV cache of {name} is quantized already")
        caches[name] = layer, kind
    if not linears and not caches:
        raise ModelError("there is nothing to quantize: no Linear and no KV cache has a policy")
    return linears, caches


def _stages(layers, network, linears, caches):
    """The decoder layers in their order, and then the rest of the network, if it has any policy.

    What several of them hold is part of the rest: its statistics are those of all its calls.
    """
    held_by = {}  # id -> the numbers of the decoder layers that hold it; None: outside
    stage_of = {id(part): number for number, (_, layer) in enumerate(layers)
                for part in layer.sublayers(include_self=True)}
    for parent in network.sublayers(include_self=True):
        for part in parent._sub_layers.values():
            held_by.setdefault(id(part), set()).add(stage_of.get(id(parent)))

    def part_of(number, chosen):
        return {name: each for name, each in chosen.items()
                if held_by.get(id(each[0])) == {number}}

    stages = [_Stage(number, name, layer, part_of(number, linears), part_of(number, caches))
              for number, (name, layer) in enumerate(layers)]
    in_layers = {name for stage in stages for name in [*stage.linears, *stage.caches]}
    rest = [{name: each for name, each in chosen.items() if name not in in_layers}
            for chosen in (linears, caches)]
    if any(rest):
        shared = [name for chosen in rest for name, (layer, _) in chosen.items()
                  if held_by.get(id(layer), {None}) != {None}]
        stages.append(_Stage(None, "the rest", None, *rest, shared))
    return stages
