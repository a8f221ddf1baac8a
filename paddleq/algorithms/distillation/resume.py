"""State of an interrupted training on disk."""

import hashlib
import json
import os
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import paddle
from paddle import nn

from ..._atomic_write import write_bytes, write_together
from ..._checks import check_path
from ..._paddle_compat import own_buffers, own_parameters
from ...checkpoint.safetensors_io import file_digest, map_file, parse_tensors, write_tensors
from ...errors import ConfigError, FormatError

_STATE, _RECORD = "training.safetensors", "training.json"


def tensors_of(model: nn.Layer) -> Dict[str, paddle.Tensor]:
    """Return all parameters and buffers with values of a model by name, each once.

    The state of the dropout of Paddle's recurrent layers has no value.
    """
    found: Dict[str, paddle.Tensor] = {}
    known = set()
    for name, layer in model.named_sublayers(include_self=True):
        for held in (own_parameters(layer), own_buffers(layer)):
            for attribute, tensor in held.items():
                if (tensor is not None and id(tensor) not in known
                        and tensor._is_initialized()):
                    known.add(id(tensor))
                    found[f"{name}.{attribute}" if name else attribute] = tensor
    return found


def copy_of_tensors(model: nn.Layer) -> Dict[str, paddle.Tensor]:
    """Return copies of all parameters and buffers of a model."""
    with paddle.no_grad():
        return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def assign_tensors(target: Dict[str, paddle.Tensor], values: Dict[str, Any]) -> None:
    """Assign arrays or tensors to the tensors of the same names, in place."""
    with paddle.no_grad():
        for name, tensor in target.items():
            value = values[name]
            if not isinstance(value, paddle.Tensor):
                value = paddle.to_tensor(np.array(value), dtype=tensor.dtype)
            paddle.assign(value.reshape(tensor.shape), tensor)


def accumulators_of(optimizer: paddle.optimizer.Optimizer) -> List[paddle.Tensor]:
    """Return the tensors that an optimizer keeps, in the order in which it created them."""
    return [value for value in optimizer.state_dict().values()
            if isinstance(value, paddle.Tensor)]


def digest_of(tensors: Dict[str, Any]) -> str:
    """Return the SHA-256 of tensors or arrays, their names and their types."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(
            tensor.numpy() if isinstance(tensor, paddle.Tensor) else tensor)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class TrainingCheckpoint:
    """Folder with the last state of one training.

    Args:
        folder: it is created.
        run: plain values that determine the result of the training.

    Raises:
        ConfigError: the folder belongs to another training; names the first difference.
        FormatError: its files are damaged.
    """

    def __init__(self, folder: Any, run: Dict[str, Any]) -> None:
        self.folder = check_path("checkpoint_dir", folder, "a folder or None")
        self.run = json.loads(json.dumps(run))
        self.record: Optional[Dict[str, Any]] = None
        self._arrays: Dict[str, np.ndarray] = {}
        path = os.path.join(self.folder, _RECORD)
        if os.path.exists(path):
            self.record = self._read(path)

    def save(self, record: Dict[str, Any], **groups: Dict[str, paddle.Tensor]) -> None:
        """Replace the state by ``record``, plain values, and groups of named tensors."""
        tensors = {f"{group}/{name}": tensor for group, members in groups.items()
                   for name, tensor in members.items()}
        content = {"run": self.run, **record}

        def write_state(path):
            content["tensors_sha256"] = write_tensors(path, tensors)

        try:
            write_together({
                os.path.join(self.folder, _STATE): write_state,
                os.path.join(self.folder, _RECORD):
                    lambda path: write_bytes(json.dumps(content).encode())(path)})
        except OSError as error:
            raise FormatError(f"cannot write checkpoint_dir {self.folder}: {error}") from error

    def group(self, name: str) -> Dict[str, np.ndarray]:
        """Return the arrays of a group of the stored state by name."""
        prefix = f"{name}/"
        return {key[len(prefix):]: array for key, array in self._arrays.items()
                if key.startswith(prefix)}

    def _read(self, path):
        try:
            with open(path, "rb") as file:
                record = json.loads(file.read().decode())
            run = record["run"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path} is no record of a training: {error!r}") from error
        for key, value in self.run.items():
            if run.get(key) != value:
                raise ConfigError(
                    f"checkpoint_dir {self.folder} belongs to a training with another {key}: "
                    f"{_difference(run.get(key), value)}; use another folder or remove this one")
        state = os.path.join(self.folder, _STATE)
        data = map_file(state)
        if file_digest(data) != record.get("tensors_sha256"):
            raise FormatError(f"{state} is damaged or does not belong to {path}: its SHA-256 is "
                              "another one")
        self._arrays = parse_tensors(data, state)
        return record


def _difference(before: Any, now: Any) -> str:
    def flat(value: Any, at: str = "") -> Dict[str, Tuple[Any]]:
        if isinstance(value, dict):
            return {name: found for key, inner in value.items()
                    for name, found in flat(inner, f"{at}.{key}" if at else key).items()}
        return {at: (value,)}

    old, new = flat(before), flat(now)
    name = next(name for name in [*new, *old] if new.get(name) != old.get(name))
    shown = [each[name][0] if name in each else "absent" for each in (old, new)]
    return f"{name} was {shown[0]!r} and is {shown[1]!r} now" if name else (
        f"it was {shown[0]!r} and is {shown[1]!r} now")
