"""Layouts of the formats of servers against an independent reading of their bits."""

import inspect
import json

import numpy as np
import paddle
import pytest
from checkpoint_layouts import WEIGHTS as LAYOUTS
from checkpoint_layouts import read_folder
from deployed import ACTIVATIONS, WEIGHTS, deploy
from paddle import nn

import paddleq
from paddleq import PerChannel, PerGroup, QuantSpec
from paddleq.checkpoint import CHECKPOINT_FORMATS
from paddleq.checkpoint.formats.packing import pack_words, unpack_words
from paddleq.errors import ExportError, FormatError
from paddleq.functional import pack_int4

ROWS, COLUMNS = 128, 96
SPECS = {**WEIGHTS, "W4 g64": QuantSpec(4, granularity=PerGroup(64)),
         "fp8": QuantSpec(dtype="float8_e4m3fn", granularity=PerChannel(1))}
EXPRESSED = {
    "gptq": ["W8 tensor", "W8 channel", "W8 channel affine", "W8 g32", "W4 tensor", "W4 channel",
             "W4 g32", "W4 g32 affine", "W3 g32", "W2 g32 affine"],
    "compressed-tensors": ["W8 tensor", "W8 channel", "W8 channel affine", "W8 g32", "W4 tensor",
                           "W4 channel", "W4 g32", "W4 g32 affine", "W2 g32 affine"],
    "awq": ["W4 tensor", "W4 channel", "W4 g32", "W4 g32 affine"],
    "paddlenlp": ["W8 tensor", "W8 channel", "W4 tensor", "W4 channel", "W4 g64"],
    "fastdeploy": ["W8 tensor", "W8 channel", "W4 tensor", "W4 channel"],
}
CASES = [(format, weight) for format, weights in EXPRESSED.items() for weight in weights]


def linear(weight, bias=True, **options):
    """A model of one IntegerLinear named "fc" with scales of 16 bits."""
    model = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=None if bias else False)))
    deploy(model, SPECS.get(weight, weight), **options)
    model.fc.weight_scale.set_value(
        model.fc.weight_scale.astype("float16").astype("float32"))
    return model


def natural_weight(layer):
    """Float64 weight of a layer in the order of its input features."""
    weight = layer.dequantized_weight().numpy().astype("float64")
    if layer.permuted:
        weight = weight[np.argsort(layer.permutation.numpy())]
    return weight


def test_every_format_has_cases():
    assert set(EXPRESSED) == set(CHECKPOINT_FORMATS) == set(LAYOUTS)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 100])
def test_packing_restores_the_integers(bits, count):
    values = np.random.RandomState(bits).randint(0, 2 ** bits, [2, 3, count])
    words = pack_words(values, bits)
    assert words.dtype == np.int32 and words.shape == (2, 3, -(-count * bits // 32))
    assert np.array_equal(unpack_words(words, bits, count), values)


@pytest.mark.parametrize("format, weight", CASES)
def test_files_dequantize_to_the_weights_of_the_layer(format, weight, tmp_path):
    model = linear(weight)
    paddleq.save_checkpoint(model, tmp_path, format=format)
    config, arrays = read_folder(tmp_path)
    found = LAYOUTS[format](arrays, "fc", config)
    assert np.allclose(found, natural_weight(model.fc), rtol=1e-6, atol=0)
    assert np.array_equal(arrays["fc.bias"], model.fc.bias.numpy())


@pytest.mark.parametrize("format, weight", CASES)
def test_layers_are_restored_bit_for_bit(format, weight, tmp_path):
    model = linear(weight)
    paddleq.save_checkpoint(model, tmp_path, format=format)
    other = paddleq.load_checkpoint(nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS))), tmp_path)
    x = paddle.rand([5, ROWS]) - 0.5
    assert np.array_equal(other(x).numpy(), model(x).numpy())
    if not weight.endswith("tensor"):  # one scale becomes one for each channel
        state, expected = other.state_dict(), model.state_dict()
        assert list(state) == list(expected)
        for name, value in expected.items():
            assert state[name].dtype == value.dtype, name
            assert np.array_equal(state[name].numpy(), value.numpy()), name


@pytest.mark.parametrize("format", EXPRESSED)
def test_order_of_features_within_channels_is_undone(format, tmp_path):
    model = linear("W4 channel", permuted=True)
    paddleq.save_checkpoint(model, tmp_path, format=format)
    other = paddleq.load_checkpoint(nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS))), tmp_path)
    assert not other.fc.permuted
    assert np.array_equal(natural_weight(other.fc), natural_weight(model.fc))


def test_gptq_stores_activation_order(tmp_path):
    model = linear("W4 g32", permuted=True)
    paddleq.save_checkpoint(model, tmp_path, format="gptq")
    config, arrays = read_folder(tmp_path)
    assert config["quantization_config"]["desc_act"] is True
    assert np.allclose(LAYOUTS["gptq"](arrays, "fc", config), natural_weight(model.fc), rtol=1e-6)
    other = paddleq.load_checkpoint(nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS))), tmp_path)
    assert other.fc.permuted
    assert np.array_equal(natural_weight(other.fc), natural_weight(model.fc))


@pytest.mark.parametrize("format", ["gptq", "awq", "compressed-tensors"])
def test_groups_that_move_as_a_whole_need_no_activation_order(format, tmp_path):
    model = linear("W4 g32", permuted=True)
    order = np.concatenate([np.arange(127, 95, -1), np.arange(0, 96)])
    model.fc.permutation.set_value(order.astype("int64"))
    paddleq.save_checkpoint(model, tmp_path, format=format)
    other = paddleq.load_checkpoint(nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS))), tmp_path)
    assert not other.fc.permuted
    assert np.array_equal(natural_weight(other.fc), natural_weight(model.fc))


@pytest.mark.parametrize("activation", ["A8 tensor", "A8 tensor affine", "A8 token"])
def test_compressed_tensors_restores_quantized_inputs(activation, tmp_path):
    x = paddle.rand([7, ROWS]) - 0.3
    model = linear("W8 channel", activation=ACTIVATIONS[activation], inputs=[(x,)])
    paddleq.save_checkpoint(model, tmp_path, format="compressed-tensors")
    config, arrays = read_folder(tmp_path)
    assert config["quantization_config"]["format"] == "int-quantized"
    assert arrays["fc.weight"].dtype == np.int8
    assert ("fc.input_scale" in arrays) == (activation != "A8 token")
    other = paddleq.load_checkpoint(nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS))), tmp_path)
    # Unsigned inputs become signed ones: another order of the same sums.
    assert np.allclose(other(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-5)
    if activation != "A8 tensor affine":
        assert np.array_equal(other(x).numpy(), model(x).numpy())


W5, W4_G48 = WEIGHTS["W5 channel"], QuantSpec(4, granularity=PerGroup(48))
REFUSED = [
    ("gptq", W5, {}, "5 bits"),
    ("gptq", W4_G48, {}, "group size 48"),
    ("gptq", "W4 g32", {"smoothed": True}, "smoothing"),
    ("gptq", "W8 channel", {"activation": ACTIVATIONS["A8 token"]}, "weights only"),
    ("compressed-tensors", W5, {}, "5 bits"),
    ("compressed-tensors", W4_G48, {}, "group size 48"),
    ("compressed-tensors", "W4 g32", {"smoothed": True}, "smoothing"),
    ("compressed-tensors", "W4 g32", {"permuted": True}, "activation order"),
    ("compressed-tensors", "W4 g32", {"activation": ACTIVATIONS["A8 token"]}, "8 bits per channel"),
    ("compressed-tensors", "W8 channel", {"activation": ACTIVATIONS["A4 token"]}, "int4"),
    *[(format, "fp8", {}, "float8_e4m3fn") for format in EXPRESSED],
    ("awq", "W8 channel", {}, "8 bits"),
    ("awq", W4_G48, {}, "group size 48"),
    ("awq", "W4 g32", {"permuted": True}, "activation order"),
    ("awq", "W4 g32", {"smoothed": True}, "smoothing"),
    ("awq", "W4 g32", {"activation": ACTIVATIONS["A8 token"]}, "weights only"),
    ("paddlenlp", "W4 g32 affine", {}, "asymmetric with 4 bits"),
    ("paddlenlp", "W3 g32", {}, "symmetric with 3 bits"),
    ("paddlenlp", "W4 g32", {}, "32 features; the format has 64 or 128 or one scale"),
    ("paddlenlp", "W4 g64", {"permuted": True}, "activation order"),
    ("paddlenlp", "W8 channel", {"activation": ACTIVATIONS["A8 token"]}, "weights only"),
    ("fastdeploy", "W4 g64", {}, "64 features; the format has one scale"),
]


@pytest.mark.parametrize("format, weight, options, reason", REFUSED)
def test_refuses_what_a_format_cannot_represent(format, weight, options, reason, tmp_path):
    model = linear(weight, **options)
    with pytest.raises(ExportError, match=f"'fc'.*{reason}"):
        paddleq.save_checkpoint(model, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format, reason", [
    ("gptq", "48 input.*multiples of 32"), ("awq", "36 output features are no multiple of 8"),
    ("paddlenlp", "48 input.*multiples of 64 and 16"),
    ("fastdeploy", "48 input.*multiples of 64 and 16")])
def test_refuses_widths_that_fill_no_words(format, reason, tmp_path):
    model = deploy(nn.Sequential(nn.Linear(48, 36)), WEIGHTS["W4 channel"])
    with pytest.raises(ExportError, match=f"'0'.*{reason}"):
        paddleq.save_checkpoint(model, tmp_path / "out", format=format)


@pytest.mark.parametrize("format, weights, reason", [
    ("awq", ["W4 g32", "W4 channel"], "'1'.*group size is -1, but that of '0' is 32"),
    ("paddlenlp", ["W4 channel", "W8 channel"], "'1'.*otherwise than that of '0'"),
    ("fastdeploy", ["W4 channel", "W8 channel"], "'1'.*otherwise than that of '0'")])
def test_refuses_layers_of_two_schemes(format, weights, reason, tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    for layer, weight in zip(list(model), weights):
        deploy(nn.Sequential(layer), WEIGHTS[weight])
    with pytest.raises(ExportError, match=reason):
        paddleq.save_checkpoint(model, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_awq_refuses_a_quantized_output_layer(tmp_path):
    model = deploy(nn.Sequential(("lm_head", nn.Linear(64, 64))), WEIGHTS["W4 g32"])
    with pytest.raises(ExportError, match="'lm_head'.*float output layer"):
        paddleq.save_checkpoint(model, tmp_path / "out", format="awq")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 64])
@pytest.mark.parametrize("arch", [75, 80, 86])
def test_kernel_layout_is_that_of_weight_quantize(bits, group, arch, tmp_path):
    # Paddle quantizes float16 on a CPU, in the layout of the GPU that ``arch`` names. It has no
    # kernel of weight_dequantize and weight_only_linear there ("not registered").
    from paddle.nn.quant import weight_quantize

    options = {} if group is None else {"group_size": group}
    if not set(options) <= set(inspect.signature(weight_quantize).parameters):
        pytest.skip("Paddle 2.6 quantizes per channel only")
    top, rows = 2 ** (bits - 1) - 1, group or ROWS
    weight = np.random.RandomState(bits).randint(-top, top + 1, [ROWS, COLUMNS])
    weight[::rows] = top  # so that the scale is 1, and the weights are the integers
    scale = np.ones([ROWS // rows, COLUMNS], "float32")
    held, found = weight_quantize(paddle.to_tensor(weight.astype("float16")),
                                  algo=f"weight_only_int{bits}", arch=arch, **options)
    assert np.array_equal(found.numpy().reshape(scale.shape), scale)
    spec = QuantSpec(bits, granularity=PerGroup(group) if group else PerChannel(1))
    model = linear(spec, bias=False)
    integers = paddle.to_tensor(weight.astype("int8"))
    model.fc.weight.set_value(pack_int4(integers) if bits == 4 else integers)
    model.fc.weight_scale.set_value(scale)
    paddleq.save_checkpoint(model, tmp_path, format="paddlenlp")
    arrays = read_folder(tmp_path)[1]
    assert np.array_equal(arrays["fc.quant_weight"], held.numpy())
    assert list(arrays["fc.quant_scale"].shape) == list(found.shape)


def test_paddlenlp_scales_without_float16_are_bfloat16(tmp_path):
    from paddleq.checkpoint import read_state

    model = linear("W8 channel")
    scale = np.full([1, COLUMNS], 3e-6, "float32")
    model.fc.weight_scale.set_value(scale)
    paddleq.save_checkpoint(model, tmp_path, format="paddlenlp")
    assert read_state(tmp_path / "model.safetensors")["fc.quant_scale"].dtype == np.uint16
    other = paddleq.load_checkpoint(nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS))), tmp_path)
    assert np.allclose(other.fc.weight_scale.numpy(), scale, rtol=2 ** -9)


def test_gptq_describes_layers_of_other_schemes(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64),
                          nn.Linear(64, 32))
    for index, weight in enumerate(["W4 g32", "W4 g32", "W8 channel affine"]):
        part = nn.Sequential(model[index])
        deploy(part, WEIGHTS[weight])
    paddleq.save_checkpoint(model, tmp_path, format="gptq")
    config = json.loads((tmp_path / "quantize_config.json").read_text())
    assert config == read_folder(tmp_path)[0]["quantization_config"]
    assert config["dynamic"] == {
        "+:^2$": {"bits": 8, "group_size": -1, "sym": False, "desc_act": False}, "-:^3$": {}}
    assert (config["bits"], config["group_size"], config["checkpoint_format"]) == (4, 32, "gptq_v2")
    other = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)], nn.Linear(64, 32))
    paddleq.load_checkpoint(other, tmp_path)
    x = paddle.rand([3, 64])
    assert np.array_equal(other(x).numpy(), model(x).numpy())


def words(values, bits):
    """Pack along the last axis with Python's integers."""
    packed = []
    for row in values.reshape(-1, values.shape[-1]):
        number = sum(int(value) << bits * i for i, value in enumerate(row))
        packed.append([number >> 32 * i & 0xFFFFFFFF for i in range(len(row) * bits // 32)])
    return np.array(packed, "uint32").view("int32")


def write_foreign(folder, config, **tensors):
    from safetensors.numpy import save_file

    save_file({f"fc.{name}": np.ascontiguousarray(value) for name, value in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("beside", [False, True])
def test_reads_foreign_gptq_files(bits, beside, tmp_path):
    random, size = np.random.RandomState(bits), 32
    integers = random.randint(0, 2 ** bits, [ROWS, COLUMNS])
    zeros = random.randint(1, 2 ** bits, [ROWS // size, COLUMNS])
    scales = random.rand(ROWS // size, COLUMNS).astype("float16")
    groups = random.permutation(np.arange(ROWS) // size).astype("int32")
    config = {"bits": bits, "group_size": size, "desc_act": True, "sym": False}
    write_foreign(tmp_path, {"quant_method": "gptq", **config}, scales=scales, g_idx=groups,
                  qweight=words(integers.T, bits).T, qzeros=words(zeros - 1, bits),
                  bias=np.zeros(COLUMNS, "float16"))
    if beside:  # as AutoGPTQ wrote it
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "quantize_config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-32g.safetensors")
    model = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=False)))
    paddleq.load_checkpoint(model, tmp_path)
    expected = (integers - zeros[groups]) * scales.astype("float64")[groups]
    assert np.allclose(natural_weight(model.fc), expected, rtol=1e-6)


def test_reads_foreign_awq_files(tmp_path):
    random, size = np.random.RandomState(3), 32
    integers = random.randint(0, 16, [ROWS, COLUMNS])
    zeros = random.randint(0, 16, [ROWS // size, COLUMNS])
    scales = random.rand(ROWS // size, COLUMNS).astype("float16")

    def ordered(values):
        return np.stack([values[:, i::8] for i in (0, 2, 4, 6, 1, 3, 5, 7)], -1).reshape(
            values.shape)

    write_foreign(tmp_path, {"quant_method": "awq", "w_bit": 4, "q_group_size": size,
                             "version": "GEMM"}, scales=scales,
                  qweight=words(ordered(integers), 4), qzeros=words(ordered(zeros), 4))
    model = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=False)))
    paddleq.load_checkpoint(model, tmp_path)
    expected = (integers - zeros.repeat(size, 0)) * scales.astype("float64").repeat(size, 0)
    assert np.allclose(natural_weight(model.fc), expected, rtol=1e-6)


@pytest.mark.parametrize("format, weight, change, reason", [
    ("awq", "W4 g32", {"scales": np.ones([5, COLUMNS], "float32")}, "no weight of 128"),
    ("awq", "W4 g32", {"qzeros": None}, "lacks 'qzeros'"),
    ("awq", "W4 g32", {"config": {"version": "gemv"}}, "'gemv'"),
    ("awq", "W4 g32", {"config": {"bits": 3}}, "3 bits"),
    ("awq", "W4 g32", {"config": {"group_size": 64}}, "groups of 64"),
    ("paddlenlp", "W4 g64", {"quant_scale": None}, "lacks 'quant_scale'"),
    ("paddlenlp", "W4 g64", {"config": {"weight_quantize_algo": "nf4"}}, "'nf4'"),
    ("paddlenlp", "W4 g64", {"config": {"weight_quantize_algo": "weight_only_int8"}}, "8 bits"),
    ("fastdeploy", "W8 channel", {"config": {"quantization": "wint2"}}, "'wint2'"),
])
def test_rejects_damaged_layers(format, weight, change, reason, tmp_path):
    paddleq.save_checkpoint(linear(weight, bias=False), tmp_path, format=format)
    config, arrays = read_folder(tmp_path)
    tensors = {name[3:]: value for name, value in arrays.items()}
    settings = {**config["quantization_config"], **change.pop("config", {})}
    tensors = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    write_foreign(tmp_path, settings, **tensors)
    model = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=False)))
    with pytest.raises(FormatError, match=reason):
        paddleq.load_checkpoint(model, tmp_path)
    assert type(model.fc) is nn.Linear


def test_reads_scales_of_bfloat16(tmp_path):
    model = linear("W4 g32", bias=False)
    paddleq.save_checkpoint(model, tmp_path, format="compressed-tensors")
    config, arrays = read_folder(tmp_path)
    scales = paddle.to_tensor(arrays["fc.weight_scale"]).astype("bfloat16")
    from paddleq.checkpoint.safetensors_io import write_tensors

    write_tensors(tmp_path / "model.safetensors", {**arrays, "fc.weight_scale": scales})
    del config["paddleq"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=False)))
    paddleq.load_checkpoint(other, tmp_path)
    assert np.array_equal(other.fc.weight_scale.numpy(), scales.astype("float32").numpy().T)


@pytest.mark.parametrize("change, reason", [
    ({"scales": np.ones([5, COLUMNS], "float32")}, "no weight of 128"),
    ({"qweight": np.ones([15, COLUMNS], "int32")}, "no weight of 128"),
    ({"g_idx": np.zeros(ROWS, "int32")}, "do not all have 32"),
    ({"g_idx": np.full(ROWS, 9, "int32")}, "numbers from 0 to 3"),
    ({"qzeros": None}, "lacks 'qzeros'"),
    ({"config": {"checkpoint_format": "marlin"}}, "'marlin'"),
    ({"config": {"group_size": 64}}, "groups of 64"),
])
def test_rejects_damaged_gptq_layers(change, reason, tmp_path):
    paddleq.save_checkpoint(linear("W4 g32", bias=False), tmp_path, format="gptq")
    config, arrays = read_folder(tmp_path)
    tensors = {name[3:]: value for name, value in arrays.items()}
    settings = {**config["quantization_config"], **change.pop("config", {})}
    tensors = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    write_foreign(tmp_path, settings, **tensors)
    model = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=False)))
    with pytest.raises(FormatError, match=reason):
        paddleq.load_checkpoint(model, tmp_path)
    assert type(model.fc) is nn.Linear


@pytest.mark.parametrize("change, reason", [
    ({"weight_shape": np.array([COLUMNS, 60])}, "weight_packed"),
    ({"weight_scale": np.ones([COLUMNS, 8], "float32")}, "groups of 32"),
    ({"weight_scale": np.ones([7, 2], "float32")}, "weight_scale"),
    ({"weight_packed": None}, "lacks 'weight'"),
    ({"weight_g_idx": np.zeros(ROWS, "int32")}, "activation order"),
    ({"config": {"weights": {"type": "float", "num_bits": 8}}}, "'float'"),
    ({"config": {"weights": {"num_bits": 3, "group_size": 32}}}, "3 bits"),
    ({"config": {"targets": ["re:.*other"]}}, "no group"),
    ({"config": {"input_activations": {"num_bits": 8, "type": "float"}}}, "only int8"),
])
def test_rejects_damaged_compressed_tensors_layers(change, reason, tmp_path):
    paddleq.save_checkpoint(linear("W4 g32", bias=False), tmp_path, format="compressed-tensors")
    config, arrays = read_folder(tmp_path)
    tensors = {name[3:]: value for name, value in arrays.items()}
    settings = config["quantization_config"]
    settings["config_groups"]["group_0"].update(change.pop("config", {}))
    tensors = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    write_foreign(tmp_path, settings, **tensors)
    model = nn.Sequential(("fc", nn.Linear(ROWS, COLUMNS, bias_attr=False)))
    with pytest.raises(FormatError, match=reason):
        paddleq.load_checkpoint(model, tmp_path)
    assert type(model.fc) is nn.Linear
