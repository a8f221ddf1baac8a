"""The ``paddleq`` command, run as a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.export import params
from paddleq.export.program import Program, framework_proto

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(folder, *arguments):
    """``paddleq`` with ``arguments``, run in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "paddleq", *map(str, arguments)], cwd=folder,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False)


def content(folder):
    """Every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def refused(done, status):
    """The one line that says why; Paddle's own warnings may stand before it."""
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
    """What Paddle 3 saves for ``kind(x, b)``, written by hand so that every Paddle has it."""
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
def test_a_saved_model_is_written_and_one_line_says_so(saved, tmp_path):
    net, x = saved
    before = content(tmp_path)
    done = run(tmp_path, "to-pdmodel", "net.json", "-o", "new/folder/net")
    assert done.returncode == 0, done.stderr
    after = content(tmp_path)
    model, weights = "new/folder/net.pdmodel", "new/folder/net.pdiparams"
    assert set(after) - set(before) == {model, weights}
    program = Program.load(tmp_path / model, tmp_path / weights)
    count = len([op for op in program.desc.blocks[0].ops if op.type not in ("feed", "fetch")])
    assert count >= 6  # convolution, norm, GELU, mean, product, bias
    assert done.stdout == (f"wrote {model} and {weights}: {count} operators, "
                           f"{len(after[model]) + len(after[weights]):,} bytes\n")
    (found,) = paddle_inference(tmp_path / "new/folder/net", [x.numpy()])
    assert relative_error(found, net(x).numpy()) < 1e-6


@pytest.mark.needs_pir
def test_parameters_may_have_another_name(saved, tmp_path):
    net, x = saved
    os.rename(tmp_path / "net.pdiparams", tmp_path / "weights")
    # The prefix is enough, and an output with its suffix is the same output.
    done = run(tmp_path, "to-pdmodel", "net", "--params", "weights", "-o", "old.pdmodel")
    assert done.returncode == 0, done.stderr
    (found,) = paddle_inference(tmp_path / "old", [x.numpy()])
    assert relative_error(found, net(x).numpy()) < 1e-6


@pytest.mark.needs_pir
def test_damaged_parameters(saved, tmp_path):
    data = (tmp_path / "net.pdiparams").read_bytes()
    (tmp_path / "net.pdiparams").write_bytes(data[:-5])
    before = content(tmp_path)
    said = refused(run(tmp_path, "to-pdmodel", "net.json", "-o", "out/net"), 1)
    assert said.startswith("paddleq: error: net.pdiparams is damaged or belongs to another model")
    assert content(tmp_path) == before


def test_it_needs_no_paddle_3(tmp_path):
    write(tmp_path / "m.json", pir("add"))
    params.write(tmp_path / "m.pdiparams", {"b": np.float32([3, 2, 1])}, {}, framework_proto())
    done = run(tmp_path, "to-pdmodel", "m.json", "-o", "m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote m.pdmodel and m.pdiparams: 1 operators, ")
    x = np.array([[-1, 0, 2]], "float32")
    np.testing.assert_array_equal(paddle_inference(tmp_path / "m", [x])[0], [[2, 2, 3]])


@pytest.mark.parametrize("stored, said", [
    (None, "there is no file m.json"),
    ("{\n", "m.json is no JSON"),
    ({"base_code": {"magic": "onnx"}}, "m.json is no PIR program that can be read: its magic is "),
    (pir("frobnicate"), "the operator frobnicate in /Net/Strange/ is not in paddleq's operator "),
], ids=["missing", "no JSON", "no PIR", "unsupported operator"])
def test_models_that_cannot_be_converted(stored, said, tmp_path):
    if stored is not None:
        write(tmp_path / "m.json", stored)
        params.write(tmp_path / "m.pdiparams", {"b": np.float32([3, 2, 1])}, {},
                     framework_proto())
    write(tmp_path / "old.pdmodel", "what was there")
    write(tmp_path / "old.pdiparams", "before")
    before = content(tmp_path)
    line = refused(run(tmp_path, "to-pdmodel", "m.json", "-o", "old"), 1)
    assert line.startswith(f"paddleq: error: {said}")
    assert content(tmp_path) == before


def test_a_target_that_cannot_be_written(tmp_path):
    write(tmp_path / "m.json", pir("add"))
    params.write(tmp_path / "m.pdiparams", {"b": np.zeros(3, "float32")}, {}, framework_proto())
    write(tmp_path / "file", "no folder")
    before = content(tmp_path)
    line = refused(run(tmp_path, "to-pdmodel", "m.json", "-o", "file/m"), 1)
    assert line.startswith("paddleq: error: cannot write file/m.pdmodel: ")
    assert content(tmp_path) == before


@pytest.mark.parametrize("arguments, said", [
    ([], "the following arguments are required: COMMAND"),
    (["to-onnx", "m.json"], "invalid choice: 'to-onnx'"),
    (["to-pdmodel", "m.json"], "the following arguments are required: -o/--output"),
    (["to-pdmodel", "m.json", "-o", "."], "output must be the prefix of files"),
], ids=["nothing", "unknown command", "no output", "a folder"])
def test_a_wrong_command_line(arguments, said, tmp_path):
    assert said in refused(run(tmp_path, *arguments), 2)
    assert content(tmp_path) == {}


def test_version(tmp_path):
    done = run(tmp_path, "--version")
    assert done.returncode == 0
    assert done.stdout == f"paddleq {paddleq.__version__} (Paddle {paddle.__version__})\n"


@pytest.mark.parametrize("command", [[], ["to-pdmodel"]], ids=["paddleq", "to-pdmodel"])
def test_help_has_examples(command, tmp_path):
    done = run(tmp_path, *command, "--help")
    assert done.returncode == 0
    assert "example" in done.stdout and "  paddleq to-pdmodel model.json -o " in done.stdout
