"""Save and load checkpoints of models with integer or simulated quantized layers."""

import hashlib
import json
import os
from typing import Any, Mapping, Optional, Union

import paddle
from paddle import nn

from .._atomic_write import write_bytes, write_together
from .._checks import check_choice, check_layer, check_path, check_prefix, hint
from .._layer_state import read_state, state_of
from ..engine.state import check_initialized, quantized_layers
from ..errors import ConfigError, ConfigTypeError, ExportError, FormatError, ModelError
from ..graph.dataflow import NORMS
from ..nn.class_swap import replace_layers, rollback_on_error
from ..nn.deployable import check_fields, deployable_layers
from ..nn.integer_layer import IntegerLayer
from ..nn.layer_types import frozen_classes
from ..nn.weight_parts import adopt_all_roundings
from . import simulated_layers
from .formats import CHECKPOINT_FORMATS, is_folder, load_folder, save_folder
from .restricted_unpickler import load_state
from .safetensors_io import file_digest, map_file, parse_tensors, write_tensors

_OWN = "paddleq"  # the format of two files, for paddleq alone
_FORMAT, _VERSION = "paddleq checkpoint", 1
_FIELDS = ("format", "version", "libraries", "layers", "shared", "provenance", "fold_on_export",
           "tensors_sha256", "sha256")
_OPTIONAL = ("provenance", "fold_on_export")  # earlier files lack them


def save_checkpoint(model: nn.Layer, path: Any, format: str = "paddleq", *,
                    max_shard_size: Union[int, str, None] = None, config: Any = None,
                    names: Optional[Mapping[str, str]] = None) -> None:
    """Write a quantized model as ``path.safetensors`` and ``path.json``, or for servers.

    The first file contains the tensors of ``model.state_dict()``; a tensor that several names share
    is stored once. The second file is JSON for :func:`load_checkpoint`: descriptions of the integer
    layers (:class:`~paddleq.nn.IntegerLinear`, :class:`~paddleq.nn.Int8KVCache`), the specs and
    states of the fake quantizers of simulated ones, names that share a tensor, the configuration of
    the quantization, versions, and SHA-256 digests of both files. The same model gives the same
    bytes. If the process is killed, the old files stay intact.

    With another ``format`` than "paddleq", ``path`` is a folder: ``model.safetensors``, or shards
    and ``model.safetensors.index.json``, and ``config.json`` with a ``quantization_config``, which
    the servers of that format load. The integers are those of the layers and the scales are
    float32 (of 16 bits for PaddleNLP, which takes no others), so that :func:`load_checkpoint`
    restores the weights bit for bit.

    Args:
        model: a ``paddle.nn.Layer``. It is not changed.
        path: prefix of the files, or the folder; folders are created.
        format: "paddleq" (default), or a name in ``paddleq.checkpoint.CHECKPOINT_FORMATS``:
            "gptq", "awq", "compressed-tensors", "paddlenlp", "fastdeploy". These represent models
            whose quantized layers are :class:`~paddleq.nn.IntegerLinear`.
        max_shard_size: most bytes of a file, a number or a str such as "500MB". Default "5GB". A
            larger layer has a file of its own.
        config: content of config.json without the quantization, as a dict or a file. Default: that
            of the config.json that the folder has, if any.
        names: prefix of names in the model -> prefix in the files, e.g. ``{"llama.": "model."}``.
            The longest one that matches is replaced. Default: the names of the model.

    Raises:
        ConfigTypeError: ``model`` is not a ``paddle.nn.Layer``, or ``path`` not a path.
        ConfigError: an option of folders with the format "paddleq".
        ExportError: the files cannot be written, or the format cannot represent a layer; names the
            layer and the reason. Nothing is written then.
        ModelError: a checkpoint cannot describe a layer or a data type of the model.
        CalibrationError: names layers that are being calibrated, or that are empty until a
            checkpoint is loaded.

    Examples:
        >>> import os, tempfile
        >>> import paddle, paddleq
        >>> from paddleq.nn import IntegerLinear
        >>> model = paddle.nn.Sequential(IntegerLinear(8, 4, paddleq.QuantSpec()))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paddleq.save_checkpoint(model, os.path.join(folder, "model"))
        ...     sorted(os.listdir(folder))
        ['model.json', 'model.safetensors']
        >>> layer = IntegerLinear(64, 32, paddleq.QuantSpec(4, granularity=paddleq.PerGroup(32)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paddleq.save_checkpoint(paddle.nn.Sequential(layer), folder, format="gptq")
        ...     sorted(os.listdir(folder))
        ['config.json', 'model.safetensors', 'quantize_config.json']
    """
    from .. import __version__

    if check_choice("format", format, (_OWN, *CHECKPOINT_FORMATS)) != _OWN:
        return save_folder(model, path, format, max_shard_size, config, names)
    for name, value in (("max_shard_size", max_shard_size), ("config", config), ("names", names)):
        if value is not None:
            raise ConfigError(f"{name} is an option of the formats {', '.join(CHECKPOINT_FORMATS)},"
                              f" not of {_OWN!r}")
    check_layer("model", model)
    path = check_prefix("path", path)
    check_initialized(model)
    shared, state, first = {}, {}, {}
    for name, tensor in model.state_dict().items():
        if first.setdefault(id(tensor), name) == name:
            state[name] = tensor
        else:
            shared[name] = first[id(tensor)]
    content = {"format": _FORMAT, "version": _VERSION,
               "libraries": {"paddleq": __version__, "paddle": paddle.__version__},
               "layers": {name: {"kind": _kind_of(layer), "description": layer.description()}
                          for name, layer in deployable_layers(model)}, "shared": shared,
               "provenance": {name: record for name, layer in
                              model.named_sublayers(include_self=True)
                              if (record := read_state(layer).provenance) is not None},
               "fold_on_export": read_state(model).fold_on_export}
    for name, layer in quantized_layers(model):
        content["layers"][name] = {"kind": simulated_layers.KIND,
                                   "description": simulated_layers.describe(layer)}

    def write_state(beside):
        content["tensors_sha256"] = write_tensors(beside, state)
        content["sha256"] = hashlib.sha256(_text(content)).hexdigest()

    try:
        write_together({f"{path}.safetensors": write_state,
                        f"{path}.json": lambda beside: write_bytes(_text(content))(beside)})
    except OSError as error:
        raise ExportError(f"cannot write the checkpoint {path}: {error}") from error
    return None


def load_checkpoint(model: nn.Layer, path: Any, names: Optional[Mapping[str, str]] = None
                    ) -> nn.Layer:
    """Load a checkpoint of :func:`save_checkpoint` or for servers into ``model``, in place.

    Float layers are replaced by the integer layers that the file describes, then the tensors are
    loaded. Integer layers that the model already has are kept. A model with simulated layers is
    loaded into one that was quantized alike (:meth:`paddleq.PTQ.quantize`): its quantizers get the
    bits and states of the file, its quantized layers that are float in the file become float.
    Nothing is unpickled. After an error the model is unchanged.

    A folder with config.json (or quantize_config.json) is read in the format that its
    ``quantization_config`` names, whatever program wrote it. Float tensors are converted to the
    data types of the model.

    Args:
        model: a ``paddle.nn.Layer`` built as the saved model was before it was quantized, or
            quantized too if the saved model simulates quantization. If batch norms were folded,
            they must be folded in ``model`` too.
        path: prefix of the files, or a folder.
        names: as for :func:`save_checkpoint`; for folders only.

    Returns:
        The model.

    Raises:
        ConfigTypeError: ``model`` is not a ``paddle.nn.Layer``, or ``path`` not a path.
        FormatError: a file is missing, truncated, edited or of another format.
        ModelError: the checkpoint does not fit the model; names the missing and wrong entries.

    Examples:
        >>> import os, tempfile
        >>> import paddle, paddleq
        >>> from paddleq.nn import IntegerLinear
        >>> saved = paddle.nn.Sequential(IntegerLinear(8, 4, paddleq.QuantSpec()))
        >>> model = paddle.nn.Sequential(paddle.nn.Linear(8, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paddleq.save_checkpoint(saved, os.path.join(folder, "model"))
        ...     paddleq.load_checkpoint(model, os.path.join(folder, "model"))
        Sequential(
          (0): IntegerLinear(in_features=8, out_features=4, W8-per_tensor)
        )
    """
    check_layer("model", model)
    path = check_path("path", path, "a file prefix such as 'out/model'")
    if is_folder(path) and not os.path.exists(f"{path}.json"):
        return load_folder(model, path, names)
    if names is not None:
        raise ConfigError(f"names is an option of folders with a config.json, but {path} is none")
    content = _read_description(f"{path}.json")
    data = map_file(f"{path}.safetensors")
    if file_digest(data) != content["tensors_sha256"]:
        raise FormatError(f"{path}.safetensors is damaged or does not belong to {path}.json: its "
                          "SHA-256 is another one")
    arrays = parse_tensors(data, f"{path}.safetensors")
    shared = content["shared"]
    if any(other not in arrays for other in shared.values()):
        raise FormatError(f"{path}.json shares a tensor that {path}.safetensors does not have")
    arrays.update({name: arrays[other] for name, other in shared.items()})
    with rollback_on_error(model):
        simulated = _apply_structure(model, content["layers"], arrays)
        adopt_all_roundings(model, arrays)  # before the check, which sees the model's tensors
        _check_shared(model.state_dict(), shared, path)
        load_state(model, arrays, f"{path}.safetensors", hint=_hint(model, arrays))
        simulated_layers.adopt_states(model, simulated)
        for name, layer in model.named_sublayers(include_self=True):
            if name in content.get("provenance", {}):
                state_of(layer).provenance = content["provenance"][name]
        if content.get("fold_on_export"):
            state_of(model).fold_on_export = True
    return model


def _hint(model, arrays):
    folded = [name for name, layer in model.named_sublayers()
              if isinstance(layer, NORMS) and f"{name}._mean" not in arrays]
    if not folded:
        return "build the model as it was when it was saved"
    return (f"if {', '.join(folded)} were folded before the model was saved, prepare this model in "
            "the same way: quantize it with fusion, calibrate it on any batch, call freeze(), then "
            "load the checkpoint")


def _text(content):
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _read_description(path):
    data = map_file(path).read()
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no description of a checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FormatError(f"{path} is no description of a checkpoint: its format must be "
                          f"{_FORMAT!r}")
    if content.get("version") != _VERSION:
        raise FormatError(f"{path} is of version {content.get('version')!r} of the format, but "
                          f"this paddleq reads version {_VERSION}; use the paddleq that wrote it")
    fields = tuple(each for each in _FIELDS if each in content or each not in _OPTIONAL)
    if tuple(content) != fields:
        raise FormatError(f"{path} must have the fields {', '.join(_FIELDS)}, but has "
                          f"{', '.join(content)}")
    if not (isinstance(content["shared"], dict) and isinstance(content["layers"], dict)
            and all(isinstance(name, str) for name in content["shared"].values())
            and isinstance(content.get("fold_on_export", False), bool)
            and isinstance(content.get("provenance", {}), dict)
            and all(isinstance(each, dict) for each in content.get("provenance", {}).values())):
        raise FormatError(f"{path} must say of layers and of shared tensors what names mean")
    rest = {name: value for name, value in content.items() if name != "sha256"}
    # Comparing the text detects any changed byte, also between the values.
    if _text(content) != data or hashlib.sha256(_text(rest)).hexdigest() != content["sha256"]:
        raise FormatError(f"{path} was edited or is damaged: its SHA-256 is another one")
    return content


def _apply_structure(model, layers, arrays):
    """Replace layers of ``model`` by the described ones, and return the simulated ones.

    The result is name -> description.
    """
    for described in layers.values():
        check_fields("a layer", described, ("kind", "description"))
    simulated_layers.leave_float(model, {name: described["kind"] for name, described
                                         in layers.items()}, arrays)
    simulated = {}
    for name, described in layers.items():
        try:
            if described["kind"] == simulated_layers.KIND:
                simulated[name] = described["description"]
                simulated_layers.adopt_specs(model, name, simulated[name])
                continue
            cls, description = _class_of(described["kind"]), described["description"]
            cls.prepare_model(model, name)
            old = dict(model.named_sublayers(include_self=True)).get(name)
            if old is None:
                raise ModelError(f"the model has no layer {name!r}, which the checkpoint describes "
                                 f"as {described['kind']}")
            if type(old) is not cls:
                replace_layers(model, [(old, cls.in_place_of(old, description))])
            elif _check_same(name, old, description) != description:
                replace_layers(model, [(old, cls.from_description(description))])
        except (ConfigError, ConfigTypeError) as error:
            raise FormatError(f"the description of {name!r} is not one of this paddleq: "
                              f"{error}") from error
    left_over = [name for name, _ in deployable_layers(model) if name not in layers]
    if left_over:
        raise ModelError(f"the model's integer layers {', '.join(left_over)} are not in the "
                         "checkpoint")
    return simulated


def _integer_classes():
    """Return name in checkpoints -> class of integer layers."""
    return {IntegerLayer.__name__: IntegerLayer, **frozen_classes()}


def _kind_of(layer):
    """Return the name in checkpoints of an integer layer."""
    return next(cls.__name__ for cls in type(layer).__mro__ if cls in _integer_classes().values())


def _class_of(kind):
    """Return the class of integer layers of that name in checkpoints."""
    known = _integer_classes()
    if not isinstance(kind, str) or kind not in known:
        raise FormatError(f"there is no kind of layer {kind!r}{hint(kind, known)}; known: "
                          f"{', '.join(sorted(known))}")
    return known[kind]


def _check_same(name, layer, theirs):
    """Return the layer's description after a check that it fits ``theirs``."""
    own = layer.description()
    for key in own:
        if own[key] != theirs.get(key) and key not in layer.data_dependent:
            raise ModelError(f"{key} of the layer {name!r} is {own[key]!r} in the model and "
                             f"{theirs.get(key)!r} in the checkpoint")
    return own


def _check_shared(state, shared, path):
    """Raise if a tensor of the model is stored as two tensors."""
    names = {}
    for name, tensor in state.items():
        stored = shared.get(name, name)
        other = names.setdefault(id(tensor), stored)
        if other != stored:
            raise ModelError(f"{name} and {other} are one tensor in the model and two in the "
                             f"checkpoint {path}")
