"""Files of different exports side by side: each reader refuses them."""

import os
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from interrupted import interrupted
from nets import calibrated
from paddle import nn
from paddle.static import InputSpec
from runtimes import relative_error

import paddleq
from paddleq.cli.main import main
from paddleq.deploy import Predictor, verify
from paddleq.errors import FormatError
from paddleq.export import provenance_file, save, to_onnx, to_program_desc
from paddleq.export.trace import trace_float

pytestmark = pytest.mark.one_version

X = np.ones([2, 4], "float32")
SPEC = [InputSpec([None, 4], "float32", "x")]
READERS = {
    "SavedModel": lambda path, out: paddleq.SavedModel(path),
    "Predictor": lambda path, out: Predictor(path, "paddle", 1),
    "Predictor auto": lambda path, out: Predictor(path, threads=1),
    "verify": lambda path, out: verify(path, None, X, runtimes=[], seconds=0),
    "verify a reference": lambda path, out: verify(out, path, X, runtimes=[], seconds=0),
    "to_onnx": lambda path, out: to_onnx(path, out),
    "to_paddle_int8": lambda path, out: paddleq.deploy.to_paddle_int8(path, out),
    "quant_post_dynamic": lambda path, out: paddleq.quant_post_dynamic(
        os.path.dirname(path), out, "m.pdmodel", "m.pdiparams"),
    "quant_post_static": lambda path, out: paddleq.quant_post_static(
        os.path.dirname(path), out, [X], "m.pdmodel", "m.pdiparams"),
}


def net(value):
    with paddle.utils.unique_name.guard():
        made = nn.Sequential(nn.Linear(4, 3))
    for tensor in made.parameters():
        tensor.set_value(paddle.full_like(tensor, value))
    return made


def quantized(value):
    return calibrated(net(value), paddle.to_tensor(X))[1]


def set_of(folder, value):
    """Write an export and return its prefix."""
    path = str(folder / "m")
    save_named(quantized(value), path)
    return path


def save_named(model, path, format="pdmodel"):
    with paddle.utils.unique_name.guard():
        save(model, path, SPEC, format=format)


def assert_torn(path, out, *names):
    for name in names or READERS:
        with pytest.raises(FormatError, match="torn"):
            READERS[name](path, out)
    assert main(["inspect", path]) == 1


@pytest.fixture
def pair(tmp_path):
    """Prefix of an export whose parameters are those of another one."""
    (tmp_path / "other").mkdir()
    path, other = set_of(tmp_path, 1.0), set_of(tmp_path / "other", 2.0)
    shutil.copy(other + ".pdiparams", path + ".pdiparams")
    return path


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_torn_pair(name, pair, tmp_path):
    out = set_of(tmp_path / "other", 1.0) if name == "verify a reference" else str(tmp_path / "out")
    assert_torn(pair, out, name)


def test_parameters_of_another_folder_and_files_without_a_record_are_read(pair, tmp_path):
    other = str(tmp_path / "other" / "m.pdiparams")
    model = paddleq.SavedModel(pair, other)
    np.testing.assert_array_equal(model(X), paddleq.SavedModel(other[:-len(".pdiparams")])(X))
    os.unlink(pair + ".paddleq.yaml")
    paddleq.SavedModel(pair)


EXPORTS = {
    "pdmodel": lambda path: save_named(quantized(2.0), path),
    "float": lambda path: paddleq.SavedModel.from_program(trace_float(net(2.0), SPEC)).save(path),
    "int8 copy": lambda path: paddleq.deploy.to_paddle_int8(
        set_of(Path(path).parent / "source", 2.0), path),
    "quant_post_dynamic": lambda path: paddleq.quant_post_dynamic(
        net(2.0), os.path.dirname(os.path.dirname(path)), save_model_filename="m.pdmodel",
        save_params_filename="m.pdiparams", input_spec=SPEC),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_killed_at_each_rename_is_refused_or_complete(kind, tmp_path):
    folder = tmp_path / "quantized_model"
    out = str(tmp_path / "out")
    path = set_of(folder, 1.0)
    (folder / "source").mkdir()
    states = []
    for renames in range(8):
        # (the source of a copy is exported first, and traced files pass through temporary ones)
        killed = interrupted(lambda: EXPORTS[kind](path), renames, path)
        try:
            Predictor(path, "paddle", 1).close()
            states.append("read")
        except FormatError as error:
            assert "torn" in str(error)
            states.append("torn")
            assert_torn(path, out, "SavedModel", "verify")
        if not killed:
            break
        set_of(folder, 1.0)
    assert not killed and states[0] == states[-1] == "read" and states.count("torn") == 2


def test_a_first_export_killed_beside_files_without_a_record_is_refused(tmp_path):
    path = str(tmp_path / "m")
    for renames in (1, 2):
        trace_float(net(1.0), SPEC).save(path + ".pdmodel", path + ".pdiparams")
        assert interrupted(lambda: save_named(quantized(2.0), path), renames, path)
        assert_torn(path, str(tmp_path / "out"), "SavedModel", "Predictor")
        os.unlink(path + ".paddleq.yaml")


def test_another_program_that_overwrites_one_file_is_noticed_once_it_changed(tmp_path):
    """The SHA-256 of a file is computed again after it changed."""
    path = set_of(tmp_path, 1.0)
    paddleq.SavedModel(path)
    with open(path + ".pdiparams", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert_torn(path, str(tmp_path / "out"), "SavedModel")


def test_files_are_hashed_once(tmp_path, monkeypatch):
    path = set_of(tmp_path, 1.0)
    hashed, digest = [], provenance_file._digest
    monkeypatch.setattr(provenance_file, "_digest",
                        lambda path: hashed.append(path) or digest(path))
    for _ in range(3):
        paddleq.SavedModel(path)
    assert len(hashed) == len(set(hashed)) == 2


def test_a_missing_file_of_the_record_is_named(tmp_path):
    path = set_of(tmp_path, 1.0)
    os.unlink(path + ".pdiparams")
    with pytest.raises(FormatError, match=r"m\.pdiparams"):
        Predictor(path, "paddle", 1)


@pytest.mark.needs_pir
def test_a_pdmodel_whose_parameters_a_pir_export_replaced_is_refused(tmp_path):
    path = set_of(tmp_path, 1.0)
    save_named(quantized(2.0), path, "pir")
    with pytest.raises(FormatError, match=r"m\.pdiparams belongs to m\.json"):
        paddleq.SavedModel(path + ".pdmodel")
    paddleq.SavedModel(path + ".json")


@pytest.mark.needs_pir
def test_a_converted_pir_model_keeps_the_parameters_of_its_source(tmp_path):
    path = str(tmp_path / "m")
    paddle.jit.save(net(1.0), path, SPEC)
    to_program_desc(path, path)
    for ending in (".json", ".pdmodel"):
        np.testing.assert_array_equal(paddleq.SavedModel(path + ending)(X), net(1.0)(
            paddle.to_tensor(X)))
    shutil.copy(set_of(tmp_path / "other", 2.0) + ".pdiparams", path + ".pdiparams")
    for ending in (".json", ".pdmodel"):
        with pytest.raises(FormatError, match="torn|belongs"):
            paddleq.SavedModel(path + ending)


def test_an_onnx_file_of_another_export_is_refused(tmp_path):
    pytest.importorskip("onnx")
    path = set_of(tmp_path, 1.0)
    save_named(quantized(1.0), path, "onnx")
    save_named(quantized(2.0), str(tmp_path / "other" / "m"), "onnx")
    shutil.copy(tmp_path / "other" / "m.onnx", path + ".onnx")
    with pytest.raises(FormatError, match="torn"):
        Predictor(path + ".onnx", threads=1)
    paddleq.SavedModel(path)  # the other export at this prefix is complete


@pytest.mark.parametrize("content", [
    "exports: [&a [1], *a]", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "[" * 100 + "]" * 100])
def test_a_hostile_record_is_ignored(content, tmp_path):
    path = set_of(tmp_path, 1.0)
    with open(path + ".paddleq.yaml", "w") as file:
        file.write(content)
    paddleq.SavedModel(path)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_a_record_that_is_no_file_is_ignored(kind, tmp_path):
    path = set_of(tmp_path, 1.0)
    record = path + ".paddleq.yaml"
    os.unlink(record)
    if kind == "device":
        os.symlink("/dev/zero", record)
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir}[kind](record)
    paddleq.SavedModel(path)


def both(folder, order, record=True):
    """Two exports at one prefix, the second of which replaces the parameters of the first."""
    path = str(folder / "m")
    for value, format in enumerate(order, 1):
        save_named(quantized(float(value)), path, format)
        if not record:
            os.unlink(path + provenance_file.ENDING)
    return path


@pytest.mark.needs_pir
@pytest.mark.parametrize("order", [("pdmodel", "pir"), ("pir", "pdmodel")])
def test_of_two_models_at_a_prefix_readers_take_the_one_that_the_record_describes(order, tmp_path):
    path = both(tmp_path, order)
    current = {"pir": ".json", "pdmodel": ".pdmodel"}[order[1]]
    wanted = paddleq.SavedModel(path + current)(X).numpy()
    assert Predictor(path, "paddle", 1).file == path + current
    assert relative_error(Predictor(path, "paddle", 1).run(X)[0], wanted) < 0.02
    for where in (path, str(tmp_path)):
        np.testing.assert_array_equal(paddleq.SavedModel(where)(X), wanted)
    assert main(["inspect", path]) == 0
    verify(path, None, X, runtimes=["paddle"], seconds=0)


@pytest.mark.needs_pir
@pytest.mark.parametrize("order", [("pdmodel", "pir"), ("pir", "pdmodel")])
@pytest.mark.parametrize("name", [name for name in READERS if "reference" not in name
                                  and name != "to_paddle_int8" and "quant_post" not in name])
def test_two_models_at_a_prefix_without_a_record_are_refused_by_names(name, order, tmp_path):
    path = both(tmp_path, order, record=False)
    with pytest.raises(FormatError, match=r"m\.pdmodel and .*m\.json both exist"):
        READERS[name](path, str(tmp_path / "out"))
    paddleq.SavedModel(path + (".json" if order[1] == "pir" else ".pdmodel"))


@pytest.mark.needs_pir
def test_a_model_of_paddle_saved_over_an_export_is_refused_by_both_names(tmp_path):
    path = set_of(tmp_path, 1.0)
    paddle.jit.save(net(2.0), path, SPEC)  # writes .json and .pdiparams
    with pytest.raises(FormatError, match=r"m\.pdmodel and .*m\.json both exist"):
        paddleq.SavedModel(path)
