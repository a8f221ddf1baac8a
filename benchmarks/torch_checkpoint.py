"""Read the state dict of a file of ``torch.save`` without torch and without running its code."""

import pickle

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8",
             "LongStorage": "<i8", "IntStorage": "<i4", "ByteStorage": "<u1"}


def read_torch_state(path):
    """Return name -> array of a state dict.

    Reads the format that torch wrote before version 1.6: five pickles, then the storages one after
    the other. The unpickler accepts the names of a state dict only.

    Raises:
        ValueError: the file has another format.
        pickle.UnpicklingError: the file names anything else, e.g. a function to call.
    """
    with open(path, "rb") as file:
        if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
            raise ValueError(f"{path} must be of torch.save before version 1.6")
        if not _Unpickler(file).load()["little_endian"]:
            raise ValueError(f"{path} must be little-endian")
        reader = _Unpickler(file)
        tensors = reader.load()
        arrays = {}
        for key in _Unpickler(file).load():
            dtype, count = reader.storages[key]
            if int.from_bytes(file.read(8), "little") != count:
                raise ValueError(f"{path}: storage {key} must have {count} entries")
            arrays[key] = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    return {name: tensor.view(arrays) for name, tensor in tensors.items()}


class _Tensor:
    """Place of a tensor in a storage; strides are counted in entries."""

    def __init__(self, key, offset, shape, strides, *_):
        self.place = key, offset, shape, strides

    def view(self, arrays):
        key, offset, shape, strides = self.place
        values = arrays[key]
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if offset < 0 or min(strides, default=0) < 0 or last >= max(values.size, 1):
            raise ValueError(f"a tensor of shape {shape} leaves its storage")
        return np.lib.stride_tricks.as_strided(
            values[offset:], shape, [stride * values.itemsize for stride in strides])


class _OrderedDict(dict):
    """State dict whose ``_metadata``, versions of modules, is dropped."""

    def __setstate__(self, state):
        pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file)
        self.storages = {}  # key -> data type, number of entries

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return _OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _STORAGES:
            return name  # an argument of persistent_load
        raise pickle.UnpicklingError(f"the file names {module}.{name}")

    def persistent_load(self, pid):
        kind, storage, key, _, count, *_ = pid
        if kind != "storage" or storage not in _STORAGES:
            raise pickle.UnpicklingError(f"the file refers to {pid!r}")
        self.storages[key] = _STORAGES[storage], count
        return key
