"""``PTQ``: quantization of weights, activations and KV caches of transformers."""

import itertools
import logging
import os
import re
import sys
from collections import OrderedDict
from typing import Any, Collection, Dict, Iterable, Optional, Sequence, Union

import paddle
from paddle import nn

from ... import engine
from ..._checks import check_layer, wrong_type, wrong_value
from ...algorithms import NetworkHelper, StackHelper, quantize_layer_by_layer
from ...algorithms.layerwise.driver import build_structure
from ...algorithms.layerwise.network_helper import ROUTER, routers
from ...algorithms.layerwise.schedule import select_layers, warn_idle
from ...checkpoint import load_checkpoint
from ...config import QuantConfig, Scope, SkipKind, SkipReason
from ...engine.select import record_reasons
from ...engine.summary import table
from ...errors import ConfigError, FormatError, ModelError, StateError
from ...nn.deployable import DeployableLayer, deployable_layers
from ...nn.integer_linear import linear_skip_reason
from .enums import PTQMode
from .ptq_config import PTQConfig

_logger = logging.getLogger("paddleq")


class PTQ:
    """Post-training quantization with MindSpore Golden Stick's interface.

    ``config`` applies to ``paddle.nn.Linear`` in the decoder layers of a network and to its KV
    caches; ``layer_policies`` overrides it by layer name. Linears outside of the decoder layers,
    such as a ``lm_head``, are quantized only if a pattern matches them. Linears that choose the
    experts of a mixture (named gate, router, switch or wg, with an output for each member of the
    list of experts beside them) are quantized only if a pattern that contains such a name does.

    Args:
        config: a :class:`PTQConfig`, a dict with its fields, or None (default) for its defaults.
        layer_policies: an OrderedDict of regular expression -> :class:`PTQConfig`, or None to
            leave the matched layers float. An expression is matched from the start of a layer's
            name in ``network.named_sublayers()``; a KV cache has the name of its
            ``paddle.nn.MultiHeadAttention`` or ``paddleq.nn.KVCache``. Default None: no patterns.

    Raises:
        ConfigTypeError: (a TypeError) ``config`` or an element of ``layer_policies`` is no
            PTQConfig; ``layer_policies`` is no OrderedDict.
        ConfigError: (a ValueError) see :class:`PTQConfig`; a pattern is no regular expression or
            its policy of another mode; ``PTQMode.QUANTIZE`` in static graph mode.

    Examples:
        >>> import paddle
        >>> from paddleq.golden_stick import PTQ, PTQConfig
        >>> network = paddle.nn.TransformerEncoder(
        ...     paddle.nn.TransformerEncoderLayer(64, 2, 128), num_layers=2)
        >>> ptq = PTQ(PTQConfig(weight_quant_dtype="int4", precision_recovery="gptq",
        ...                     opname_blacklist=["self_attn"]))
        >>> network = ptq.apply(network, datasets=[paddle.rand([2, 8, 64]) for _ in range(4)])
        >>> _ = ptq.summary(ptq.convert(network))
        layer_name                  | quant_type
        ----------------------------+--------------------
        layers.0.self_attn          | NA
        layers.0.self_attn.q_proj   | NA
        ...
        layers.1.linear1            | GPTQ-W4-per_channel
        layers.1.linear2            | GPTQ-W4-per_channel
    """

    def __init__(self, config: Union[PTQConfig, Dict[str, Any], None] = None,
                 layer_policies: Optional["OrderedDict[str, Optional[PTQConfig]]"] = None) -> None:
        config = PTQConfig.parse(config)
        if config.mode is PTQMode.QUANTIZE and not paddle.in_dynamic_mode():
            raise ConfigError("config.mode must be PTQMode.DEPLOY in static graph mode, but is "
                              "PTQMode.QUANTIZE; call paddle.disable_static() first")
        self._policies = LayerPolicies(config, layer_policies)

    @property
    def config(self) -> PTQConfig:
        """The :class:`PTQConfig` of layers that no pattern matches."""
        return self._policies.config

    def apply(self, network: nn.Layer, network_helper: Optional[NetworkHelper] = None,
              datasets: Optional[Iterable] = None,
              resume_dir: Union[str, os.PathLike, None] = None,
              uncalibrated: str = "round") -> nn.Layer:
        """Quantize ``network``, or build the structure of the quantized one, in place.

        ``PTQMode.QUANTIZE`` processes one decoder layer at a time: it suppresses outliers, rounds
        the weights and calibrates the KV caches; the next decoder layer is calibrated on the
        output of the quantized one. Linears with the same input share their smoothing factor,
        which is folded into the preceding norm if possible. ``PTQMode.DEPLOY`` uses no data; load
        a checkpoint with :meth:`convert`.

        Args:
            network: a float ``paddle.nn.Layer``.
            network_helper: a :class:`NetworkHelper` that returns the decoder layers. Default
                None: the layers of a ``LayerList`` or ``Sequential`` with layers of one class.
            datasets: an iterable of calibration batches: a tensor, a list or tuple that begins
                with the arguments of ``network.forward`` (labels after them are ignored), or a
                dict of arguments. Not used in DEPLOY mode.
            resume_dir: folder for finished decoder layers; an interrupted run resumes after the
                last of them, with bit-identical results. Default None. (Not in Golden Stick.)
            uncalibrated: for Linears that need data and that none reached, such as experts that no
                token chose: "round" (default) rounds their weights to nearest, with one warning
                that names them; "error" raises before any layer is changed. (Not in Golden Stick.)

        A tensor ``attention_mask`` [batch, tokens] among the arguments of a batch marks padding,
        which does not count in statistics.

        Returns:
            The network, which computes the outputs of the deployed network.

        Raises:
            StateError: (a RuntimeError) a subclass did not call ``PTQ.__init__``.
            ConfigTypeError: (a TypeError) ``network`` is no ``paddle.nn.Layer``, or
                ``network_helper`` no NetworkHelper.
            ConfigError: (a ValueError) no ``network_helper`` in DEPLOY mode; missing or empty
                ``datasets`` in QUANTIZE mode; two patterns match one layer.
            ModelError: the network is already quantized, or has nothing to quantize.
            CalibrationError: a layer had no data, or NaN or infinity; names it.

        After an error in a decoder layer, the layers before it are quantized: start again from a
        float network (with ``resume_dir``, the run continues after the last finished layer).
        """
        policies = self._initialized()
        engine.check_model(network)
        deploy = policies.config.mode is PTQMode.DEPLOY
        if network_helper is None and deploy:
            raise wrong_value("network_helper", None, "a NetworkHelper in PTQMode.DEPLOY")
        helper = StackHelper() if network_helper is None else network_helper
        if not isinstance(helper, NetworkHelper):
            raise wrong_type("network_helper", helper, "a NetworkHelper or None")
        batches = None if deploy else _not_empty(datasets)
        rules = policies.rules(network, helper)
        selection, choosing = select_layers(network, helper, rules), routers(network)
        for name, layer in network.named_sublayers(include_self=True):
            reason = selection.skipped.get(name)
            if (reason is not None and reason.kind is SkipKind.NO_RULE
                    and linear_skip_reason(layer) is None):
                selection.skipped[name] = (
                    SkipReason(SkipKind.ROUTER, "a pattern with its own name would quantize it")
                    if name in choosing else SkipReason(SkipKind.OUTSIDE_DECODER_LAYERS))
        record_reasons(network, selection)
        if deploy:
            warn_idle(network, helper, rules, selection)
            build_structure(network, selection.selected)
        else:
            quantize_layer_by_layer(network, helper, rules, batches, resume_dir=resume_dir,
                                    uncalibrated=uncalibrated)
        engine.set_provenance(network, "golden_stick", config=policies.config,
                          layer_policies=policies.policies or None)
        return network

    def convert(self, net_opt: nn.Layer, ckpt_path: str = "") -> nn.Layer:
        """Return the network to deploy, changed in place.

        A network from :meth:`apply` is returned in evaluation mode; ``ckpt_path`` loads a
        checkpoint of :func:`paddleq.save_checkpoint` into it. Export it with
        :func:`paddleq.save_quantized_model`.

        Args:
            net_opt: the network that :meth:`apply` returned.
            ckpt_path: prefix of the files that :func:`paddleq.save_checkpoint` wrote, or the path
                of one of them; "" (default): none. Nothing in them is unpickled.

        Returns:
            The network, in evaluation mode.

        Raises:
            ConfigTypeError: (a TypeError) ``net_opt`` is no ``paddle.nn.Layer``, or ``ckpt_path``
                no str.
            FormatError: (a ValueError) the checkpoint is missing, damaged or of another kind. The
                network is not changed.
            ModelError: :meth:`apply` was not called on it, or the checkpoint is of another
                network or quantized in another way. The network is not changed.
        """
        self._initialized()
        check_layer("net_opt", net_opt, "a paddle.nn.Layer that apply() returned")
        if not isinstance(ckpt_path, str):
            raise wrong_type("ckpt_path", ckpt_path, "a str, empty for no checkpoint")
        if not deployable_layers(net_opt):
            raise ModelError("net_opt has no quantized layer; call apply() on it first")
        if ckpt_path:
            load_checkpoint(net_opt, _prefix(ckpt_path))
        net_opt.eval()
        return net_opt

    def summary(self, network: nn.Layer) -> str:
        """Print a table of the layers and their quantization types.

        Args:
            network: a ``paddle.nn.Layer``.

        Returns:
            The printed text: lines ``layer_name | quant_type`` for each Linear and KV cache. The
            type gives algorithms, bits and granularity of weights, activations and KV caches, such
            as ``SmoothQuant-W8-per_channel-A8-per_tensor``, ``AWQ-W4-per_group``,
            ``C8-per_channel``; ``NA`` for a float layer.

        Raises:
            ConfigTypeError: (a TypeError) ``network`` is no ``paddle.nn.Layer``.
        """
        check_layer("network", network)
        rows = [("layer_name", "quant_type")]
        caches = {id(layer): getattr(layer, "kv_cache", layer)
                  for _, layer in StackHelper().kv_caches(network)}
        inner = {id(cache) for cache in caches.values()} - set(caches)
        for name, layer in network.named_sublayers(include_self=True):
            if id(layer) in caches or (isinstance(layer, (nn.Linear, DeployableLayer))
                                       and id(layer) not in inner):
                rows.append((name, getattr(caches.get(id(layer), layer), "quant_type", "NA")))
        text = table(rows)
        sys.stdout.write(text + "\n")
        return text

    def _initialized(self):
        policies = getattr(self, "_policies", None)
        if policies is None:
            raise StateError(f"{type(self).__name__} is not initialized: its __init__ must call "
                             "PTQ.__init__")
        return policies


def _not_empty(datasets):
    """Return an iterator over ``datasets``, which must hold at least one batch."""
    expected = "an iterable of at least one batch in PTQMode.QUANTIZE"
    if datasets is None:
        raise wrong_value("datasets", None, expected)
    try:
        batches = iter(datasets)
    except TypeError:
        raise wrong_type("datasets", datasets, expected) from None
    for first in batches:
        return itertools.chain([first], batches)
    raise wrong_value("datasets", datasets, expected)


def _prefix(path):
    """Return the common prefix of the two files of a checkpoint."""
    for ending in (".safetensors", ".json"):
        if path.endswith(ending) and os.path.isfile(path):
            path = path[:-len(ending)]
    if not os.path.isfile(f"{path}.json"):
        raise FormatError("ckpt_path must be the prefix of a checkpoint that save_checkpoint() "
                          f"wrote, or empty, but there is no {path}.json")
    return path


class LayerPolicies:
    """The :class:`PTQConfig` of each layer, by its name; the arguments are those of PTQ."""

    def __init__(self, config: PTQConfig, policies: Optional["OrderedDict[str, Any]"] = None):
        if policies is not None and not isinstance(policies, OrderedDict):
            raise wrong_type("layer_policies", policies, "an OrderedDict or None")
        self.config, self.policies = config, OrderedDict(policies or {})
        for pattern, policy in self.policies.items():
            if not isinstance(pattern, str):
                raise wrong_type("layer_policies", pattern, "an OrderedDict whose keys are str")
            name = f"layer_policies[{pattern!r}]"
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError("layer_policies must have regular expressions as keys, but "
                                  f"{pattern!r} is none: {error}") from error
            if policy is not None and not isinstance(policy, PTQConfig):
                raise wrong_type(name, policy, "a PTQConfig or None")
            if policy is not None and policy.mode is not config.mode:
                raise ConfigError(f"{name}.mode must be that of config, {config.mode}, but is "
                                  f"{policy.mode}")

    def rules(self, network: nn.Layer, helper: NetworkHelper) -> QuantConfig:
        """Return the rules for the Linears and KV caches of ``network``.

        Linears outside of the decoder layers are quantized only where a pattern matches them, and
        those that choose experts only where a pattern has a part that names such layers.
        """
        caches = {id(layer) for _, layer in helper.kv_caches(network)}
        inside = caches | {id(part) for _, layer in helper.decoder_layers(network)
                           for part in layer.sublayers(include_self=True)}
        found = {name: layer for name, layer in network.named_sublayers(include_self=True)
                 if id(layer) in caches or linear_skip_reason(layer) is None}
        choosing = routers(network)
        return self.rules_of(
            list(found), [name for name, layer in found.items()
                          if id(layer) in inside and name not in choosing], choosing)

    def rules_of(self, names: Sequence[str], general: Sequence[str],
                 choosing: Collection[str] = ()) -> QuantConfig:
        """Return the rules for the layers ``names``; ``config`` is for ``general`` of them.

        Those that choose experts are ``choosing``.
        """
        matches = {name: [pattern for pattern in self.policies if re.match(pattern, name)]
                   for name in names}
        for name, patterns in matches.items():
            if len(patterns) > 1:
                raise ConfigError("layer_policies must have one pattern for a layer, but "
                                  f"{' and '.join(map(repr, patterns))} match {name!r}")
        rules = QuantConfig()
        rules.add(_exactly(general, "config"), self.config.layer_config())
        for pattern, policy in self.policies.items():
            label = f"layer_policies[{pattern!r}]"
            found = [name for name in names if pattern in matches[name]]
            if not found:
                _logger.warning("%s matches no layer that can be quantized", label)
            if not ROUTER.search(pattern):
                found = [name for name in found if name not in choosing]
            rules.add(_exactly(found, label), None if policy is None else policy.layer_config())
            if policy is not None:
                rules.exclude_substrings(policy.opname_blacklist, found, "opname_blacklist")
        rules.exclude_substrings(self.config.opname_blacklist, names, "opname_blacklist")
        return rules


def _exactly(names: Sequence[str], label: str) -> Scope:
    # By name: the patterns of a Scope are searched in all parts of the names, Golden Stick's are
    # matched from the start, and of the layers that can be quantized each may match one only.
    return Scope(names=list(names), contents=False, required=False, label=label)
