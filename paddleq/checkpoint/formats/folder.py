"""Folders of checkpoints that servers load: config.json and safetensors files, in shards."""

import hashlib
import json
import os
import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
import paddle
from paddle import nn

from ..._atomic_write import write_bytes, write_together
from ..._checks import check_int, check_layer, check_path, wrong_type, wrong_value
from ..._paddle_compat import dtype_name
from ...engine.state import check_initialized, quantized_layers
from ...errors import ConfigTypeError, ExportError, FormatError, ModelError
from ...nn.class_swap import replace_layers, rollback_on_error
from ...nn.deployable import deployable_layers
from ...nn.integer_linear import IntegerLinear, linear_skip_reason
from ..restricted_unpickler import listed
from ..safetensors_io import map_file, parse_file, stored_array, write_tensors
from .base import CHECKPOINT_FORMATS, CheckpointFormat
from .linear_weight import integer_linear, refused, weight_of

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_OWN, _QUANTIZATION = "paddleq", "quantization_config"  # keys in config.json
_DIGEST = "checkpoint"  # key of the digest in config.json and in the metadata of the files
_UNITS = {"KB": 10 ** 3, "MB": 10 ** 6, "GB": 10 ** 9}
_COMPUTED = ".rotary_emb.inv_freq"  # buffers that old files have and models compute

Unit = Callable[[], Dict[str, Any]]


def save_folder(model: nn.Layer, folder: Any, format: str,
                max_shard_size: Union[int, str, None] = None, config: Any = None,
                names: Optional[Mapping[str, str]] = None) -> None:
    """Write a checkpoint for servers; see :func:`paddleq.save_checkpoint`."""
    check_layer("model", model)
    folder = check_path("path", folder, "a folder such as 'out/model'")
    writer = CHECKPOINT_FORMATS[CHECKPOINT_FORMATS.check(format, "format")]()
    limit, rename = _bytes_of("5GB" if max_shard_size is None else max_shard_size), _Names(names)
    settings = _model_config(config, folder)
    check_initialized(model)
    layers, schemes = _integer_linears(model), {}
    for name, layer in layers.items():
        weight = weight_of(name, layer)
        writer.check(name, weight)
        schemes[rename(name)] = weight.scheme
    if not schemes:
        raise ModelError("the model has no integer Linear layer; quantize it, and call freeze()")
    settings[_QUANTIZATION] = writer.config(schemes, [
        rename(name) for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)])
    shards, digest = _shards(_units(model, layers, writer, settings[_QUANTIZATION], rename), limit)
    settings[_OWN] = {_DIGEST: digest}
    _write(folder, shards, settings, writer.beside)


class _Names:
    """Names in files of the names in a model: the longest prefix that matches is replaced."""

    def __init__(self, names):
        names = {} if names is None else names
        if not isinstance(names, Mapping) or not all(
                isinstance(each, str) for pair in names.items() for each in pair):
            raise wrong_type("names", names, "a dict from prefix in the model to prefix in files")
        self.prefixes = sorted(names.items(), key=lambda pair: -len(pair[0]))

    def __call__(self, name):
        for prefix, other in self.prefixes:
            if name.startswith(prefix):
                return other + name[len(prefix):]
        return name


def _bytes_of(size):
    if isinstance(size, int) and not isinstance(size, bool):
        return check_int("max_shard_size", size, 1)
    match = re.match(r"(\d+(?:\.\d+)?) ?([KMG]B)$", size) if isinstance(size, str) else None
    if match is None:
        raise wrong_value("max_shard_size", size, "a number of bytes, or a str such as '5GB'")
    return check_int("max_shard_size", int(float(match[1]) * _UNITS[match[2]]), 1)


def _model_config(config, folder):
    """Return the content of config.json without the quantization: given, a file's or empty."""
    if isinstance(config, Mapping):
        content = dict(config)
    elif config is not None:
        content = _read_json(check_path("config", config, "a dict, or a file config.json"))
    else:
        path = os.path.join(folder, CONFIG)
        content = _read_json(path) if os.path.exists(path) else {}
    try:
        return json.loads(json.dumps(content))
    except (TypeError, ValueError) as error:
        raise ConfigTypeError(f"config must hold values of JSON: {error}") from error


def _integer_linears(model):
    """Return name -> IntegerLinear; raise if the model has layers that no format represents."""
    simulated = [name for name, _ in quantized_layers(model)]
    if simulated:
        raise ModelError(f"{listed(simulated)} simulated; call freeze() before saving")
    layers = {}
    for name, layer in deployable_layers(model):
        if not isinstance(layer, IntegerLinear):
            raise refused(name, f"it is a {type(layer).__name__} ({layer.quant_type}); the formats "
                          "of servers have quantized Linear layers only (IntegerLinear)")
        layers[name] = layer
    return layers


def _units(model, layers, writer: CheckpointFormat, config, rename) -> List[Unit]:
    """Return functions that return the tensors of one layer, or one float tensor, by name."""
    def encoded(name, layer):
        return lambda: {_join(rename(name), suffix): array for suffix, array
                        in writer.encode(weight_of(name, layer), config).items()}

    def kept(key, tensor):
        return lambda: {rename(key): tensor.t() if key in transposed else tensor}

    transposed = _float_linear_weights(model) if writer.transposed else set()
    owned = tuple(_join(name, "") for name in layers)
    units, seen = [encoded(name, layer) for name, layer in layers.items()], set()
    for key, tensor in model.state_dict().items():
        if (not key.startswith(owned) or key.endswith("bias")) and id(tensor) not in seen:
            seen.add(id(tensor))  # a tensor that several names share is stored once
            units.append(kept(key, tensor))
    return units


def _float_linear_weights(model):
    return {_join(name, "weight") for name, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, nn.Linear)}


def _join(name, suffix):
    return f"{name}.{suffix}" if name else suffix


def _shards(units, limit) -> Tuple[List[Tuple[List[Unit], List[str], int]], str]:
    """Return (units, names, bytes) of each file, and a digest of all tensors."""
    shards: List[Tuple[List[Unit], List[str], int]] = []
    digest = hashlib.sha256()
    for unit in units:
        tensors, size = unit(), 0
        for name, tensor in sorted(tensors.items()):
            array = stored_array(name, tensor)
            size += array.nbytes
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
        if not shards or shards[-1][2] + size > limit:
            shards.append(([], [], 0))
        held, names, total = shards[-1]
        shards[-1] = (held + [unit], names + list(tensors), total + size)
    return shards, digest.hexdigest()


def _write(folder, shards, settings, beside):
    count = len(shards)
    files = [SINGLE] if count == 1 else [
        f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    others = [each for each in (os.listdir(folder) if os.path.isdir(folder) else [])
              if each.endswith((".safetensors", INDEX)) and each not in (*files, INDEX)
              or each == INDEX and count == 1]
    if others:
        raise ExportError(f"{folder} has files of another checkpoint, which servers would load "
                          f"too: {', '.join(sorted(others))}; remove them or choose another folder")
    metadata = {"format": "pt", _DIGEST: settings[_OWN][_DIGEST]}
    writers = {}
    for file, (units, _, _) in zip(files, shards):
        writers[file] = _shard_writer(units, metadata)
    if count > 1:
        weight_map = {name: file for file, (_, names, _) in zip(files, shards) for name in names}
        writers[INDEX] = write_bytes(_text(
            {"metadata": {"total_size": sum(size for _, _, size in shards)},
             "weight_map": weight_map}))
    if beside is not None:
        writers[beside] = write_bytes(_text(settings[_QUANTIZATION]))
    writers[CONFIG] = write_bytes(_text(settings))
    try:
        write_together({os.path.join(folder, file): write for file, write in writers.items()})
    except OSError as error:
        raise ExportError(f"cannot write the checkpoint {folder}: {error}") from error


def _shard_writer(units, metadata):
    def write(path):
        write_tensors(path, {name: tensor for unit in units for name, tensor in unit().items()},
                      metadata)

    return write


def _text(content):
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def is_folder(path: str) -> bool:
    """Return True if ``path`` is a folder with the configuration of a model."""
    return os.path.isdir(path) and any(
        os.path.exists(os.path.join(path, each)) for each in (CONFIG, *_beside()))


def _beside():
    return [cls.beside for cls in CHECKPOINT_FORMATS.values() if cls.beside is not None]


def load_folder(model: nn.Layer, folder: str, names: Optional[Mapping[str, str]] = None
                ) -> nn.Layer:
    """Load a checkpoint for servers into ``model``; see :func:`paddleq.load_checkpoint`."""
    rename = _Names(names)
    settings, config, reader = _read_settings(folder)
    own = settings.get(_OWN)
    arrays = _read_arrays(folder, own.get(_DIGEST) if isinstance(own, dict) else None)
    simulated = [name for name, _ in quantized_layers(model)]
    if simulated:
        raise ModelError(f"{listed(simulated)} simulated in the model; load the checkpoint into "
                         "a float model")
    by_layer: Dict[str, Dict[str, Any]] = {}
    for key, array in arrays.items():
        name, _, suffix = key.rpartition(".")
        by_layer.setdefault(name, {})[suffix] = array
    used = set()
    with rollback_on_error(model):
        replacements = []
        for name, layer in model.named_sublayers(include_self=True):
            tensors = by_layer.get(rename(name), {})
            if not isinstance(layer, (nn.Linear, IntegerLinear)) or reader.marker not in tensors:
                continue
            if isinstance(layer, nn.Linear) and linear_skip_reason(layer) is not None:
                raise ModelError(f"the layer {name!r} cannot become an IntegerLinear: "
                                 f"{linear_skip_reason(layer)}")
            replacements.append((layer, _decoded(name, layer, rename(name), tensors, config,
                                                 reader)))
            used.update(_join(rename(name), suffix) for suffix in tensors
                        if suffix != "bias" or layer.bias is None)
        replace_layers(model, replacements)
        _load_rest(model, arrays, used, rename, reader.transposed, folder)
    return model


def _decoded(name, layer, file_name, tensors, config, reader):
    """Return the IntegerLinear of a layer of the model."""
    features = layer.in_features if isinstance(layer, IntegerLinear) else layer.weight.shape[0]
    columns = layer.out_features if isinstance(layer, IntegerLinear) else layer.weight.shape[1]
    tensors = {suffix: _widened(array) for suffix, array in tensors.items()}
    weight = reader.decode(file_name, tensors, config, features)
    if weight.integers.shape[1] != columns:
        raise ModelError(f"the layer {name!r} has {columns} output features in the model and "
                         f"{weight.integers.shape[1]} in the checkpoint")
    # Some programs store a bias of zeros for layers without one.
    if layer.bias is None and np.any(tensors.get("bias", 0)):
        raise ModelError(f"the layer {name!r} has a bias in the checkpoint, but none in the model")
    new = integer_linear(weight, layer.bias)
    new.training = layer.training
    return new


def _load_rest(model, arrays, used, rename, transposed, folder):
    """Load the tensors that no integer layer holds."""
    owned = tuple(_join(name, "") for name, layer in deployable_layers(model))
    turned = _float_linear_weights(model) if transposed else set()
    values, missing, wrong, loaded = [], [], [], set()
    state = {key: tensor for key, tensor in model.state_dict().items()
             if not key.startswith(owned) or key.endswith("bias")}
    for key, tensor in state.items():
        name = rename(key)
        if name not in arrays:
            missing.append(key)
            continue
        used.add(name)
        loaded.add(id(tensor))
        array = _widened(arrays[name]) if dtype_name(tensor.dtype) != "bfloat16" else arrays[name]
        array = array.T if key in turned else array
        if list(array.shape) != list(tensor.shape):
            wrong.append(key)
        values.append((tensor, array))
    missing = [key for key in missing if id(state[key]) not in loaded]
    left = [name for name in arrays if name not in used and not name.endswith(_COMPUTED)]
    problems = [f"{listed(keys)} {problem}" for keys, problem in (
        (missing, "missing in it"), (left, "left over"), (wrong, "of another shape")) if keys]
    if problems:
        raise ModelError(
            f"the checkpoint {folder} is not of this network: {'; '.join(problems)}; if only "
            "prefixes of names differ, map those of the model to those of the files by names")
    with paddle.no_grad():
        for tensor, array in values:
            tensor.set_value(_as_tensor(array, dtype_name(tensor.dtype)))


def _widened(array):
    """Return an array of bfloat16, which is one of uint16 with the same bits, as float32."""
    if array.dtype == np.uint16:
        return (array.astype("uint32") << np.uint32(16)).view("float32")
    return array


def _as_tensor(array, dtype):
    if dtype == "bfloat16" and array.dtype != np.uint16:
        return paddle.to_tensor(array.astype("float32")).astype("bfloat16")
    return np.ascontiguousarray(array) if dtype == "bfloat16" else np.ascontiguousarray(
        array, dtype=dtype)


def _read_settings(folder):
    """Return the content of config.json, the quantization_config and the format's object."""
    path = os.path.join(folder, CONFIG)
    settings = _read_json(path) if os.path.exists(path) else {}
    config = settings.get(_QUANTIZATION)
    for beside in _beside():
        if config is None and os.path.exists(os.path.join(folder, beside)):
            path = os.path.join(folder, beside)
            config = _read_json(path)
    if not isinstance(config, dict):
        raise FormatError(f"{path} has no {_QUANTIZATION}: the checkpoint is not quantized")
    for cls in CHECKPOINT_FORMATS.values():
        if cls.recognizes(config):
            return settings, config, cls()
    raise FormatError(f"{path} is of the quant_method {config.get('quant_method')!r}; known "
                      f"formats: {', '.join(CHECKPOINT_FORMATS)}")


def _read_json(path):
    try:
        content = json.loads(map_file(path).read().decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _read_arrays(folder, digest):
    """Return the arrays of all files of a checkpoint by name, as views of the mapped files."""
    weight_map = None
    if os.path.exists(os.path.join(folder, INDEX)):
        weight_map = _read_json(os.path.join(folder, INDEX)).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
                isinstance(file, str) and os.path.basename(file) == file
                for file in weight_map.values()):
            raise FormatError(f"{os.path.join(folder, INDEX)} must map names of tensors to files "
                              "beside it")
        files = sorted(set(weight_map.values()))
    else:
        files = sorted(each for each in os.listdir(folder) if each.endswith(".safetensors"))
        files = [SINGLE] if SINGLE in files else files
        if len(files) != 1:
            raise FormatError(f"{folder} must have {SINGLE}, or {INDEX} and its files; found "
                              f"{', '.join(files) or 'no safetensors file'}")
    arrays: Dict[str, np.ndarray] = {}
    for file in files:
        path = os.path.join(folder, file)
        found, metadata = parse_file(map_file(path), path)
        if digest is not None and metadata.get(_DIGEST) != digest:
            raise FormatError(f"{path} does not belong to {os.path.join(folder, CONFIG)}: another "
                              "checkpoint was written into the folder")
        expected = found if weight_map is None else {
            name for name, each in weight_map.items() if each == file}
        if set(expected) != set(found):
            raise FormatError(f"{path} does not have the tensors that {INDEX} lists for it")
        arrays.update(found)
    return arrays
