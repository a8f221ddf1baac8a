"""Parts of ``benchmarks/bench_real_models.py``: reader of torch checkpoints, EfficientNet-Lite0."""

import importlib
import pickle
import struct

import numpy as np
import paddle
import pytest
from paths import ROOT

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


@pytest.fixture
def module(monkeypatch):
    """Function that imports a module of ``benchmarks``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values):
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor(key, count, offset, shape, strides, name="torch._utils\n_rebuild_tensor_v2"):
    """Instructions that rebuild a tensor, as torch writes them."""
    place = (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
             + b"J" + struct.pack("<i", count) + b"NtQ")
    return (b"c" + name.encode() + b"\n(" + place + b"J" + struct.pack("<i", offset)
            + numbers(*shape) + numbers(*strides) + b"\x89ccollections\nOrderedDict\n)RtR")


def checkpoint(path, tensors, storages):
    """Write a file in the format of torch before version 1.6, without torch."""
    items = b"".join(text(name) + each for name, each in tensors.items())
    state = b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."
    path.write_bytes(
        MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + state
        + pickle.dumps(list(storages), 2)
        + b"".join(struct.pack("<q", len(each)) + each.tobytes() for each in storages.values()))
    return path


def test_torch_checkpoint_with_strides_offsets_and_a_shared_storage(tmp_path, module):
    first, second = np.arange(24, dtype="float32"), np.array([3.5], "float32")
    path = checkpoint(tmp_path / "net.pth", {
        "whole": tensor("1", 24, 0, (2, 3, 4), (12, 4, 1)),
        "transposed": tensor("1", 24, 0, (4, 6), (1, 4)),
        "part": tensor("1", 24, 10, (3,), (2,)),
        "scalar": tensor("2", 1, 0, (), ())}, {"1": first, "2": second})
    state = module("torch_checkpoint").read_torch_state(path)
    np.testing.assert_array_equal(state["whole"], first.reshape(2, 3, 4))
    np.testing.assert_array_equal(state["transposed"], first.reshape(6, 4).T)
    np.testing.assert_array_equal(state["part"], [10, 12, 14])
    assert state["scalar"] == 3.5


@pytest.mark.parametrize("broken, error, message", [
    (tensor("1", 4, 0, (2,), (1,), "os\nsystem"), pickle.UnpicklingError, "os.system"),
    (tensor("1", 4, 3, (2,), (1,)), ValueError, "leaves its storage"),
    (tensor("1", 4, 0, (2,), (-1,)), ValueError, "leaves its storage"),
])
def test_torch_checkpoint_that_runs_code_or_reads_outside_is_refused(
        tmp_path, module, broken, error, message):
    path = checkpoint(tmp_path / "net.pth", {"weight": broken}, {"1": np.zeros(4, "float32")})
    with pytest.raises(error, match=message):
        module("torch_checkpoint").read_torch_state(path)


def test_efficientnet_lite0_has_its_published_size(module):
    model, products = module("efficientnet_lite").EfficientNetLite0(), []
    for layer in model.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(lambda layer, _, output: products.append(
                np.prod(output.shape) * layer.weight.size / output.shape[1]))
    model.eval()
    with paddle.no_grad():
        assert model(paddle.zeros([1, 3, 224, 224])).shape == [1, 1000]
    assert sum(np.prod(each.shape) for each in model.parameters()
               if not each.stop_gradient) == 4_652_008
    assert sum(products) == pytest.approx(407e6, rel=0.06)  # millions of multiply-adds


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_of_efficientnet_pad_like_same(module, kernel, stride):
    paddle.seed(0)
    layer, x = module("efficientnet_lite").convolution(3, 4, kernel, stride), paddle.rand(
        [2, 3, 16, 16])
    expected = paddle.nn.functional.conv2d(x, layer.weight, stride=stride, padding="SAME")
    np.testing.assert_allclose(layer(x).numpy(), expected.numpy(), atol=1e-5)


def test_torch_weights_reach_the_layers_of_the_same_name(module):
    models = module("efficientnet_lite")
    source, target = models.EfficientNetLite0(10), models.EfficientNetLite0(10)
    rng = np.random.default_rng(0)
    state = {}
    for name, value in source.state_dict().items():
        value.set_value(rng.uniform(0.01, 0.05, value.shape).astype("float32"))
        name = name.replace("._mean", ".running_mean").replace("._variance", ".running_var")
        state[name] = value.numpy().T if name == "_fc.weight" else value.numpy()
    models.load_torch_state(target, state)
    source.eval()
    with paddle.no_grad():
        x = paddle.rand([1, 3, 32, 32])
        np.testing.assert_array_equal(target(x).numpy(), source(x).numpy())
