"""Errors of invalid arguments.

Messages name the argument, its value and the accepted values; errors are of the library's
hierarchy; a failed ``quantize`` does not change the model. tests/test_checks.py has the values
that each kind of check refuses.
"""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

import paddleq
from paddleq import (
    PTQ,
    QAT,
    FakeQuantize,
    PerChannel,
    PerGroup,
    QuantizableFunction,
    QuantSpec,
    calibrate,
    errors,
    register_layer,
)
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ExportError,
    FusionError,
    ModelError,
)
from paddleq.frontends.paddleslim import (
    AbsmaxQuantizer,
    HistQuantizer,
    KLQuantizer,
    PerChannelAbsmaxQuantizer,
)
from paddleq.observers import (
    AbsMaxObserver,
    HistogramObserver,
    MovingAverageAbsMaxObserver,
    RangeAbsMaxObserver,
)


def cnn():
    return nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 10))


def images(count=2):
    return paddle.rand([count, 1, 8, 8])


class TwoInputs(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, first, second):
        return self.fc(first) + second


class Own(nn.Layer):
    """A class that is not registered."""

    def __init__(self):
        super().__init__()
        self.kernel = self.create_parameter([2, 2])

    def forward(self, x):
        return x @ self.kernel


def qat(**config):
    return lambda: QAT(config)


def ptq(*args, **kwargs):
    return lambda: PTQ(*args, **kwargs)


def calibrating(loader, model=None, **kwargs):
    return lambda: calibrate(PTQ().quantize(model() if model else cnn()), loader, **kwargs)


def spec(**kwargs):
    return lambda: QuantSpec(**kwargs)


def ident(case):
    return case[0]


# (name, callable, error, words of the message)
ARGUMENTS = [
    # QAT(config)
    ("config no dict", lambda: QAT("qat.yaml"), ConfigTypeError, ["config", "'qat.yaml'", "dict"]),
    ("key misspelt", qat(weight_bit=8), ConfigError,
     ["'weight_bit'", "did you mean 'weight_bits'"]),
    ("key unknown", qat(frobnicate=1), ConfigError, ["'frobnicate'", "valid", "moving_rate"]),
    ("key no str", lambda: QAT({3: 1}), ConfigError, ["3", "valid"]),
    ("weight type", qat(weight_quantize_type="channelwise_abs_max"), ConfigError,
     ["weight_quantize_type", "'channelwise_abs_max'", "did you mean 'channel_wise_abs_max'"]),
    ("weight type None", qat(weight_quantize_type=None), ConfigError,
     ["weight_quantize_type", "None", "'abs_max'"]),
    ("activation per channel", qat(activation_quantize_type="channel_wise_abs_max"), ConfigError,
     ["activation_quantize_type", "'channel_wise_abs_max'", "'moving_average_abs_max'"]),
    ("activation preprocess", qat(activation_preprocess_type="pact"), ConfigError,
     ["activation_preprocess_type", "'pact'", "did you mean 'PACT'"]),
    ("weight preprocess", qat(weight_preprocess_type=True), ConfigError,
     ["weight_preprocess_type", "True", "'PACT'"]),
    ("weight_bits 0", qat(weight_bits=0), ConfigError, ["weight_bits", "0", "[1, 16]"]),
    ("weight_bits bool", qat(weight_bits=True), ConfigTypeError, ["weight_bits", "True", "int"]),
    ("activation_bits str", qat(activation_bits="8"), ConfigTypeError,
     ["activation_bits", "'8'", "int"]),
    ("dtype", qat(dtype="int4"), ConfigError, ["dtype", "'int4'", "'int8'"]),
    ("window_size 0", qat(window_size=0), ConfigError, ["window_size", "0", "at least 1"]),
    ("moving_rate 1", qat(moving_rate=1.0), ConfigError, ["moving_rate", "1.0", "[0.0, 1.0)"]),
    ("moving_rate str", qat(moving_rate="0.9"), ConfigTypeError, ["moving_rate", "'0.9'"]),
    ("fuse_conv_bn int", qat(fuse_conv_bn=1), ConfigTypeError, ["fuse_conv_bn", "1", "bool"]),
    ("onnx_format str", qat(onnx_format="yes"), ConfigTypeError, ["onnx_format", "'yes'", "bool"]),
    ("layer types str", qat(quantizable_layer_type="Conv2D"), ConfigTypeError,
     ["quantizable_layer_type", "'Conv2D'", "list"]),
    ("layer type misspelt", qat(quantizable_layer_type=["Conv2d"]), ConfigError,
     ["quantizable_layer_type", "'Conv2d'", "did you mean 'Conv2D'"]),
    ("layer type unregistered", qat(quantizable_layer_type=[Own]), ConfigError,
     ["quantizable_layer_type", "Own", "register_layer"]),
    ("layer type instance", qat(quantizable_layer_type=[nn.ReLU()]), ConfigTypeError,
     ["quantizable_layer_type", "ReLU()"]),
    ("hook instance", lambda: QAT(act_preprocess=paddleq.PACT()), ConfigTypeError,
     ["act_preprocess", "PACT()", "class", "not an instance"]),
    ("hook str", lambda: QAT(weight_quantize="PACT"), ConfigTypeError,
     ["weight_quantize", "'PACT'", "class"]),
    # PTQ(...)
    ("PTQ name", ptq("KLQuantiser"), ConfigError,
     ["activation_quantizer", "'KLQuantiser'", "did you mean 'KLQuantizer'"]),
    ("PTQ activation per channel", ptq("PerChannelAbsmaxQuantizer"), ConfigError,
     ["activation_quantizer", "'PerChannelAbsmaxQuantizer'", "HistQuantizer"]),
    ("PTQ weight by KL", ptq(weight_quantizer="KLQuantizer"), ConfigError,
     ["weight_quantizer", "'KLQuantizer'", "PerChannelAbsmaxQuantizer"]),
    ("PTQ None", ptq(None), ConfigTypeError, ["activation_quantizer", "None", "KLQuantizer"]),
    ("PTQ config as a dict", ptq({"bins": 512}), ConfigTypeError,
     ["activation_quantizer", "{'bins': 512}", "name, class or instance"]),
    ("PTQ other class", ptq(weight_quantizer=nn.Linear), ConfigTypeError,
     ["weight_quantizer", "Linear", "AbsmaxQuantizer"]),
    ("PTQ keyword misspelt", ptq(quantbits=8), ConfigError,
     ["KLQuantizer", "'quantbits'", "did you mean 'quant_bits'"]),
    ("PTQ keyword of another", ptq(hist_percent=0.9), ConfigError,
     ["KLQuantizer", "'hist_percent'", "valid", "upsample_bins"]),
    ("PTQ bins of absmax", ptq("AbsmaxQuantizer", bins=9), ConfigError,
     ["AbsmaxQuantizer", "'bins'", "quant_bits"]),
    ("PTQ instance and keyword", ptq(HistQuantizer(), bins=9), ConfigError,
     ["activation_quantizer", "HistQuantizer", "bins", "when it is built"]),
    # the four quantizers
    *[(f"{cls.__name__} bits {bits!r}", lambda cls=cls, bits=bits: cls(quant_bits=bits), error,
       ["quant_bits", repr(bits)])
      for cls in (KLQuantizer, HistQuantizer, AbsmaxQuantizer, PerChannelAbsmaxQuantizer)
      for bits, error in ((17, ConfigError), (True, ConfigTypeError))],
    *[(f"{cls.__name__} {name} {value!r}",
       lambda cls=cls, name=name, value=value: cls(**{name: value}), error, [name, repr(value)])
      for cls in (KLQuantizer, HistQuantizer)
      for name, value, error in (("bins", 0, ConfigError), ("upsample_bins", 6.5,
                                                            ConfigTypeError))],
    ("percent 1", lambda: HistQuantizer(hist_percent=1), ConfigError, ["hist_percent", "1"]),
    ("percent 99.9", lambda: HistQuantizer(hist_percent=99.9), ConfigError,
     ["hist_percent", "99.9", "(0.0, 1.0)"]),
    # QuantSpec and observers
    ("spec bits 0", spec(bits=0), ConfigError, ["bits", "0", "[1, 16]"]),
    ("spec rounding", spec(rounding="up"), ConfigError, ["rounding", "'up'", "'half_up'"]),
    ("spec granularity", spec(granularity="per_tensor"), ConfigTypeError,
     ["granularity", "'per_tensor'", "PerTensor"]),
    ("spec granularity class", spec(granularity=PerChannel), ConfigTypeError, ["granularity"]),
    ("spec signed", spec(signed="no"), ConfigTypeError, ["signed", "'no'", "bool"]),
    ("spec narrow_range", spec(narrow_range=None), ConfigTypeError,
     ["narrow_range", "None", "bool"]),
    ("channel axis", lambda: PerChannel("0"), ConfigTypeError, ["axis", "'0'", "int"]),
    ("group size", lambda: PerGroup(0), ConfigError, ["size", "0"]),
    ("window", lambda: RangeAbsMaxObserver(window_size=0), ConfigError, ["window_size", "0"]),
    ("rate", lambda: MovingAverageAbsMaxObserver(moving_rate=1.0), ConfigError,
     ["moving_rate", "1.0"]),
    ("observer bins", lambda: HistogramObserver(bins=1), ConfigError, ["bins", "1"]),
    ("no observer", lambda: FakeQuantize(QuantSpec()), ConfigTypeError,
     ["observer", "QuantSpec", "a class of paddleq.observers"]),
    ("state", lambda: FakeQuantize(AbsMaxObserver()).set_state("train"), ConfigError,
     ["state", "'train'", "'qat'"]),
    # register_layer and QuantizableFunction
    ("register name", lambda: register_layer("Own"), ConfigTypeError, ["cls", "'Own'", "subclass"]),
    ("register instance", lambda: register_layer(Own()), ConfigTypeError, ["cls", "Own()"]),
    ("register other class", lambda: register_layer(dict), ConfigTypeError, ["cls", "dict"]),
    ("register weights list", lambda: register_layer(Own, weights=["kernel"]), ConfigTypeError,
     ["weights", "['kernel']", "dict"]),
    ("register weights key", lambda: register_layer(Own, weights={0: 1}), ConfigTypeError,
     ["weights", "0", "attribute names"]),
    ("register axis", lambda: register_layer(Own, weights={"kernel": -1}), ConfigError,
     ["weights['kernel']", "-1"]),
    ("register axis str", lambda: register_layer(Own, weights={"kernel": "1"}), ConfigTypeError,
     ["weights['kernel']", "'1'", "int"]),
    ("register inputs int", lambda: register_layer(Own, inputs=1), ConfigError,
     ["inputs", "1", "(0,)"]),
    ("register inputs negative", lambda: register_layer(Own, inputs=(-1,)), ConfigError,
     ["inputs", "(-1,)"]),
    ("register inputs bool", lambda: register_layer(Own, inputs=(True,)), ConfigError,
     ["inputs", "(True,)"]),
    ("function", lambda: QuantizableFunction("matmul"), ConfigTypeError,
     ["function", "'matmul'", "callable"]),
    ("function inputs 0", lambda: QuantizableFunction(paddle.add, 0), ConfigError,
     ["inputs", "0", "at least 1"]),
    ("function inputs bool", lambda: QuantizableFunction(paddle.add, True), ConfigTypeError,
     ["inputs", "True"]),
    # calibrate
    ("calibrate nothing", lambda: calibrate(None, [images()]), ConfigTypeError,
     ["model", "None", "Layer"]),
    ("calibrate float", lambda: calibrate(cnn(), [images()]), ModelError,
     ["model", "quantized layer", "quantize()"]),
    ("loader int", calibrating(3), ConfigTypeError, ["data", "3", "iterable"]),
    ("loader None", calibrating(None), ConfigTypeError, ["data", "None", "iterable"]),
    ("loader empty", calibrating([]), CalibrationError, ["data", "at least one batch", "empty"]),
    ("loader of a used generator", calibrating(iter(())), CalibrationError, ["data", "empty"]),
    ("num_batches 0", calibrating([images()], num_batches=0), ConfigError, ["num_batches", "0"]),
    ("num_batches bool", calibrating([images()], num_batches=True), ConfigTypeError,
     ["num_batches", "True", "int"]),
    ("num_batches float", calibrating([images()], num_batches=2.0), ConfigTypeError,
     ["num_batches", "2.0", "int"]),
    ("batch empty", calibrating([()]), ConfigError, ["batch", "1 arguments", "0 entries"]),
    ("batch short", calibrating([[images()]], TwoInputs), ConfigError,
     ["batch", "2 arguments", "1 entries"]),
    ("batch key", calibrating([{"first": images(), "third": images()}], TwoInputs), ConfigError,
     ["batch", "'third'", "forward"]),
    ("batch key missing", calibrating([{"first": images()}], TwoInputs), ConfigError,
     ["batch", "'second'", "forward"]),
    ("batch of str", calibrating(["digits"]), ConfigTypeError, ["batch", "'digits'", "tensor"]),
    ("batch of None", calibrating([None]), ConfigTypeError, ["batch", "None", "tensor"]),
    ("convert nothing", lambda: PTQ().convert(None), ConfigTypeError, ["model", "None", "Layer"]),
    ("convert float", lambda: PTQ().convert(cnn()), ModelError, ["model", "quantize()"]),
    ("convert uncalibrated", lambda: PTQ().convert(PTQ().quantize(cnn())), CalibrationError,
     ["0.activation_quantizer", "4.activation_quantizer", "calibrate()"]),
    ("summary of nothing", lambda: paddleq.summary(None), ConfigTypeError,
     ["model", "None", "Layer"]),
]


@pytest.mark.parametrize("case", ARGUMENTS, ids=ident)
def test_bad_arguments(case):
    _, call, error, words = case
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, errors.PaddleqError)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text


def test_names_of_the_table_are_unique():
    assert len({case[0] for case in ARGUMENTS}) == len(ARGUMENTS)


# --- quantize: refused, and the model as it was ----------------------------------------------

def snapshot(model):
    """Classes, keys, values, modes and hooks, which must not change."""
    return ([(name, type(layer), layer.training, len(layer._forward_pre_hooks),
              len(layer._forward_post_hooks))
             for name, layer in model.named_sublayers(include_self=True)],
            [(key, value.numpy().tobytes()) for key, value in model.state_dict().items()])


def with_dtype(dtype):
    def make():
        model = cnn()
        model[4].to(dtype=dtype)
        return model
    return make


def relu_only():
    return nn.Sequential(nn.ReLU(), nn.Flatten())


def fused(**kwargs):
    return lambda model: PTQ().quantize(model, inplace=True, fuse=True, **kwargs)


def qat_on(**kwargs):
    return lambda model: QAT().quantize(model, **kwargs)


def ptq_on(**kwargs):
    return lambda model: PTQ().quantize(model, inplace=True, **kwargs)


# (name, model, function of it, error, words of the message)
REFUSED = [
    *[(f"{quantize.__name__} {dtype}", with_dtype(dtype), quantize(), ModelError,
       ["4.weight", dtype, "float32"])
      for quantize in (qat_on, ptq_on) for dtype in ("float16", "float64")],
    ("nothing to quantize", relu_only, qat_on(), ModelError, ["no layer", "ReLU", "Flatten"]),
    ("PTQ nothing to quantize", relu_only, ptq_on(), ModelError, ["no layer", "ReLU"]),
    ("no layer types", cnn, lambda m: QAT({"quantizable_layer_type": []}).quantize(m),
     ModelError, ["no layer", "Conv2D"]),
    ("QAT inplace int", cnn, qat_on(inplace=1), ConfigTypeError, ["inplace", "1", "bool"]),
    ("PTQ inplace None", cnn, lambda m: PTQ().quantize(m, inplace=None), ConfigTypeError,
     ["inplace", "None", "bool"]),
    ("PTQ fuse str", cnn, ptq_on(fuse="yes"), ConfigTypeError, ["fuse", "'yes'", "bool"]),
    ("layer types", cnn, ptq_on(quantizable_layer_type=["Linar"]), ConfigError,
     ["quantizable_layer_type", "'Linar'", "did you mean 'Linear'"]),
    ("skip name", cnn, qat_on(skip="head"), ConfigError, ["'head'", "matches no layer"]),
    ("skip one of two", cnn, ptq_on(skip=["4", "conv_1"]), ConfigError,
     ["'conv_1'", "matches no layer"]),
    ("skip class", cnn, qat_on(skip=nn.Conv3D), ConfigError, ["Conv3D", "matches no layer"]),
    ("skip no regex", cnn, ptq_on(skip="(4"), ConfigError, ["pattern", "'(4'"]),
    ("skip number", cnn, qat_on(skip=3), ConfigTypeError, ["skip", "3", "name"]),
    ("skip list of numbers", cnn, qat_on(skip=[3]), ConfigTypeError, ["skip", "3", "name"]),
    ("skip everything", cnn, qat_on(skip=".*"), ModelError, ["no layer"]),
    ("fuse_list alone", cnn, ptq_on(fuse_list=[["0", "1"]]), ConfigError,
     ["fuse_list", "fuse=True"]),
    ("fuse_list str", cnn, fused(fuse_list="01"), FusionError, ["fuse_list", "'01'", "pairs"]),
    ("fuse_list flat", cnn, fused(fuse_list=["0", "1"]), FusionError,
     ["fuse_list", "'0'", "pair of names"]),
    ("fuse_list of one", cnn, fused(fuse_list=[["0"]]), FusionError,
     ["fuse_list", "['0']", "pair of names"]),
    ("fuse_list of three", cnn, fused(fuse_list=[["0", "1", "2"]]), FusionError,
     ["fuse_list", "pair of names"]),
    ("fuse_list unknown", cnn, fused(fuse_list=[["0", "bn"]]), FusionError,
     ["fuse_list", "no layer 'bn'"]),
    ("fuse_list no norm", cnn, fused(fuse_list=[["0", "2"]]), FusionError,
     ["fuse_list", "'2'", "BatchNorm", "ReLU"]),
    ("fuse_list no conv", cnn, fused(fuse_list=[["2", "1"]]), FusionError,
     ["fuse_list", "'2'", "Conv", "ReLU"]),
    ("fuse_list no neighbours", cnn,
     fused(fuse_list=[["4", "1"]], inputs=paddle.ones([1, 1, 8, 8])), FusionError,
     ["fuse_list", "['4', '1']", "does not go into 1"]),
    ("fuse inputs empty", cnn, fused(inputs=[]), ConfigError, ["1 arguments", "0 entries"]),
    ("fuse_conv_bn inputs empty", cnn,
     lambda m: QAT({"fuse_conv_bn": True}).quantize(m, inputs=[]), ConfigError,
     ["1 arguments", "0 entries"]),
]


@pytest.mark.parametrize("case", REFUSED, ids=ident)
def test_failed_quantize_does_not_change_the_model(case):
    _, make, quantize, error, words = case
    model = make()
    before = snapshot(model)
    with pytest.raises(error) as caught:
        quantize(model)
    assert isinstance(caught.value, errors.PaddleqError)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert snapshot(model) == before


@pytest.mark.parametrize("quantize", [QAT().quantize, PTQ().quantize], ids=["QAT", "PTQ"])
@pytest.mark.parametrize("model", [None, "resnet50", nn.Conv2D, {}])
def test_model_that_is_no_layer(quantize, model):
    with pytest.raises(ConfigTypeError, match="model must be a paddle.nn.Layer"):
        quantize(model)


@pytest.mark.parametrize("quantize", [QAT().quantize, PTQ().quantize], ids=["QAT", "PTQ"])
@pytest.mark.parametrize("first", [QAT().quantize, PTQ().quantize], ids=["QAT", "PTQ"])
def test_quantizing_twice(first, quantize):
    model = first(cnn())
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"'0' is already quantized.*fresh copy"):
        quantize(model)
    assert snapshot(model) == before


def test_hook_that_cannot_be_built_does_not_change_the_model():
    model = cnn()
    before = snapshot(model)
    with pytest.raises(TypeError, match="in_features"):
        QAT(act_preprocess=nn.Linear).quantize(model)
    assert snapshot(model) == before


# --- save_quantized_model --------------------------------------------------------------------

def calibrated():
    model = PTQ("AbsmaxQuantizer").quantize(cnn())
    PTQ("AbsmaxQuantizer").calibrate(model, [images()])
    return model


SPEC = [InputSpec([None, 1, 8, 8], "float32")]

# (name, model, (path below the test's folder or path, input_spec), error, words)
UNSAVED = [
    ("no model", lambda: None, ("m", SPEC), ConfigTypeError, ["model", "None"]),
    ("float model", cnn, ("m", SPEC), ModelError, ["model", "no quantized layer", "quantize()"]),
    ("uncalibrated", lambda: PTQ().quantize(cnn()), ("m", SPEC), CalibrationError,
     ["0.activation_quantizer", "4.activation_quantizer", "calibrate()"]),
    ("untrained", lambda: QAT().quantize(cnn()), ("m", SPEC), ExportError,
     ["0.activation_quantizer", "4.activation_quantizer", "training steps"]),
    ("path empty", calibrated, (b"", SPEC), ConfigTypeError, ["path", "out/model"]),
    ("path number", calibrated, (3, SPEC), ConfigTypeError, ["path", "3", "out/model"]),
    ("path None", calibrated, (None, SPEC), ConfigTypeError, ["path", "None"]),
    ("path of a folder", calibrated, ("", SPEC), ConfigError, ["path", "prefix", "folder"]),
    ("path ends in a slash", calibrated, ("new/", SPEC), ConfigError, ["path", "new/"]),
    ("spec str", calibrated, ("m", "1x8x8"), errors.PaddleqError, ["input_spec"]),
]


@pytest.mark.parametrize("case", UNSAVED, ids=ident)
@pytest.mark.parametrize("front", [QAT, PTQ])
def test_invalid_arguments_of_save_quantized_model(case, front, tmp_path):
    _, make, (path, input_spec), error, words = case
    if isinstance(path, str):
        path = f"{tmp_path}/{path}"
    elif path == b"":
        path = ""
    model = make()
    before = snapshot(model) if isinstance(model, nn.Layer) else None
    with pytest.raises(error) as caught:
        front().save_quantized_model(model, path, input_spec)
    assert isinstance(caught.value, errors.PaddleqError)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert list(tmp_path.iterdir()) == []
    if before is not None:
        assert snapshot(model) == before


@pytest.mark.parametrize("front", [QAT, PTQ])
def test_onnx_format_is_a_bool(front, tmp_path):
    with pytest.raises(ConfigTypeError, match="onnx_format must be a bool, but is 'yes'"):
        front().save_quantized_model(calibrated(), str(tmp_path / "m"), SPEC, onnx_format="yes")


# --- the hierarchy ---------------------------------------------------------------------------

def test_errors_derive_from_paddleq_error_and_built_in_errors():
    own = [cls for cls in vars(errors).values()
           if isinstance(cls, type) and cls.__module__ == errors.__name__]
    assert all(issubclass(cls, errors.PaddleqError) for cls in own)
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigTypeError, TypeError)


def test_numpy_integers_are_named_in_the_message():
    with pytest.raises(ConfigTypeError, match="weight_bits.*int64"):
        QAT({"weight_bits": np.int64(8)})


# --- paths: one error for one mistake --------------------------------------------------------

@pytest.mark.parametrize("save", [
    lambda model, path: PTQ().save_quantized_model(model, path, SPEC),
    lambda model, path: paddleq.export.save(model, path, SPEC),
    lambda model, path: paddleq.export.to_onnx(model, path, SPEC), paddleq.save_checkpoint,
], ids=["save_quantized_model", "export.save", "to_onnx", "save_checkpoint"])
@pytest.mark.parametrize("path, error", [
    ("", ConfigTypeError), (None, ConfigTypeError), (3, ConfigTypeError),
    ("{folder}", ConfigError), ("{folder}/new/", ConfigError)])
def test_same_wrong_path_is_the_same_error_everywhere(save, path, error, tmp_path):
    path = path.format(folder=tmp_path) if isinstance(path, str) else path
    with pytest.raises(error, match="^path must be") as caught:
        save(calibrated(), path)
    assert type(caught.value) is error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [
    lambda path: paddleq.load_checkpoint(cnn(), path), paddleq.deploy.Predictor,
    lambda path: paddleq.quant_post_dynamic(path, f"{path}/out"),
    lambda path: paddleq.quant_post_static(path, f"{path}/out", [images()]),
], ids=["load_checkpoint", "Predictor", "quant_post_dynamic", "quant_post_static"])
def test_missing_file_is_a_format_error_everywhere(read, tmp_path):
    with pytest.raises(errors.FormatError):
        read(str(tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []
