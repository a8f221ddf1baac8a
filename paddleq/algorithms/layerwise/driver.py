"""Quantization of a model decoder layer by decoder layer.

For each decoder layer: collect statistics of the inputs of its Linear layers, smooth, round,
replace them by integer layers; calibrate its KV caches; run it again, now quantized, for the inputs
of the next one. The statistics of one decoder layer and the outputs of one are in memory at a time.
"""

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Iterable, List, Optional, Union

import paddle
import paddle.distributed as dist
from paddle import nn
from paddle.distributed import ReduceOp

from ..._checks import check_choice, check_layer, check_path
from ..._distributed import all_gather, all_reduce, groups, is_writer
from ...config import LayerConfig, QuantConfig, SkipKind, SkipReason
from ...engine import collect_inputs, eager_evaluation, iter_batches, run_batches
from ...engine.distributed import check_same_model, merge_observers
from ...engine.select import leave_float, nothing_selected
from ...errors import CalibrationError, DistributedError, PaddleqError
from ...functional.qparams import as_dtype
from ...graph.calls import argument_names, find_uses
from ...nn import IntegerLinear
from ...nn.class_swap import replace_layers
from ...nn.kv_cache import PER_CHANNEL, PER_TOKEN, insert_cache, quantized_cache_class
from ...observers import KVRange
from ..linear import (
    UNCALIBRATED,
    quantize_linears,
    rounder_of,
    warn_of_few_tokens,
    warn_of_uncalibrated,
)
from .fold_smoothing import divide_output, find_norm
from .network_helper import NetworkHelper, StackHelper
from .replay import LayerReplay
from .resume import Resume, fingerprint
from .schedule import (
    ScheduleEntry,
    Selected,
    build_schedule,
    containing_layers,
    decoder_layers,
    select_layers,
    split_kinds,
    warn_idle,
)
from .shared_inputs import check_reached, collect_stats, find_groups, split


def quantize_layer_by_layer(model: nn.Layer, helper: Optional[NetworkHelper] = None,
                            config: Optional[QuantConfig] = None, data: Optional[Iterable] = None,
                            resume_dir: Union[str, "os.PathLike[str]", None] = None,
                            progress: bool = True,
                            uncalibrated: str = "round") -> "LayerwiseResult":
    """Quantize Linear layers and KV caches of a model, in place, decoder layer by decoder layer.

    Linear layers that read the same tensor and have the same configuration share statistics and
    smoothing factor. If that tensor is the output of a norm with a weight and nothing else
    reads it, the factor is folded into the norm; otherwise the layer divides its input. Linear
    layers outside of the decoder layers (a ``lm_head``) are quantized last. A Linear layer whose
    ``weight`` is read outside of its own forward, as forward passes on ``data`` show, stays float
    with a warning.

    Args:
        model: a ``paddle.nn.Layer``. All references to one of its Linear layers refer to the
            quantized one afterwards; float weights without other references are freed.
        helper: a :class:`NetworkHelper`. Default None: a :class:`StackHelper`.
        config: a :class:`~paddleq.config.QuantConfig` for Linear layers, and for layers of
            ``MultiHeadAttention`` or ``KVCache`` whose configuration has ``kv_cache``.
        data: an iterable of batches as for :func:`paddleq.calibrate`. They are kept in memory, and
            so are the outputs of one decoder layer for all of them. May be None if no configuration
            needs data.
        resume_dir: folder for finished decoder layers, created if it does not exist. An interrupted
            run continues after the last layer in it, with identical results. Default None.
        progress: show a progress bar, on terminals only. Default True.
        uncalibrated: for Linear layers that need data and that none reached, such as experts that
            no token chose. "round" (default): round their weights to nearest, with one warning
            that names them; activations with a fixed scale stay float. "error": raise before any
            layer is changed.

    A tensor or array ``attention_mask`` [batch, tokens] among the arguments of a batch marks
    padding with 0. Padding is left out of the statistics of layers whose input is
    [batch, tokens, ...] or [batch * tokens, features].

    Processes that ``paddle.distributed`` connects quantize together: each gives its share of the
    data, at least one batch, and the statistics of each decoder layer are merged, so that all have
    the same model afterwards. ``resume_dir`` then has a subfolder for each process. See
    :func:`paddleq.calibrate`.

    Returns:
        A :class:`LayerwiseResult`.

    Raises:
        CalibrationError: no data reached any layer that needs it, or, with ``uncalibrated``
            "error", some of them; names all. A KV cache received no data.
        NonFiniteError: NaN or infinity reached a layer; names the layer and the batch.
        ModelError: there are no decoder layers, or nothing to quantize.
        ConfigError, ConfigTypeError: an argument is wrong, or ``resume_dir`` belongs to another
            run; names the difference.
        FormatError: a file in ``resume_dir`` is damaged.
        DistributedError: the processes have different models, or one of them has no batch.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import SmoothQuant, quantize_layer_by_layer
        >>> from paddleq.config import LayerConfig, QuantConfig
        >>> model = paddle.nn.TransformerEncoder(
        ...     paddle.nn.TransformerEncoderLayer(32, 2, 64, normalize_before=True), num_layers=2)
        >>> config = QuantConfig()
        >>> config.add_type(paddle.nn.Linear, LayerConfig(
        ...     QuantSpec(4, granularity=PerGroup(16)), smoother=SmoothQuant()))
        >>> config.add_type(paddle.nn.MultiHeadAttention, LayerConfig(kv_cache="per_token"))
        >>> config.add_pattern("out_proj$", None)
        >>> result = quantize_layer_by_layer(model, None, config, [paddle.rand([1, 4, 32])])
        >>> model.layers[0].linear1.quant_type, result.folded["layers.0.linear1"]
        ('SmoothQuant-W4-per_group', 'layers.0.norm2')
    """
    check_layer("model", model)
    helper = StackHelper() if helper is None else helper
    layers = decoder_layers(model, helper)
    inputs = [] if data is None else list(iter_batches(model, data, allow_empty=True))
    check_choice("uncalibrated", uncalibrated, UNCALIBRATED)
    selection = select_layers(model, helper, config)
    warn_idle(model, helper, config, selection)
    _check_shares(model, inputs)
    unused = _find_uses(model, selection, inputs)
    selected = selection.selected
    reading = ScheduleEntry(None, "", None, selected).reading
    if reading and not inputs:
        raise CalibrationError(f"data must hold at least one batch, for {', '.join(reading)}, but "
                               f"{'is' if data is None else 'holds'} none")
    unused = [name for name in unused if name in reading]
    if uncalibrated == "error" or len(unused) == len(reading):
        check_reached(unused, len(inputs))
    with eager_evaluation(model):
        replay = LayerReplay(model, layers, inputs if reading else [])
        containing = containing_layers(model, replay.layers)
        driver = _Driver(model, replay, containing,
                         build_schedule(replay.layers, containing, selected), uncalibrated)
        resume = None if resume_dir is None else Resume(
            _folder_of_process(resume_dir), fingerprint(
                model, [name for name, _ in replay.layers], *split_kinds(selected), inputs))
        if resume is not None and groups():  # layers that all have finished
            resume.finished = int(all_reduce(
                paddle.to_tensor([resume.finished]), ReduceOp.MIN).numpy()[0])
        return driver.run(resume, progress)


def _folder_of_process(folder):
    """Return the subfolder of ``folder`` for this one of several processes, or ``folder``."""
    folder = check_path("resume_dir", folder, "a path or None")
    return os.path.join(folder, f"process-{dist.get_rank()}") if groups() else folder


def _find_uses(model, selection, inputs):
    """Leave layers float whose weight another layer reads; return the names of unused layers."""
    linears = {name: each.layer for name, each in split_kinds(selection.selected)[0].items()}
    with eager_evaluation(model):
        found, unused = find_uses(linears, [
            partial(model, *args, **kwargs) for args, kwargs in inputs])
    if groups():
        names = list(linears)
        flags = all_reduce(paddle.to_tensor(
            [[name in found, name not in unused] for name in names], dtype="int64"),
            ReduceOp.MAX).numpy()
        found = [name for name, (read, _) in zip(names, flags) if read]
        unused = [name for name, (_, used) in zip(names, flags) if not used]
    for name in found:
        leave_float(selection, name, SkipReason(SkipKind.WEIGHT_READ_OUTSIDE))
    if not selection.selected:
        raise nothing_selected(model, selection)
    return unused


def _check_shares(model, inputs):
    """Raise unless all processes have the same model and a share of the data, or none has."""
    if groups():
        check_same_model(model)
        counts = [int(count) for count in all_gather(paddle.to_tensor([len(inputs)]))]
        if any(counts) and not all(counts):
            raise DistributedError(
                f"the processes have {', '.join(map(str, counts))} batches; each needs at least "
                "one to quantize layer by layer")


@dataclass
class LayerwiseResult:
    """Layers that :func:`quantize_layer_by_layer` quantized.

    Attributes:
        linears: name -> :class:`LayerConfig` of each quantized Linear.
        kv_caches: name -> "per_channel" or "per_token".
        folded: name of a Linear -> name of the norm into which its smoothing factor was folded.
            Decoder layers that were loaded from ``resume_dir`` are omitted.
        uncalibrated: names of Linear layers that were rounded to nearest because no data reached
            them, with the same omission.

    Examples:
        >>> from paddleq.algorithms import LayerwiseResult
        >>> LayerwiseResult(kv_caches={"layers.0.self_attn": "per_token"}).linears
        {}
    """

    linears: Dict[str, LayerConfig] = field(default_factory=dict)
    kv_caches: Dict[str, str] = field(default_factory=dict)
    folded: Dict[str, str] = field(default_factory=dict)
    uncalibrated: List[str] = field(default_factory=list)


class _Driver:
    def __init__(self, model, replay, containing, schedule, uncalibrated):
        self.model, self.replay = model, replay
        self.containing, self.schedule = containing, schedule
        self.uncalibrated, self.tokens = uncalibrated, {}
        self.batches = range(len(replay.inputs))
        self.masks = [_padding_mask(model, *each) for each in replay.inputs]
        self.names = {id(layer): name
                      for name, layer in model.named_sublayers(include_self=True)}
        self.result = LayerwiseResult(
            {name: each.config for entry in schedule for name, each in entry.linears.items()},
            {name: each.config.kv_cache for entry in schedule
             for name, each in entry.caches.items()})

    def run(self, resume: Any, progress):
        from tqdm import tqdm

        shown = progress and is_writer()
        with tqdm(self.schedule, desc="quantizing", disable=None if shown else True,
                  leave=False) as bar:
            for position, entry in enumerate(bar):
                bar.set_postfix_str(entry.name)
                stored = None if entry.number is None else resume
                if stored is not None and entry.number < stored.finished:
                    stored.load(entry.number, entry.layer)
                else:
                    self.quantize(entry)
                    if stored is not None:
                        stored.save(entry.number, entry.layer)
                if any(later.reading for later in self.schedule[position + 1:]):
                    run_batches(partial(self.replay.advance, entry.number), self.batches)
        warn_of_few_tokens(self.tokens)
        warn_of_uncalibrated(self.result.uncalibrated)
        return self.result

    def quantize(self, entry):
        run = partial(self.replay.run, entry.number)
        if entry.reading:
            if entry.shared:
                self.replay.disable_replay(f"several decoder layers hold {entry.shared[0]}")
            self.replay.check_dependencies(
                entry.number, {name: each.layer for name, each in entry.selected.items()})
        for names, stats in self.grouped_stats(entry, run):
            self.quantize_group(entry, names, stats, run)
        if entry.caches:
            self.quantize_caches(entry.caches, run)

    def grouped_stats(self, entry, run):
        """Yield (names, statistics) of Linear layers to quantize together, and free them."""
        configs = {name: each.config for name, each in entry.linears.items()}
        layers = {name: entry.linears[name].layer for name in entry.reading if name in configs}
        found = []
        if layers:
            groups = split(find_groups(layers, [partial(run, batch) for batch in self.batches]),
                           configs.get)
            found = collect_stats(layers, groups, lambda name: configs[name].needs, run,
                                  self.masks)
            if self.uncalibrated == "error":
                check_reached([name for names, stats in found if not stats.tokens
                               for name in names], len(self.batches))
        while found:
            yield found.pop(0)
        for name in configs:
            if name not in layers:
                yield [name], None

    def quantize_group(self, entry, names, stats, run):
        layers = {name: entry.linears[name].layer for name in names}
        config, linears = entry.linears[names[0]].config, list(layers.values())
        if stats is not None:
            self.tokens.update({name: (config, stats.tokens, layer.weight.shape[0])
                                for name, layer in layers.items()})
            if not stats.tokens:
                config, stats = config.without_data(), None
                self.result.linears.update(dict.fromkeys(names, config))
                self.result.uncalibrated += names

        def observe(input_scale):
            collector = _SmoothedInput(config.activation_observer(), input_scale)
            self.collect(layers, dict.fromkeys(names, collector), run)
            if groups():
                merge_observers([collector.observer])
            return collector.observer

        try:
            result = quantize_linears([linear.weight for linear in linears], config, stats, observe)
        except PaddleqError as error:
            raise type(error)(f"{', '.join(names)}: {error}") from error
        input_scale = result.input_scale
        if input_scale is not None:
            candidates = [layer for layer in self.model.sublayers(include_self=True)
                          if self.containing.get(id(layer)) == {entry.number}]
            norm = find_norm(self.model, candidates, linears,
                             partial(self.replay.run, entry.number, 0))
            if norm is not None:
                divide_output(norm, input_scale)
                input_scale = None
                self.result.folded.update(dict.fromkeys(names, self.names[id(norm)]))
        replace_layers(self.model, [
            (linear, IntegerLinear.from_linear(linear, weight, config.activation_spec,
                                               result.activation, input_scale, config.algorithm))
            for linear, weight in zip(linears, result.weights)])

    def collect(self, layers, collectors, run):
        """Update collectors with the inputs of layers on all batches."""
        def collect(batch):
            with collect_inputs(layers, collectors, self.masks[batch]):
                run(batch)

        run_batches(collect, self.batches)

    def quantize_caches(self, selected, run):
        """Replace float KV caches by quantized ones, in place."""
        caches = {name: _float_cache(each.layer) for name, each in selected.items()}
        collectors = {name: KVRange(cache.token_axis) for name, cache in caches.items()
                      if selected[name].config.kv_cache == PER_CHANNEL}
        if collectors:
            self.collect({name: caches[name] for name in collectors}, collectors, run)
            check_reached([name for name, each in collectors.items() if each.result() is None],
                          len(self.batches))
            for collector in collectors.values():
                collector.merge_processes()
        replacements = []
        for name, cache in caches.items():
            cls, arguments = quantized_cache_class(selected[name].config.kv_cache_dtype)
            arguments = {"token_axis": cache.token_axis, **arguments}
            replacements.append((cache, cls.from_abs_max(*collectors[name].result(), **arguments)
                                 if name in collectors else cls(PER_TOKEN, **arguments)))
        replace_layers(self.model, replacements)


class _SmoothedInput:
    """Collector that updates an observer with the input divided by a smoothing factor."""

    num_inputs = 1

    def __init__(self, observer, input_scale):
        self.observer, self.input_scale = observer, input_scale

    def update(self, x):
        if 0 in x.shape:
            return
        x = as_dtype(x.detach(), paddle.float32)
        self.observer.update(x if self.input_scale is None else x / self.input_scale)


def _padding_mask(model, args, kwargs):
    """Return the ``attention_mask`` [batch, tokens] of a batch as bool; None if all are tokens."""
    mask = {**dict(zip(argument_names(model), args)), **kwargs}.get("attention_mask")
    if not isinstance(mask, paddle.Tensor) or len(mask.shape) != 2:
        return None
    mask = mask.astype("bool")
    return None if bool(mask.all()) else mask


def _float_cache(layer):
    """Return the float KV cache of a selected layer, inserted into a ``MultiHeadAttention``."""
    if not isinstance(layer, nn.MultiHeadAttention):
        return layer
    insert_cache(layer)
    return layer.kv_cache


def build_structure(model: nn.Layer, selected: Selected) -> None:
    """Replace selected Linear layers and KV caches by empty integer ones, in place.

    Properties that depend on data (whether a layer divides its input by a smoothing factor) are
    set when a checkpoint is loaded. Until then the model computes NaN or raises an error.
    """
    linears, caches = split_kinds(selected)
    replacements = []
    for each in linears.values():
        config: Any = each.config
        empty = IntegerLinear.empty(
            each.layer, config.weight_spec, config.activation_spec, algorithm=config.algorithm,
            permuted=not rounder_of(config).accepts_clips(config.weight_spec))
        empty.forget_scale()
        replacements.append((each.layer, empty))
    for each in caches.values():
        layer, granularity, sizes = each.layer, each.config.kv_cache, {}
        if granularity == PER_CHANNEL and isinstance(layer, nn.MultiHeadAttention):
            sizes = {"kv_heads": layer.num_heads, "head_dim": layer.head_dim}
        cache = _float_cache(layer)
        cls, arguments = quantized_cache_class(each.config.kv_cache_dtype)
        replacements.append((cache, cls(granularity, token_axis=cache.token_axis, **sizes,
                                        **arguments)))
    replace_layers(model, replacements)
