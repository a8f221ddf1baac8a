"""The .pdmodel converted from PIR against the one of Paddle 2.6, operator by operator.

Both are written from the same weights. Only these differences are allowed:

- 2.6 has a ``scale`` by one before each fetch, which renames the output; from PIR the value itself
  has the name of the output.
- ``pool2d.use_cudnn``: it chooses a library on a GPU; PIR has no such attribute.
- ``dropout``: 2.6 strips ``seed``, ``fix_seed`` and ``Mask`` when it saves; outside of training
  nothing reads them.
- Paddle 3 counts sizes in int64, the legacy ``shape`` in int32: casts stand between, and numbers
  beside them are int64 and of one element, not of none. ``fill_constant.force_cpu``: 2.6 keeps
  such numbers on the CPU, PIR does not say.

Needs the Python of an environment with Paddle 2.6 (`make env-2.6`, or PADDLEQ_26_PYTHON),
which runs this file as a script.
"""

import hashlib
import os
import subprocess
import sys
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.static import InputSpec
from paddle.vision import models
from paths import HELPERS, ROOT

from paddleq._paddle_compat import framework_proto
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.passes.runtime_workarounds import apply_runtime_workarounds

pytestmark = [pytest.mark.two_versions, pytest.mark.needs_pir]


class Encoder(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu")
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 5)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens))[:, 0])


class Recurrent(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1D(4, 8, 3, padding=1)
        self.lstm, self.fc = nn.LSTM(8, 16, direction="bidirect"), nn.Linear(32, 7)

    def forward(self, x):
        y, _ = self.lstm(self.conv(x).transpose([0, 2, 1]))
        return F.log_softmax(self.fc(y))


FIVE = {
    "MobileNetV3": (lambda: models.mobilenet_v3_small(num_classes=10), [None, 3, 64, 64],
                    "float32"),
    "ShuffleNetV2": (lambda: models.shufflenet_v2_x0_25(num_classes=10), [None, 3, 64, 64],
                     "float32"),
    "GoogLeNet": (lambda: models.googlenet(num_classes=10), [None, 3, 224, 224], "float32"),
    "Encoder": (Encoder, [None, 7], "int64"),
    "Recurrent": (Recurrent, [None, 4, 9], "float32"),
}


def save(name, folder):
    """Save a model with weights that do not depend on the version of Paddle."""
    make, shape, dtype = FIVE[name]
    net, rng = make(), np.random.RandomState(0)
    for value in net.state_dict().values():
        value.set_value(rng.rand(*value.shape).astype("float32"))
    net.eval()
    paddle.jit.save(net, f"{folder}/{name}", [InputSpec(shape, dtype, "x")])


@pytest.fixture(scope="module")
def old_files(tmp_path_factory):
    named = os.environ.get("PADDLEQ_26_PYTHON")
    python = Path(named) if named else ROOT / ".venv-2.6" / "bin" / "python"
    if not python.is_file():
        pytest.fail(f"there is no {python}: run `make env-2.6`, or name a Python with Paddle 2.6 "
                    "in PADDLEQ_26_PYTHON")
    folder = tmp_path_factory.mktemp("old")
    done = subprocess.run([str(python), __file__, str(folder)], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}"})
    assert done.returncode == 0, done.stdout[-2000:]
    return folder


NOTES = {"op_callstack", "op_role", "op_role_var", "op_namescope", "op_device", "with_quant_attr",
         "use_mkldnn", "mkldnn_data_type"}  # no operator computes otherwise because of these


def operators(program):
    """Return [(type, attributes, inputs, outputs)]; values are named after their producers.

    A parameter is named by its content, so that an operator that reads another one is found out.
    """
    names = {name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:8]
             for name, array in program.arrays.items()}
    kinds = {number: name for name, number in framework_proto().AttrType.items()}
    fields = {"INT": "i", "FLOAT": "f", "STRING": "s", "BOOLEAN": "b", "LONG": "l", "INTS": "ints",
              "FLOATS": "floats", "LONGS": "longs"}
    listed = []
    for op in program.desc.blocks[0].ops:
        attributes = {}
        for each in op.attrs:
            if each.name not in NOTES:
                value = getattr(each, fields[kinds[each.type]])
                attributes[each.name] = (kinds[each.type], value if isinstance(
                    value, (int, float, str, bool)) else list(value))
        inputs = {slot.parameter: [names.get(name, name) for name in slot.arguments]
                  for slot in op.inputs if slot.arguments}
        if op.type not in ("feed", "fetch"):
            for slot in op.outputs:
                for i, name in enumerate(slot.arguments):
                    if name not in program.arrays:
                        names[name] = f"{len(listed)}.{slot.parameter}.{i}"
            listed.append((op.type, attributes, inputs,
                           sorted(slot.parameter for slot in op.outputs if slot.arguments)))
        elif op.type == "fetch":
            listed.append((op.type, attributes, inputs, []))
    return listed


def without_renaming(program):
    """Return the program of 2.6 without the ``scale`` before each fetch."""
    ops = program.desc.blocks[0].ops
    made_by = {name: op for op in ops for slot in op.outputs for name in slot.arguments}
    for op in list(ops):
        if op.type == "fetch":
            scale = made_by[op.inputs[0].arguments[0]]
            assert scale.type == "scale" and "save_infer_model" in scale.outputs[0].arguments[0]
            (source,) = [slot.arguments[0] for slot in scale.inputs if slot.parameter == "X"]
            op.inputs[0].arguments[0] = source
            ops.remove(scale)


def without_casts_of_sizes(program):
    """Return the program of PIR with sizes in int32, as in 2.6."""
    ops, renamed, sizes = program.desc.blocks[0].ops, {}, set()
    for op in list(ops):
        for slot in op.inputs:
            for i, name in enumerate(slot.arguments):
                slot.arguments[i] = renamed.get(name, name)
        source = op.inputs[0].arguments[0] if op.inputs else None
        if op.type == "shape" or op.type == "slice" and source in sizes:
            sizes.add(op.outputs[0].arguments[0])
        elif op.type == "cast" and source in sizes:
            renamed[op.outputs[0].arguments[0]] = source
            ops.remove(op)


def comparable(kind, attributes, inputs, outputs):
    """Return an operator without the allowed differences."""
    attributes = dict(attributes)
    if kind == "pool2d":
        attributes.pop("use_cudnn", None)
    if kind == "dropout":
        attributes.pop("seed", None)
        attributes.pop("fix_seed", None)
        outputs = [slot for slot in outputs if slot != "Mask"]
    if kind == "fill_constant":
        attributes.pop("force_cpu", None)
        if attributes["shape"][1] in ([], [1]):  # a part of a shape
            del attributes["shape"], attributes["dtype"]
    return kind, attributes, inputs, outputs


@pytest.mark.parametrize("name", FIVE)
def test_operator_by_operator(name, old_files, tmp_path):
    save(name, tmp_path)
    old = load_program(f"{old_files}/{name}.pdmodel", f"{old_files}/{name}.pdiparams")
    new = load_program(f"{tmp_path}/{name}.json", f"{tmp_path}/{name}.pdiparams")
    assert old.arrays.keys() and len(old.arrays) == len(new.arrays)
    without_renaming(old)
    without_casts_of_sizes(new)
    for program in (old, new):
        apply_runtime_workarounds(program)
    old, new = ([comparable(*op) for op in operators(program)] for program in (old, new))
    assert [op[0] for op in old] == [op[0] for op in new]
    for number, (one, other) in enumerate(zip(old, new)):
        assert one == other, f"operator {number}"


if __name__ == "__main__":
    for each in FIVE:
        save(each, sys.argv[1])
