"""The ``paddleq`` command.

Most tests call its entry point, because importing Paddle takes seconds. Tests of the interpreter
that ``python -m paddleq`` starts use :func:`run_process`.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import click
import numpy as np
import paddle
import pytest
from paddle import nn
from paths import ROOT
from runtimes import onnxruntime, paddle_inference, relative_error

import paddleq
from paddleq.algorithms.distillation import seeded
from paddleq.cli.main import COMMANDS, load_command, main
from paddleq.export.program import pdiparams as params
from paddleq.export.program.program import Program
from paddleq.recipes.sources import find_function


def run(folder, *arguments):
    """Call the entry point of ``paddleq`` with ``arguments`` in ``folder``."""
    before, output, errors = os.getcwd(), io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main([str(each) for each in arguments])
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def run_process(folder, *arguments):
    """Run ``python -m paddleq`` with ``arguments`` in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "paddleq", *map(str, arguments)], cwd=folder,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False)


def content(folder):
    """Contents of all files in a folder by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def error_line(done, status):
    """Return the only line with an error. Warnings of Paddle may precede it."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert lines == [done.stderr.splitlines()[-1]]
    return lines[0]


def tensor(number, shape):
    return {"%": number, "TT": {"#": "0.t_dtensor",
                                "D": [{"#": "0.t_f32"}, shape, "NCHW", [], 0]}}


def text(name, value):
    return {"N": name, "AT": {"#": "0.a_str", "D": value}}


def pir(kind):
    """PIR program of ``kind(x, b)``, as Paddle 3 saves it, for all versions of Paddle."""
    ops = [
        {"#": "p", "A": [0, 1, 1, "b"], "O": tensor(1, [3])},
        {"#": "1.data", "I": [], "O": [tensor(2, [-1, 3])], "A": [text("name", "x")]},
        {"#": f"1.{kind}", "I": [{"%": 2}, {"%": 1}], "O": [tensor(3, [-1, 3])],
         "A": [text("struct_name", "/Net/Strange/")]},
        {"#": "1.fetch", "I": [{"%": 3}], "O": [tensor(4, [-1, 3])],
         "A": [text("name", "y"), {"N": "col", "AT": {"#": "0.a_i32", "D": 0}}]},
    ]
    blocks = [{"#": "block_0", "args": [], "ops": ops}]
    return {"base_code": {"magic": "pir", "trainable": False, "version": 4},
            "program": {"regions": [{"#": "region_0", "blocks": blocks}]}}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(nn.functional.gelu(self.norm(self.conv(x))).mean([2, 3]))


@pytest.fixture
def saved(tmp_path):
    """(net, x): ``net.json`` and ``net.pdiparams`` in ``tmp_path`` hold the net."""
    net = Net()
    net.eval()
    paddle.jit.save(net, str(tmp_path / "net"),
                    input_spec=[paddle.static.InputSpec([None, 3, 8, 8], "float32", "x")])
    return net, paddle.randn([2, 3, 8, 8])


@pytest.mark.needs_pir
def test_to_pdmodel_writes_the_model_and_prints_its_size(saved, tmp_path):
    net, x = saved
    before = content(tmp_path)
    done = run_process(tmp_path, "to-pdmodel", "net.json", "-o", "new/folder/net")
    assert done.returncode == 0, done.stderr
    after = content(tmp_path)
    model, weights = "new/folder/net.pdmodel", "new/folder/net.pdiparams"
    assert set(after) - set(before) == {model, weights, "new/folder/net.paddleq.yaml"}
    program = Program.load(tmp_path / model, tmp_path / weights)
    count = len([op for op in program.desc.blocks[0].ops if op.type not in ("feed", "fetch")])
    assert count >= 6  # convolution, norm, GELU, mean, product, bias
    assert done.stdout == (f"wrote {model} and {weights}: {count} operators, "
                           f"{len(after[model]) + len(after[weights]):,} bytes\n")
    (found,) = paddle_inference(tmp_path / "new/folder/net", [x.numpy()])
    assert relative_error(found, net(x).numpy()) < 1e-6


@pytest.mark.needs_pir
def test_to_pdmodel_with_params(saved, tmp_path):
    net, x = saved
    os.rename(tmp_path / "net.pdiparams", tmp_path / "weights")
    # The prefix is enough, and an output with its suffix is the same output.
    done = run(tmp_path, "to-pdmodel", "net", "--params", "weights", "-o", "old.pdmodel")
    assert done.returncode == 0, done.stderr
    (found,) = paddle_inference(tmp_path / "old", [x.numpy()])
    assert relative_error(found, net(x).numpy()) < 1e-6


@pytest.mark.needs_pir
def test_to_pdmodel_with_damaged_parameters(saved, tmp_path):
    data = (tmp_path / "net.pdiparams").read_bytes()
    (tmp_path / "net.pdiparams").write_bytes(data[:-5])
    before = content(tmp_path)
    message = error_line(run(tmp_path, "to-pdmodel", "net.json", "-o", "out/net"), 1)
    assert message.startswith(
        "paddleq: error: net.pdiparams is damaged or belongs to another model")
    assert content(tmp_path) == before


def test_to_pdmodel_does_not_require_paddle_3(tmp_path):
    write(tmp_path / "m.json", pir("add"))
    params.write(tmp_path / "m.pdiparams", {"b": np.float32([3, 2, 1])}, {})
    done = run(tmp_path, "to-pdmodel", "m.json", "-o", "m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote m.pdmodel and m.pdiparams: 1 operators, ")
    x = np.array([[-1, 0, 2]], "float32")
    np.testing.assert_array_equal(paddle_inference(tmp_path / "m", [x])[0], [[2, 2, 3]])


@pytest.mark.parametrize("stored, message", [
    (None, "there is no file m.json"),
    ("{\n", "m.json is no JSON"),
    ({"base_code": {"magic": "onnx"}}, "m.json is no PIR program that can be read: its magic is "),
    (pir("frobnicate"), "the operator frobnicate in /Net/Strange/ is not in paddleq's operator "),
], ids=["missing", "no JSON", "no PIR", "unsupported operator"])
def test_to_pdmodel_with_unsupported_models(stored, message, tmp_path):
    if stored is not None:
        write(tmp_path / "m.json", stored)
        params.write(tmp_path / "m.pdiparams", {"b": np.float32([3, 2, 1])}, {})
    write(tmp_path / "old.pdmodel", "what was there")
    write(tmp_path / "old.pdiparams", "before")
    before = content(tmp_path)
    line = error_line(run(tmp_path, "to-pdmodel", "m.json", "-o", "old"), 1)
    assert line.startswith(f"paddleq: error: {message}")
    assert content(tmp_path) == before


def test_to_pdmodel_with_an_unwritable_target(tmp_path):
    write(tmp_path / "m.json", pir("add"))
    params.write(tmp_path / "m.pdiparams", {"b": np.zeros(3, "float32")}, {})
    write(tmp_path / "file", "no folder")
    before = content(tmp_path)
    line = error_line(run(tmp_path, "to-pdmodel", "m.json", "-o", "file/m"), 1)
    assert line.startswith("paddleq: error: cannot write file/m.pdmodel: ")
    assert content(tmp_path) == before


@pytest.mark.parametrize("arguments, message", [
    ([], "Missing command"),
    (["to-pdmodl", "m.json"], "did you mean 'to-pdmodel'?"),
    (["to-pdmodel", "m.json"], "Missing option '-o' / '--output'"),
    (["to-pdmodel", "m.json", "--outptu", "x"], "No such option '--outptu'"),
    (["to-pdmodel", "m.json", "-o", "."], "output must be the prefix of files"),
], ids=["nothing", "unknown command", "no output", "unknown option", "a folder"])
def test_invalid_command_lines(arguments, message, tmp_path):
    assert message in error_line(run(tmp_path, *arguments), 2)
    assert content(tmp_path) == {}


def test_version(tmp_path):
    done = run(tmp_path, "--version")
    assert done.returncode == 0
    assert done.stdout == f"paddleq {paddleq.__version__} (Paddle {paddle.__version__})\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    message = capsys.readouterr().out
    assert "examples:" in message and f"  paddleq {command or 'run'} " in message


@pytest.mark.parametrize("name", COMMANDS)
def test_list_of_commands_says_what_the_help_of_each_says(name):
    assert " ".join(load_command(name).help.split()).startswith(COMMANDS[name][1].rstrip("."))


def test_modules_have_no_commands_that_the_list_lacks():
    modules = {importlib.import_module(f"paddleq.cli.{module}") for module, _ in COMMANDS.values()}
    found = [each.name for module in modules for each in vars(module).values()
             if isinstance(each, click.Command)]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("words", ["--help", "-h"])
def test_help_does_not_import_paddle(words):
    script = ("import sys; from paddleq.cli.main import main; assert not main(sys.argv[1:]); "
              "assert 'paddle' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", script, words], cwd=ROOT, stdout=subprocess.PIPE,
                          text=True, check=False)
    assert done.returncode == 0 and "Commands:" in done.stdout


def test_completion(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_WORDS": "paddleq to-",
                   "COMP_CWORD": "1", "_PADDLEQ_COMPLETE": "bash_complete"}
    script = "import sys; from paddleq.cli.main import paddleq; paddleq(prog_name='paddleq')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment,
                          stdout=subprocess.PIPE, text=True, check=False)
    assert "plain,to-pdmodel" in done.stdout


ZOO = """\
import time

import click
import numpy as np
import paddle
from paddle import nn


def build(classes=10):
    paddle.seed(3)
    return nn.Sequential(nn.Conv2D(1, 4, 3, bias_attr=False), nn.BatchNorm2D(4), nn.ReLU(),
                         nn.Flatten(), nn.Linear(144, classes))


def compare(model, data):
    return 0.0


def endless():
    yield [np.ones([2, 1, 8, 8], "float32")]
    open("started", "w").close()
    while True:
        time.sleep(0.01)
        yield [np.ones([2, 1, 8, 8], "float32")]
"""


@pytest.fixture
def folder(tmp_path, digits):
    """A folder with a function that builds a net, and data."""
    (tmp_path / "zoo.py").write_text(ZOO)
    images, labels = digits.train
    np.savez(tmp_path / "digits.npz", x=images[:64], y=labels[:64])
    np.save(tmp_path / "images.npy", images[:64])
    np.save(tmp_path / "coloured.npy", np.zeros([4, 3, 8, 8], "float32"))
    return tmp_path


def build(folder):
    return find_function("zoo.py:build", str(folder))()


def started(folder, *arguments, **options):
    """Start ``paddleq`` in a process group that receives Ctrl-C separately."""
    def listen():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it

    return subprocess.Popen(
        [sys.executable, "-m", "paddleq", *arguments], cwd=folder, text=True, preexec_fn=listen,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, **options)


def written(done, path):
    """Check that the last line lists the written files, and that they exist."""
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    for ending in (".pdmodel", ".pdiparams", ".paddleq.yaml"):
        assert f"{path}{ending}" in last
    return Program.load(f"{path}.pdmodel", f"{path}.pdiparams")


def integers(program):
    return sum(array.dtype == np.int8 for array in program.arrays.values())


def test_ptq_of_a_layer(folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = run_process(folder, "ptq", "zoo.py:build", "-d", "digits.npz", "--labels", "y",
                       "--batches", 2, "--input", "image:?x1x8x8", "--skip", "^0$",
                       "--algo", "abs_max", "-o", "out/net")
    assert integers(written(done, "out/net")) == 1
    first = content(folder / "out")
    # Another process: the tests have a module of this name too.
    done = run_process(folder, "ptq", "zoo:build", "-d", "images.npy", "--batches", 2,
                       "--arg", "classes=7", "--input", "image:?x1x8x8", "-o", "out/seven")
    assert integers(written(done, "out/seven")) == 2
    (found,) = paddle_inference("out/seven", [np.ones([3, 1, 8, 8], "float32")])
    assert found.shape == (3, 7)
    # The provenance file repeats the export of another process.
    done = run(folder, "run", "out/net.paddleq.yaml")
    written(done, "out/net")
    assert {name: data for name, data in content(folder / "out").items() if name in first} == first


def test_skip_with_a_layer_name_skips_only_that_layer(folder, monkeypatch):
    """The name is a part of the other layer's name too."""
    monkeypatch.chdir(folder)
    (folder / "nested.py").write_text(
        "from paddle import nn\n"
        "def build():\n"
        "    net = nn.Sequential(('conv', nn.Conv2D(1, 1, 1)), ('block', nn.Sequential(\n"
        "        ('conv', nn.Conv2D(1, 1, 1)))))\n"
        "    return net\n")
    for name, skip in (("name", "conv"), ("container", "block"), ("pattern", "^conv$")):
        done = run(folder, "ptq", "nested.py:build", "-d", "images.npy", "--batches", 1,
                   "--input", "x:?x1x8x8", "--skip", skip, "--algo", "abs_max",
                   "-o", f"out/{name}")
        assert integers(written(done, f"out/{name}")) == 1
    assert "no layer to quantize" in run(
        folder, "ptq", "nested.py:build", "-d", "images.npy", "--skip", "conv$", "-o", "o").stderr


def test_ptq_and_dynamic_of_a_saved_model(folder, monkeypatch):
    monkeypatch.chdir(folder)
    net = build(folder)
    net.eval()
    paddle.jit.save(net, "float/net", [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    x = np.load("images.npy")
    expected = net(paddle.to_tensor(x)).numpy()
    for command, more in (("ptq", ["-d", "images.npy", "--algo", "abs_max"]), ("dynamic", [])):
        for model in ("float", "float/net"):
            done = run(folder, command, model, *more, "-o", f"out/{command}")
            assert integers(written(done, f"out/{command}")) == 2
        (found,) = paddle_inference(f"out/{command}", [x])
        assert 1e-5 < relative_error(found, expected) < 0.03
    done = run(folder, "dynamic", "float", "--bits", "16", "--format", "onnx", "--format",
               "pdmodel", "-o", "out/16")
    written(done, "out/16")
    (found,) = onnxruntime("out/16", [x])
    assert relative_error(found, expected) < 1e-4
    (found,) = paddle_inference("out/16", [x])
    assert relative_error(found, expected) < 1e-4
    done = run(folder, "ptq", "float", "-d", "images.npy", "--max-drop", "0.02", "--cost", "macs",
               "-o", "out/kept")
    assert integers(written(done, "out/kept")) == 1
    by_python = paddleq.quant_post_static("float", "out/python", [x[:32], x[32:]], algo="KL",
                                          accuracy={"metric": "error", "max_drop": 0.02,
                                                    "cost": "macs"})
    assert len(by_python) == 1
    rows = [[each.strip() for each in line.split("|")] for line in done.stdout.splitlines()]
    titles = rows.index(["left float", "SQNR alone", "share of macs"])
    ((name, sqnr, share),) = rows[titles + 2:-1]
    macs = {net[0].weight.name: 4 * 9 * 36, net[4].weight.name: 144 * 10}
    (weight,) = set(macs) - set(by_python)
    assert weight.startswith(name) and sqnr.endswith(" dB")
    assert macs[weight] / sum(macs.values()) == pytest.approx(float(share[:-2]) / 100, 0.01)
    assert any(row[0].startswith("1 of 2 layers float") and "0.02 allowed" in row[-1]
               for row in rows)
    done = run(folder, "ptq", "float", "-d", "images.npy", "--skip", net[4].weight.name,
               "-o", "out/some")
    assert integers(written(done, "out/some")) == 1


@pytest.mark.parametrize("options, arguments", [
    (["--round-type", "adaround"], {"round_type": "adaround"}),
    (["--bias-correction", "fast"], {"bias_correction": True}),
    (["--equalize"], {"equalize": True})], ids=str)
def test_algorithms_of_ptq_write_the_files_of_the_python_interface(
        options, arguments, folder, monkeypatch):
    monkeypatch.chdir(folder)
    net = build(folder)
    net.eval()
    paddle.jit.save(net, "float/net", [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    common = ["ptq", "float", "-d", "images.npy", "--batches", "1", "--algo", "abs_max",
              "--weight-bits", "4"]
    written(run(folder, *common, *options, "-o", "out/cli"), "out/cli")
    with seeded(0), paddle.utils.unique_name.guard():
        paddleq.quant_post_static("float", "out", [np.load("images.npy")[:32]], algo="abs_max",
                                  weight_bits=4, save_model_filename="python.pdmodel",
                                  save_params_filename="python.pdiparams", **arguments)
    for ending in ("pdmodel", "pdiparams"):
        assert pathlib.Path(f"out/cli.{ending}").read_bytes() == (
            pathlib.Path(f"out/python.{ending}").read_bytes())
    assert str(next(iter(arguments))) in pathlib.Path("out/cli.paddleq.yaml").read_text()


def test_ptq_of_the_whole_graph(folder, monkeypatch):
    monkeypatch.chdir(folder)
    net = paddle.nn.Sequential(paddle.nn.Conv2D(1, 4, 3), paddle.nn.Hardswish())
    net.eval()
    paddle.jit.save(net, "float/net", [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    counts = {}
    for scope in ("weighted", "full"):
        done = run(folder, "ptq", "float", "-d", "images.npy", "--algo", "abs_max", "--scope",
                   scope, "-o", f"out/{scope}")
        written(done, f"out/{scope}")
        operators = paddleq.SavedModel(f"out/{scope}").operators
        counts[scope] = sum(op.type == "quantize_linear" for op in operators)
    assert counts == {"weighted": 1, "full": 2}


def test_qat_export(folder, monkeypatch):
    monkeypatch.chdir(folder)
    net, qat = build(folder), paddleq.QAT({"weight_quantize_type": "abs_max"})
    qat.quantize(net)
    x = paddle.to_tensor(np.load("images.npy"))
    net(x).mean().backward()
    net.eval()
    paddle.save(net.state_dict(), "trained.pdparams")
    (folder / "qat.yaml").write_text("weight_quantize_type: abs_max\n")
    done = run(folder, "qat-export", "zoo.py:build", "--weights", "trained.pdparams", "--config",
               "qat.yaml", "--input", "image:?x1x8x8", "-o", "out/net")
    assert integers(written(done, "out/net")) == 2
    (found,) = paddle_inference("out/net", [x.numpy()])
    assert relative_error(found, net(x).numpy()) < 1e-6
    line = error_line(run(folder, "qat-export", "zoo.py:build", "--weights", "trained.pdparams",
                       "--arg", "classes=7", "--input", "image:?x1x8x8", "-o", "out/7"), 1)
    assert "4.weight" in line


def test_inspect(folder, monkeypatch):
    monkeypatch.chdir(folder)
    written(run(folder, "ptq", "zoo.py:build", "-d", "images.npy", "--algo", "abs_max",
                "--input", "image:?x1x8x8", "-o", "net"), "net")
    program = Program.load("net.pdmodel", "net.pdiparams")
    done = run(folder, "inspect", "net", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["inputs"] == [{"name": "image", "shape": [-1, 1, 8, 8], "dtype": "float32"}]
    assert found["operators"]["quantize_linear"] == 2 and found["operators"]["conv2d"] == 1
    assert found["parameters"]["count"] == len(program.arrays)
    weight = next(row for row in found["weights"] if row["shape"] == [144, 10])
    array = program.arrays[weight["name"]]
    assert weight["histogram"] == np.histogram(array, 16, (-128, 128))[0].tolist()
    assert sum(weight["histogram"]) == 1440 and weight["bits"] == 8 and weight["axis"] == 1
    assert {row["reader"] for row in found["activations"]} == {"conv2d", "matmul_v2"}
    first = next(row for row in found["activations"] if row["name"] == "image")
    assert abs(127 * first["scale"] - np.load("images.npy").max()) < 1e-6
    text = run(folder, "inspect", "net.pdmodel").stdout
    assert "conv2d" in text and "per" not in text.split("axis 0")[0].splitlines()[-1]
    assert weight["name"] in text and "█" in text


def test_sensitivity(folder, monkeypatch):
    monkeypatch.chdir(folder)
    net = build(folder)
    net.eval()
    paddle.jit.save(net, "float/net", [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    for model, names in (("zoo.py:build", {"0", "4"}),
                         ("float", {net[0].weight.name, net[4].weight.name})):
        done = run(folder, "sensitivity", model, "-d", "images.npy", "--algo", "abs_max", "--json")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)
        assert {row["layer"] for row in rows} == names
        assert 20 < rows[0]["sqnr"] < rows[1]["sqnr"] < 60
    done = run(folder, "sensitivity", "float", "-d", "images.npy", "--algo", "abs_max")
    assert rows[0]["layer"] in done.stdout.splitlines()[2] and "dB" in done.stdout


WORDS = """\
import paddle
from paddle import nn


def build(words=50):
    paddle.seed(1)
    model = nn.Sequential(nn.Embedding(words, 16), nn.Linear(16, words))
    model[0].weight.set_value(model[0].weight * 8.0)
    return model


def tokenize(text):
    return [ord(each) % 50 for each in text]
"""


def test_perplexity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.py").write_text(WORDS)
    (tmp_path / "text.txt").write_text("A text, and its tokens.\n" * 5)
    tokens = [ord(each) % 50 for each in "A text, and its tokens.\n" * 5]
    np.save("tokens.npy", tokens)
    model = find_function("words.py:build", str(tmp_path))()
    config = paddleq.QuantConfig()
    config.add_type(nn.Linear, paddleq.LayerConfig(paddleq.QuantSpec(3)))
    quantized = paddleq.quantize(model, config)
    quantized(paddle.to_tensor([tokens]))
    paddleq.freeze(quantized)
    paddleq.save_checkpoint(quantized, tmp_path / "w3")
    logits = {name: each(paddle.to_tensor(tokens)).numpy().astype("float64")
              for name, each in (("float", model), ("w3", quantized))}
    shares = {name: np.exp(each) / np.exp(each).sum(-1, keepdims=True)
              for name, each in logits.items()}

    def losses(name):
        return -np.log(shares[name][np.arange(len(tokens) - 1), tokens[1:]])

    for data in (["tokens.npy"], ["text.txt", "--tokenizer", "words.py:tokenize"]):
        done = run(tmp_path, "perplexity", "words.py:build", "-d", *data, "--window", 30,
                   "--stride", 29, "--checkpoint", "w3", "--float", "words.py:build", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["tokens"] == len(tokens) - 1
        assert found["value"] == pytest.approx(np.exp(losses("w3").mean()), rel=1e-6)
        assert found["float_value"] == pytest.approx(np.exp(losses("float").mean()), rel=1e-6)
        kl = (shares["float"] * np.log(shares["float"] / shares["w3"])).sum(-1)[:-1].mean()
        assert found["kl_divergence"] == pytest.approx(kl, rel=1e-4) and kl > 1e-3
    model.eval()
    paddle.jit.save(model, "saved", [paddle.static.InputSpec([1, None], "int64", "tokens")])
    done = run(tmp_path, "perplexity", "saved", "-d", "tokens.npy", "--window", 30, "--stride", 29)
    assert done.stdout.startswith(f"perplexity {np.exp(losses('float').mean()):.3f} over 119 ")
    assert "--tokenizer is missing" in error_line(
        run(tmp_path, "perplexity", "saved", "-d", "text.txt"), 2)
    assert "--checkpoint has an effect with" in error_line(
        run(tmp_path, "perplexity", "saved", "-d", "tokens.npy", "--checkpoint", "w3"), 2)
    assert "there is no file missing.npy" in error_line(
        run(tmp_path, "perplexity", "saved", "-d", "missing.npy"), 1)


def test_export(folder, monkeypatch):
    monkeypatch.chdir(folder)
    net = build(folder)
    net.eval()
    x = np.load("images.npy")
    spec = ["--input", "image:?x1x8x8"]
    done = run(folder, "export", "zoo.py:build", *spec, "--format", "pdmodel", "-o", "out/float")
    assert done.returncode == 0, done.stderr
    (found,) = paddle_inference("out/float", [x])
    assert relative_error(found, net(paddle.to_tensor(x)).numpy()) < 1e-6
    done = run(folder, "export", "out/float", "--format", "onnx", "-o", "out/float")
    assert done.returncode == 0 and "wrote out/float.onnx" in done.stdout, done.stderr
    (found,) = paddleq.deploy.Predictor("out/float.onnx", "onnxruntime").run(x)
    assert relative_error(found, net(paddle.to_tensor(x)).numpy()) < 1e-5
    done = run(folder, "export", "out/float", "--format", "openvino", "-o", "out/float")
    assert done.returncode == 0 and "wrote out/float.xml" in done.stdout, done.stderr
    (found,) = paddleq.deploy.Predictor("out/float.xml", "openvino").run(x)
    assert relative_error(found, net(paddle.to_tensor(x)).numpy()) < 1e-5


def test_verify(folder, monkeypatch):
    monkeypatch.chdir(folder)
    written(run(folder, "ptq", "zoo.py:build", "-d", "images.npy", "--algo", "abs_max",
                "--input", "image:?x1x8x8", "-o", "net"), "net")
    done = run(folder, "verify", "net", "-d", "images.npy", "--top1", "0.9", "--error", "0.2",
               "--runtime", "openvino", "--runtime", "paddle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "openvino" in done.stdout and "paddle" in done.stdout
    done = run(folder, "verify", "net", "-d", "images.npy", "--error", "0", "--runtime", "paddle")
    assert done.returncode == 1 and "exceeds a limit" in done.stderr


def test_report(folder):
    done = run(folder, "report", "zoo.py:build", "-d", "images.npy", "--algo", "abs_max", "-o",
               "out/page.html")
    assert done.returncode == 0, done.stderr
    page = (folder / "out" / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2 and "Conv2D" in page and "src=\"http" not in page


@pytest.mark.browser  # where VisualDL is
def test_serve_vdl(folder):
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "logs").mkdir()
    process = started(folder, "serve-vdl", "logs", "--port", str(port), stdout=subprocess.PIPE,
                      stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout.readline() == f"http://127.0.0.1:{port}/\n"
    for attempt in range(1200):
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/app").read()
            break
        except OSError:
            assert attempt < 1199 and process.poll() is None
            time.sleep(0.1)
    assert b"VisualDL" in page
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C does
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


@pytest.mark.parametrize("arguments, status, message", [
    (["ptq", "zoo.py:build"], 2, "Missing option '--data' / '-d'"),
    (["ptq", "zoo.py:build", "-d", "no.npy", "-o", "o"], 1, "no.npy"),
    (["ptq", "zoo.py:biuld", "-d", "images.npy", "-o", "o"], 2, "'build'"),
    (["ptq", "nowhere", "-d", "images.npy", "-o", "o"], 1, "nowhere"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--algo", "kl", "-o", "o"], 2, "'kl'"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--weight-bits", "0", "-o", "o"], 2,
     "quant_bits"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--metric", "error", "-o", "o"], 2,
     "--metric has an effect with --max-drop only"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--max-drop", "-1", "-o", "o"], 2, "max_drop"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--input", "x:?x1x8x8", "--max-drop", "0.1",
      "--metric", "zoo.py:compare", "-o", "o"], 2,
     "quantize.accuracy.metric: must be a function of the model, but compare(model, data) cannot "
     "be called with the model as its only argument"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--round-type", "adarond", "-o", "o"], 2,
     "--round-type must be one of"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--bias-correction", "ful", "-o", "o"], 2,
     "'ful'"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--skip", "(", "-o", "o"], 2,
     "regular expression"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--skip", "conv", "-o", "o"], 2,
     "matches no layer"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--input", "x", "-o", "o"], 2, "--input"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--arg", "classes", "-o", "o"], 2, "--arg"),
    (["ptq", "zoo.py:build", "-d", "digits.npz", "--labels", "z", "-o", "o"], 2, "'z'"),
    (["ptq", "float", "--weights", "w", "-d", "images.npy", "-o", "o"], 2, "--weights"),
    (["ptq", "zoo.py:build", "-d", "images.npy", "--hist-percent", "0.9", "-o", "o"], 2,
     "hist_percent"),
    (["dynamic", "nowhere", "-o", "o"], 1, "nowhere"),
    (["dynamic", "zoo.py:build", "--format", "pdmodle", "-o", "o"], 2, "did you mean 'pdmodel'?"),
    (["dynamic", "zoo.py:build", "--bits", "4", "-o", "o"], 2, "'4'"),
    (["dynamic", "zoo.py:build", "--op-type", "conv", "-o", "o"], 2, "'conv'"),
    (["qat-export", "float", "--weights", "w", "-o", "o"], 2, "MODULE:FUNCTION"),
    (["qat-export", "zoo.py:build", "--input", "x:?x1", "-o", "o"], 2, "--weights"),
    (["qat-export", "zoo.py:build", "--input", "x:?x1", "--weights", "no.pdparams", "-o", "o"], 1,
     "no.pdparams"),
    (["ptq", "zoo.py:build", "-d", "coloured.npy", "-o", "o"], 2,
     "data.calibration: does not fit the model, which fails on its first batch: ConfigError"),
    (["run", "no.yaml"], 1, "no.yaml"),
    (["run", "zoo.py"], 2, "zoo.py:"),
    (["inspect", "nowhere"], 1, "nowhere"),
    (["export", "nowhere", "--format", "onnx", "-o", "o"], 1, "nowhere"),
    (["export", "zoo.py:build", "--format", "onnx", "-o", "o"], 2, "--input"),
    (["export", "zoo.py:build", "--format", "pdmodel", "--opset", "17", "-o", "o"], 2, "--opset"),
    (["report", "float", "-d", "images.npy", "-o", "o.html"], 2, "MODULE:FUNCTION"),
    (["sensitivity", "nowhere", "-d", "images.npy"], 1, "nowhere"),
    (["sensitivity", "zoo.py:build", "-d", "images.npy", "--skip", "."], 1, "no layer to quantize"),
    (["inspect", "images.npy"], 1, "images.npy"),
    (["inspect", "net.xml"], 1, "a file for another runtime: give the .pdmodel or .json"),
    (["verify", "nowhere", "-d", "images.npy"], 1, "nowhere"),
    (["verify", "nowhere", "-d", "images.npy", "--batch-size", "0"], 2, "batch_size"),
    (["report", "zoo.py:build", "-d", "no.npy", "-o", "o.html"], 1, "no.npy"),
    (["serve-vdl", "nowhere"], 1, "nowhere"),
])
def test_bad_input(folder, monkeypatch, arguments, status, message):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = content(folder)
    line = error_line(run(folder, *arguments), status)
    assert line.startswith("paddleq: error: ") and message in line
    assert content(folder) == before


@pytest.mark.parametrize("command, arguments, status", [
    ("ptq", ["zoo.py:biuld", "-d", "images.npy", "-o", "o"], 2),
    ("inspect", ["images.npy"], 1),
])
def test_bad_input_in_a_process(folder, command, arguments, status):
    """Each module of commands, each exit status of an error."""
    before = content(folder)
    error_line(run_process(folder, command, *arguments), status)
    assert {name: data for name, data in content(folder).items() if "cache" not in name} == before


def test_ctrl_c_keeps_existing_files(folder):
    (folder / "out").mkdir()
    (folder / "out" / "net.pdmodel").write_text("what was there")
    before = content(folder / "out")
    process = started(folder, "ptq", "zoo.py:build", "-d", "zoo.py:endless", "-o", "out/net",
                      stderr=subprocess.PIPE)
    for _ in range(600):
        if (folder / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert message.splitlines()[-1] == "paddleq: error: interrupted" and "Traceback" not in message
    assert content(folder / "out") == before


CRASHES = {"SIGSEGV": "ctypes.string_at(0)", "SIGABRT": "os.abort()"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a command runs in one process")
@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_of_a_library_is_an_error(name, tmp_path):
    (tmp_path / "zoo.py").write_text(
        f"import ctypes, os\n\n\ndef build():\n    {CRASHES[name]}\n")
    done = run_process(tmp_path, "ptq", "zoo.py:build", "-d", "x.npy", "-o", "out/net")
    assert name in error_line(done, 1) and not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a command runs in one process")
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_no_process(name, tmp_path):
    (tmp_path / "zoo.py").write_text(
        "import os, pathlib, time\n\n\ndef build():\n"
        "    pathlib.Path('started').write_text(str(os.getpid()))\n    time.sleep(600)\n")
    process = started(tmp_path, "ptq", "zoo.py:build", "-d", "x.npy", "-o", "out/net")
    path = tmp_path / "started"
    while not (path.exists() and path.read_text()):
        time.sleep(0.1)
    process.send_signal(name)
    assert process.wait(60) == -name
    child = pathlib.Path(f"/proc/{path.read_text()}/status")
    for _ in range(100):
        if not child.exists() or "State:\tZ" in child.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the process that ran the command is still there")


ACT = """\
Global: {reader_config: reader.yml}
Distillation: {alpha: 1.0, loss: l2}
QuantAware:
  use_pact: true
  activation_quantize_type: moving_average_abs_max
  quantize_op_types: [conv2d, matmul_v2]
TrainConfig:
  train_iter: 4
  learning_rate: {type: CosineAnnealingDecay, learning_rate: 0.00003, T_max: 4}
  optimizer_builder: {optimizer: {type: SGD}, weight_decay: 4.0e-05}
"""


def test_distill(saved, tmp_path):
    net, x = saved
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=[32, 3, 8, 8]).astype("f4"))
    write(tmp_path / "act.yaml", ACT)
    for options in (["--config", "act.yaml"],
                    ["--epochs", 2, "--loss", "cosine", "--weight-bits", 4, "--eval-data", "x.npy"],
                    ["--config", "act.yaml", "--steps", 2, "--optimizer", "Adam"]):
        done = run(tmp_path, "distill", "net", "-d", "x.npy", "--batch-size", 8, "-o", "out/net",
                   "--format", "pdmodel", *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("wrote out/net.pdmodel")
        (found,) = paddle_inference(tmp_path / "out/net", [x.numpy()])
        assert 1e-5 < relative_error(found, net(x).numpy()) < 0.3


@pytest.mark.parametrize("text, options, message", [
    ("QuantPost: {batch_size: 8}\n", [], "QuantPost of ACT is not supported"),
    ("ChannelPrune: {pruned_ratio: 0.2}\n", [], "does not prune"),
    ("QuantAware: {use_pct: true}\n", [], "did you mean 'use_pact'"),
    (ACT.replace("SGD", "SGDX"), [], "did you mean 'SGD'"),
    (ACT.replace("loss: l2", "loss: fsp"), [], "must be one of"),
    (ACT, ["--epochs", 1, "--steps", 2], "one of epochs and train_iter"),
    (ACT, ["--loss", "l3"], "loss must be one of"),
])
def test_invalid_distillations(text, options, message, saved, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros([8, 3, 8, 8], "float32"))
    write(tmp_path / "act.yaml", text)
    done = run(tmp_path, "distill", "net", "-d", "x.npy", "--config", "act.yaml", "-o", "out/net",
               *options)
    assert message in error_line(done, 2)
