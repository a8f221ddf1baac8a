"""State files: malicious and damaged files, memory use while loading."""

import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from paths import HELPERS

from paddleq.checkpoint import load_state, read_state
from paddleq.errors import FormatError, ModelError


class Holder(nn.Layer):
    """Parameters and buffers of many shapes and dtypes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.bn = nn.BatchNorm1D(4)
        for name, value in {
            "count": paddle.full([1], 7, dtype="int64"),
            "scalar": paddle.full([], 2.5),
            "flag": paddle.to_tensor([True, False]),
            "half": paddle.rand([2, 3]).astype("float16"),
            "brain": paddle.rand([2, 3]).astype("bfloat16"),
            "double": paddle.rand([300]).astype("float64"),
            "bytes": paddle.arange(5).astype("uint8"),
            "empty": paddle.zeros([0, 3]),
        }.items():
            self.register_buffer(f"of_{name}", value)


def bits(tensor):
    return (tensor.view("int16") if tensor.dtype == paddle.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_paddle_checkpoints(tmp_path, protocol):
    net, path = Holder(), str(tmp_path / "net.pdparams")
    paddle.save(net.state_dict(), path, protocol=protocol)
    state = read_state(path)
    expected = paddle.load(path, return_numpy=True)
    assert sorted(state) == sorted(net.state_dict())
    for name, value in state.items():
        assert np.array_equal(value, expected[name]) and value.dtype == expected[name].dtype
    other = Holder()
    load_state(other, state, path)
    for name, value in other.state_dict().items():
        assert np.array_equal(bits(value), bits(net.state_dict()[name])), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_arrays_in_any_memory_layout(tmp_path, protocol):
    arrays = {"c": np.arange(6.0).reshape(2, 3), "big endian": np.arange(3, dtype=">i4"),
              "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
              "strided": np.arange(12)[::2]}
    path = tmp_path / "arrays.pdparams"
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = read_state(path)
    for name, value in arrays.items():
        assert np.array_equal(found[name], value), name


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickled_code_is_not_executed(tmp_path, protocol):
    trap = str(tmp_path / "trap")
    path = tmp_path / "bomb.pdparams"
    path.write_bytes(pickle.dumps({"w": Bomb(trap)}, protocol=protocol))
    with pytest.raises(FormatError, match="no checkpoint of arrays only"):
        read_state(path)
    assert not os.path.exists(trap)


@pytest.mark.parametrize("value, why", [
    ({"w": np.array([object()])}, "no checkpoint of arrays only"),
    ({"w": np.zeros(2, [("a", "f4")])}, "no checkpoint of arrays only"),
    ({"w": np.array(["text"])}, "no checkpoint of arrays only"),
    ({"epoch": 3}, "its entry 'epoch' is none"),
    ({"model": {"w": np.zeros(2)}}, "its entry 'model' is none"),
    ([np.zeros(2)], "no checkpoint of arrays only"),
    (("w",), "must hold a state_dict, but holds a tuple"),
])
def test_files_without_a_state_dict_are_rejected(tmp_path, value, why):
    path = tmp_path / "other.pdparams"
    path.write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(FormatError, match=why):
        read_state(path)


@given(kind=st.sampled_from(["cut", "flip", "noise"]), where=st.floats(0, 1),
       noise=st.binary(min_size=8, max_size=8))
def test_damaged_files_raise_format_errors_or_load(tmp_path_factory, kind, where, noise):
    path = str(tmp_path_factory.mktemp("damaged") / "net.pdparams")
    paddle.save(nn.Linear(2, 2).state_dict(), path)
    with open(path, "rb") as file:
        content = bytearray(file.read())
    at = int(where * (len(content) - 1))
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] = noise[0]
    else:
        content[at:at + 8] = noise
    with open(path, "wb") as file:
        file.write(content)
    try:
        state = read_state(path)
    except FormatError:
        return
    assert all(isinstance(value, np.ndarray) for value in state.values())


def test_missing_file(tmp_path):
    with pytest.raises(FormatError, match="cannot read"):
        read_state(tmp_path / "missing.pdparams")


@pytest.mark.parametrize("change, why", [
    (lambda state: state.pop("fc.weight"), "fc.weight is missing in it"),
    (lambda state: state.update(more=np.zeros(1), most=np.zeros(1)), "more, most are left over"),
    (lambda state: state.update({"fc.weight": np.zeros([3, 5], "float32")}),
     "fc.weight is of another shape or dtype"),
    (lambda state: state.update({"fc.weight": np.zeros([3, 4], "float64")}),
     "fc.weight is of another shape or dtype"),
])
def test_checkpoint_of_another_network_does_not_change_the_model(tmp_path, change, why):
    net, path = Holder(), str(tmp_path / "net.pdparams")
    paddle.save(net.state_dict(), path)
    state = read_state(path)
    change(state)
    other = Holder()
    before = {name: bits(value).copy() for name, value in other.state_dict().items()}
    with pytest.raises(ModelError, match=why):
        load_state(other, state, path)
    for name, value in other.state_dict().items():
        assert np.array_equal(bits(value), before[name]), name


@pytest.mark.parametrize("ending", [".safetensors", ".pdparams"])
def test_loading_reads_the_file_into_memory_once(tmp_path, ending):
    command = [sys.executable, str(HELPERS / "load_memory.py"), str(tmp_path / "model"), ending]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout
               for _ in range(2)]
    assert float(outputs[1]) <= 1.3


def test_pickle_cannot_set_attributes_of_the_reader(tmp_path):
    # GLOBAL numpy dtype, then BUILD on the callable.
    content = b"\x80\x04}\x8c\x01wcnumpy\ndtype\n}\x8c\x0c__setstate__K\x01sbs."
    path = tmp_path / "build.pdparams"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="sets attributes"):
        read_state(path)
    plain = {"w": np.arange(3.0)}
    path.write_bytes(pickle.dumps(plain, protocol=4))
    assert np.array_equal(read_state(path)["w"], plain["w"])


def test_large_memo_index_does_not_allocate(tmp_path):
    path = tmp_path / "memo.pdparams"
    path.write_bytes(b"\x80\x04}r\xff\xff\xff\x7f.")
    tracemalloc.start()
    try:
        assert read_state(path) == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
