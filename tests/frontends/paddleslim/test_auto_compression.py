"""``AutoCompression(...).compress()``, as in scripts of PaddleSlim."""

import os

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn
from paddle.static import InputSpec
from runtimes import paddle_inference

import paddleq
from paddleq.errors import ConfigError, ConfigTypeError
from paddleq.paddleslim import AutoCompression
from paddleq.paddleslim.quant import quant_recon_static

X = np.random.RandomState(1).uniform(-1, 1, [8, 3, 8, 8]).astype("float32")
DATA = [X, X * 0.5]
TRAINING = {"Distillation": {"loss": "l2"}, "QuantAware": {"weight_bits": 4},
            "TrainConfig": {"epochs": 3, "learning_rate": 1e-2}}


@pytest.fixture
def folder(tmp_path):
    """Folder of a saved float model."""
    paddle.seed(2)
    net = nn.Sequential(nn.Conv2D(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    net.eval()
    paddle.jit.save(net, str(tmp_path / "float" / "net"), [InputSpec([None, 3, 8, 8], "float32")])
    return tmp_path


def written(folder):
    (found,) = paddle_inference(str(folder / "out" / "model"), [X])
    return found


def compression(folder, config, **arguments):
    return AutoCompression(str(folder / "float"), DATA, save_dir=str(folder / "out"),
                           config=config, **arguments)


@pytest.mark.parametrize("as_file", [False, True])
def test_quantization_aware_distillation_is_that_of_distill(folder, as_file):
    config = TRAINING
    if as_file:
        config = str(folder / "act.yaml")
        (folder / "act.yaml").write_text(yaml.safe_dump(TRAINING))
    result = compression(folder, config).compress()
    reference = paddleq.distill(
        str(folder / "float" / "net"), DATA,
        {"weight_bits": 4, "activation_quantize_type": "moving_average_abs_max"}, "l2", epochs=3,
        learning_rate=1e-2, optimizer_builder="SGD")
    with paddle.no_grad():
        wanted = reference.model(paddle.to_tensor(X)).numpy()
        np.testing.assert_array_equal(result.model(paddle.to_tensor(X)).numpy(), wanted)
    assert abs(written(folder) - wanted).max() <= 1e-6 * abs(wanted).max()


def test_eval_callback_takes_the_model(folder):
    seen = []
    compression(folder, TRAINING, eval_callback=lambda model: seen.append(model) or 1.0).compress()
    assert seen and all(isinstance(each, paddleq.SavedModel) for each in seen)


@pytest.mark.parametrize("section, options", [
    ({"algo": "abs_max", "batch_nums": 1, "batch_size": 8, "onnx_format": True},
     {"algo": "abs_max", "batch_nums": 1}),
    ({"quantize_op_types": ["conv2d"], "weight_bits": 7},
     {"quantizable_op_type": ["conv2d"], "weight_bits": 7}),
    ({"onnx_format": False, "bias_correction": True, "skip_tensor_list": []},
     {"onnx_format": False, "bias_correction": True})])
def test_post_training_is_that_of_quant_post_static(folder, section, options):
    names = compression(folder, {"QuantPost": section}).compress()
    wanted = paddleq.quant_post_static(
        str(folder / "float"), str(folder / "reference"), DATA, hist_percent=0.999, **options)
    assert names == wanted
    for ending in (".pdmodel", ".pdiparams"):
        assert (folder / "out" / f"model{ending}").read_bytes() == (
            folder / "reference" / f"model{ending}").read_bytes()


def test_post_training_with_recon_level_is_that_of_quant_recon_static(folder):
    compression(folder, {"QuantPost": {"recon_level": "layer-wise", "epochs": 1}}).compress()
    quant_recon_static(str(folder / "float"), str(folder / "reference"), DATA,
                       recon_level="layer-wise", epochs=1, hist_percent=0.999)
    assert (folder / "out" / "model.pdiparams").read_bytes() == (
        folder / "reference" / "model.pdiparams").read_bytes()


@pytest.mark.parametrize("config, arguments, message", [
    (None, {}, "paddleq does not choose a strategy"),
    ({"ChannelPrune": {}, "Distillation": {}}, {}, "paddleq does not prune"),
    ({"QuantPost": {}, "HyperParameterOptimization": {}}, {}, "compare the observers"),
    ({"QuantPost": {}, "QuantAware": {}}, {}, "remove QuantAware"),
    ({"QuantPost": {"algorithm": "KL"}}, {}, "does not know 'algorithm'.*'algo'"),
    ({"QuantAware": {"weight_bit": 8}}, {}, "does not know 'weight_bit'.*'weight_bits'"),
    (TRAINING, {"input_shapes": [1, 3, 8, 8]}, "input_shapes must be None"),
    (TRAINING, {"target_speedup": 2.0}, "target_speedup must be None"),
    (TRAINING, {"eval_callback": lambda exe, program, feeds, fetches: 0.0},
     "takes exe, program, feeds, fetches"),
    ("missing.yaml", {}, "cannot read missing.yaml"),
])
def test_errors_are_raised_before_any_work(folder, config, arguments, message):
    with pytest.raises(ConfigError, match=message):
        compression(folder, config, **arguments)
    assert not os.path.exists(folder / "out")


@pytest.mark.parametrize("name, value", [("eval_callback", max), ("eval_dataloader", DATA)])
def test_evaluations_without_training_are_reported(folder, name, value, caplog):
    """``max`` is a function without a signature."""
    compression(folder, {"QuantPost": {}}, **{name: value})
    assert f"{name} has no effect" in caplog.text


def test_wrong_types(folder):
    with pytest.raises(ConfigTypeError, match="eval_callback"):
        compression(folder, TRAINING, eval_callback=3)
    with pytest.raises(ConfigTypeError, match="model_dir"):
        AutoCompression(None, DATA, config=TRAINING)
    with pytest.raises(ConfigTypeError, match="save_dir"):
        AutoCompression(str(folder / "float"), DATA, save_dir=3, config=TRAINING)
