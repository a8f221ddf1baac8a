"""Damaged and hostile input files, and the outcome of reading each of them.

    PYTHONPATH=... python mutations.py FIRST COUNT [KIND ...]

A mutation is determined by its kind of file and a number. Workers read the files, so that an end of
the process or a hang is one more outcome. Prints a line of JSON for each outcome that is no success
and no error of paddleq, and the counts by kind at the end.
"""

import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)
from collections import Counter
from pathlib import Path

_HERE, _ROOT = str(Path(__file__).parent), str(Path(__file__).parents[2])
CPU_SECONDS, SECONDS, MEGABYTES = 10, 90, 2000
GOOD = ("accepted", "refused")
_INTEGERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 4096, 65536, 2 ** 31 - 1, -2 ** 31, 2 ** 40,
             2 ** 63 - 1, -2 ** 63)
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"))
_TEXTS = ("", "x", "\0", "a\0b", "é", "../x", "/dev/zero", "feed", "fetch", "X", "Out", "conv2d",
          "while", "y" * 5000)


# ---- mutations of bytes and of structures -------------------------------------------------------

def mutate_bytes(random, data):
    """Return ``data`` with bytes changed, removed, repeated or inserted."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        at, length = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at:at + length] = random.randbytes(length)
        elif kind == 2:
            data[at:at + length] = bytes([random.choice((0, 255, 127))]) * length
        elif kind == 3:
            del data[at:at + length]
        elif kind == 4:
            data[at:at] = data[max(at - length, 0):at]
        elif random.randrange(4) == 0:
            del data[at:]
    return bytes(data)


def mutate_tree(random, value, names):
    """Return a JSON or YAML value with one to three nodes replaced, removed or repeated."""
    for _ in range(random.choice((1, 1, 2, 3))):
        nodes = list(_nodes(value))
        if not nodes:
            return value
        parent, key = random.choice(nodes)
        action = random.randrange(5)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif action == 2:
            other, place = random.choice(nodes)
            parent[key] = json.loads(json.dumps(other[place]))
        else:
            parent[key] = _other_value(random, parent[key], names)
    return value


def _nodes(value):
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    for key, child in items:
        yield value, key
        yield from _nodes(child)


def _other_value(random, value, names):
    if random.randrange(6) == 0:
        return random.choice((None, True, [], {}, [[]], "x", 3, -1, 0.5, [1, 2, 3]))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((*_INTEGERS, value + 1, value - 1, value * 2))
    if isinstance(value, float):
        return random.choice(_FLOATS)
    if isinstance(value, str):
        return random.choice((*_TEXTS, "\ud800", *random.sample(names, min(8, len(names)))))
    return random.choice((None, [], {}, 0, ""))


def mutate_message(random, message, names):
    """Change one to three fields anywhere in a protobuf message, in place."""
    for _ in range(random.choice((1, 1, 2, 3))):
        _mutate_field(random, random.choice(list(_messages(message))), names)


def _messages(message):
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for each in (value if hasattr(value, "add") else [value]):
                yield from _messages(each)


def _mutate_field(random, message, names):
    fields = [field for field, _ in message.ListFields()]
    field = random.choice(list(message.DESCRIPTOR.fields) if not fields or random.randrange(5) == 0
                          else fields)
    value = getattr(message, field.name)
    repeated = hasattr(value, "extend")
    if random.randrange(5) == 0:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        if repeated and len(value) and random.randrange(2):
            value.add().CopyFrom(random.choice(list(value)))
        elif repeated and len(value):
            del value[random.randrange(len(value))]
        elif repeated:
            value.add()
        else:
            value.SetInParent()
    elif repeated:
        kind = random.randrange(3)
        if kind == 0 and len(value):
            del value[random.randrange(len(value))]
        elif kind == 1 and len(value):
            value[random.randrange(len(value))] = _scalar(random, field, names)
        else:
            value.append(_scalar(random, field, names))
    else:
        setattr(message, field.name, _scalar(random, field, names))


def _scalar(random, field, names):
    if field.enum_type is not None:
        return random.choice([each.number for each in field.enum_type.values])
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice(_FLOATS)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.type == field.TYPE_BYTES:
        return random.randbytes(random.choice((0, 1, 16)))
    if field.cpp_type == field.CPPTYPE_STRING:
        return random.choice((*_TEXTS, *random.sample(names, min(8, len(names)))))
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    low, high = (0, 2 ** bits) if unsigned else (-2 ** (bits - 1), 2 ** (bits - 1))
    return random.choice([each for each in _INTEGERS if low <= each < high])


# ---- files --------------------------------------------------------------------------------------

def make_files(folder):
    """Write a valid file of each kind."""
    import numpy as np
    import paddle
    import yaml
    from nets import calibrated
    from paddle import nn
    from paddle.static import InputSpec
    from PIL import Image

    import paddleq
    from paddleq.export.trace import trace_float
    from paddleq.nn import IntegerLinear

    folder = Path(folder)
    x = paddle.rand([2, 3, 8, 8])
    spec = [InputSpec([None, 3, 8, 8], "float32", "x")]
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU(),
                        nn.MaxPool2D(2, 2), nn.Conv2D(4, 6, 1, groups=2), nn.Flatten(),
                        nn.Linear(96, 10), nn.Softmax())
    net.eval()
    _, quantized = calibrated(net, x)
    paddleq.save_quantized_model(quantized, folder / "int8", spec)
    (folder / "int8.paddleq.yaml").unlink()
    for name, model, given in (("float", net, spec), ("blocks", Blocks(), [
            InputSpec([None, 4], "float32", "x")])):
        model.eval()
        trace_float(model, given).save(str(folder / f"{name}.pdmodel"),
                                       str(folder / f"{name}.pdiparams"))
        if int(paddle.__version__[0]) >= 3:
            paddle.jit.save(model, str(folder / f"pir_{name}"), given)
    for name in ("int8", "float"):
        paddleq.export.to_onnx(folder / name, folder / name)
        (folder / f"{name}.paddleq.yaml").unlink()
    integers = nn.Sequential(IntegerLinear(8, 4, paddleq.QuantSpec()), nn.Linear(4, 2))
    paddleq.save_checkpoint(integers, folder / "checkpoint")
    paddle.save(integers.state_dict(), str(folder / "state.pdparams"))
    np.savez(folder / "data.npz", x=x.numpy(), y=np.arange(2))
    np.save(folder / "data.npy", x.numpy())
    pixels = (np.random.RandomState(0).rand(16, 16, 3) * 255).astype("uint8")
    for ending in ("png", "jpg", "bmp"):
        Image.fromarray(pixels).save(folder / f"image.{ending}")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({
        "paddleq": 1, "model": {"path": "float"},
        "data": {"calibration": {"source": "data.npy", "batch_size": 2, "batches": 1}},
        "quantize": {"method": "ptq", "activation_quantizer": {"name": "AbsmaxQuantizer"},
                     "skip": ["conv2d_1.w_0"]},
        "export": [{"format": "pdmodel", "path": "out/m"}]}, sort_keys=False))


def _blocks():
    import paddle
    from paddle import nn

    class Blocks(nn.Layer):
        """Net with a condition, a loop, a recurrent layer and views."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.norm, self.rnn = nn.LayerNorm(4), nn.GRU(4, 4)

        def forward(self, x):
            if x.sum() > 0:  # noqa: SIM108  (not every Paddle traces an expression)
                x = self.first(x)
            else:
                x = self.second(x) + 1.0
            steps = paddle.zeros([1], "int32")
            while steps < 2:
                x, steps = x * 0.5, steps + 1
            y = paddle.concat([x, x], axis=1).reshape([-1, 2, 4]).transpose([1, 0, 2])
            return self.norm(self.rnn(y)[0]).sum(axis=0)

    return Blocks()


Blocks = _blocks
_PROGRAMS = ("int8", "float", "blocks")
KINDS = ("pdmodel", "pdiparams", "pir", "onnx", "checkpoint", "pdparams", "npz", "image", "recipe",
         "record")


def write_mutation(kind, number, source, folder):
    """Write the mutation ``number`` of a kind of file to ``folder``; return the main file."""
    chosen = random.Random(f"{kind} {number}")
    source, folder = Path(source), Path(folder)

    def copied(name, change=None):
        data = (source / name).read_bytes()
        (folder / name).write_bytes(data if change is None else change(data))
        return str(folder / name)

    def message(make):
        def change(data):
            if chosen.randrange(3) == 0:
                return mutate_bytes(chosen, data)
            parsed = make()
            parsed.ParseFromString(data)
            names = sorted(set(re.findall(r'"([\w.@]+)"', str(parsed))))
            mutate_message(chosen, parsed, names)
            return parsed.SerializePartialToString()
        return change

    def tree(load, dump):
        def change(data):
            if chosen.randrange(3) == 0:
                return mutate_bytes(chosen, data)
            names = sorted(set(re.findall(r"[\w.]+", data.decode())))
            return dump(mutate_tree(chosen, load(data), names))
        return change

    def flip(data):
        return mutate_bytes(chosen, data)

    json_tree = tree(json.loads, lambda value: json.dumps(value).encode())
    if kind in ("pdmodel", "pdiparams"):
        from paddleq._paddle_compat import framework_proto

        name = chosen.choice(_PROGRAMS)
        path = copied(f"{name}.pdmodel", message(framework_proto().ProgramDesc)
                      if kind == "pdmodel" else None)
        copied(f"{name}.pdiparams", flip if kind == "pdiparams" else None)
        return path
    if kind == "pir":
        name = chosen.choice(("pir_float", "pir_blocks"))
        copied(f"{name}.pdiparams")
        return copied(f"{name}.json", json_tree)
    if kind == "onnx":
        import onnx

        return copied(chosen.choice(("int8.onnx", "float.onnx")), message(onnx.ModelProto))
    if kind == "checkpoint":
        first = chosen.random() < 0.5
        copied("checkpoint.json", json_tree if first else None)
        return copied("checkpoint.safetensors", None if first else flip)
    if kind == "pdparams":
        return copied("state.pdparams", flip)
    if kind == "npz":
        return copied(chosen.choice(("data.npz", "data.npy")), flip)
    if kind == "image":
        return copied(f"image.{chosen.choice(('png', 'jpg', 'bmp'))}", flip)
    for name in ("float.pdmodel", "float.pdiparams", "data.npy"):
        copied(name)
    import yaml

    yaml_tree = tree(yaml.safe_load, lambda value: yaml.safe_dump(value, sort_keys=False).encode())
    if kind == "recipe":
        return copied("recipe.yaml", yaml_tree)
    record = {"exports": [{"format": "pdmodel", "files": {"float.pdmodel": "0" * 64},
                           "made_from": {"x": "y"}, "layers": [{"name": "conv"}]}]}
    (folder / "float.paddleq.yaml").write_bytes(yaml_tree(yaml.safe_dump(record).encode()))
    return str(folder / "float.pdmodel")


# ---- reading ------------------------------------------------------------------------------------

def actions(kind, path, out):
    """Return the functions that read a file of a kind."""
    import numpy as np
    from paddle import nn

    import paddleq
    from paddleq.checkpoint import load_state, read_state
    from paddleq.deploy import Predictor, to_paddle_int8, verify
    from paddleq.export.pir_to_program import load_program
    from paddleq.export.program.inspect import inspect
    from paddleq.nn import IntegerLinear
    from paddleq.recipes import Recipe, run
    from paddleq.recipes.sources import open_data

    folder, stem = os.path.dirname(path), os.path.splitext(path)[0]
    x = np.ones([2, 4] if "blocks" in stem else [2, 3, 8, 8], "float32")

    def predict(runtime):
        with Predictor(path, runtime, 1) as predictor:
            predictor.run(x)

    def integers():
        return nn.Sequential(IntegerLinear(8, 4, paddleq.QuantSpec()), nn.Linear(4, 2))

    program = {
        "inspect": lambda: inspect(load_program(path, stem + ".pdiparams")),
        "SavedModel": lambda: paddleq.SavedModel(path)(x),
        "quant_post_dynamic": lambda: paddleq.quant_post_dynamic(folder, out),
        "quant_post_static": lambda: paddleq.quant_post_static(folder, out, [x]),
        "Predictor": lambda: predict("paddle"),
    }
    if kind in ("pdmodel", "pdiparams", "record"):
        return {**program, "to_paddle_int8": lambda: to_paddle_int8(path, out + "/m"),
                "save": lambda: paddleq.SavedModel(path).save(out + "/m"),
                "verify": lambda: verify(path, None, x, runtimes=["paddle"], seconds=0),
                "to_onnx": lambda: paddleq.export.to_onnx(path, out + "/m")}
    if kind == "pir":
        return {**program, "convert": lambda: paddleq.export.to_program_desc(path, out + "/m")}
    if kind == "onnx":
        return {name: lambda name=name: predict(name) for name in ("onnxruntime", "openvino")}
    if kind == "checkpoint":
        return {"load": lambda: paddleq.load_checkpoint(integers(), stem),
                "read_state": lambda: read_state(path)}
    if kind == "pdparams":
        return {"load": lambda: load_state(integers(), read_state(path), path)}
    if kind == "npz":
        return {"read": lambda: list(open_data(path, batch_size=1))}
    if kind == "image":
        return {"read": lambda: list(open_data(folder, batch_size=1))}
    return {"load": lambda: Recipe.load(path), "run": lambda: run(Recipe.load(path))}


def outcome(kind, number, source, folder):
    """Return (outcome, action, message) of reading one mutation."""
    import paddleq

    path = write_mutation(kind, number, source, folder)
    known = actions(kind, path, os.path.join(folder, "out"))
    name = random.Random(f"action {number}").choice(sorted(known))
    sys.stdout.write(json.dumps([name]) + "\n")
    sys.stdout.flush()
    try:
        known[name]()
    except paddleq.errors.PaddleqError as error:
        return "refused", name, f"{type(error).__name__}: {error}"[:300]
    except BaseException as error:
        import traceback

        places = [f"{os.path.relpath(frame.filename)}:{frame.lineno}"
                  for frame in traceback.extract_tb(error.__traceback__)
                  if "paddleq" in frame.filename and "site-packages" not in frame.filename]
        return "untyped", name, (f"{type(error).__name__}: {error}"[:200]
                                 + " at " + " ".join(places[-3:]))
    return "accepted", name, ""


def _peak():
    """Return the peak memory in megabytes since the last call."""
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak / 1024


def work(source):
    """Read "kind number" lines from stdin and write an outcome for each."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = answers
    import paddleq  # noqa: F401

    for line in sys.stdin:
        kind, number = line.split()
        folder = tempfile.mkdtemp()
        start, _ = time.process_time(), _peak()
        found = outcome(kind, int(number), source, folder)
        seconds, memory = time.process_time() - start, _peak()
        shutil.rmtree(folder, ignore_errors=True)
        answers.write(json.dumps([*found, seconds, memory]) + "\n")
        answers.flush()


class Worker:
    """Process that reads mutations, started again after it ended."""

    def __init__(self, source):
        self.source, self.process = source, None

    def read(self, kind, number):
        """Return (outcome, action, message, CPU seconds, megabytes)."""
        if self.process is None:
            self.buffer = b""
            self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
            self.process = subprocess.Popen(
                [sys.executable, __file__, "work", self.source], text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self.log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((_HERE, _ROOT))})
        self.process.stdin.write(f"{kind} {number}\n")
        self.process.stdin.flush()
        action, start, base = "?", time.monotonic(), self._cpu()
        while True:
            if b"\n" in self.buffer or select.select([self.process.stdout], [], [], 0.5)[0]:
                line = self._line()
                if line is None:
                    code = self.process.wait()
                    self.log.seek(0)
                    tail = [each for each in self.log.read().splitlines() if "paddle" in each]
                    self.process = None
                    return "ended", action, f"{code} {' | '.join(tail[-6:])}", 0.0, 0.0
                found = json.loads(line)
                if len(found) > 1:
                    return self._checked(found)
                action = found[0]
            elif self._cpu() - base > 2 * CPU_SECONDS or time.monotonic() - start > SECONDS:
                self.close()
                return "hung", action, "", 0.0, 0.0

    def _line(self):
        """Return the next line of the process, None at its end. (select sees no read-ahead.)"""
        while b"\n" not in self.buffer:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _checked(self, found):
        result, action, message, seconds, memory = found
        if result in GOOD and seconds > CPU_SECONDS:
            result = "slow"
        if result in GOOD and memory > MEGABYTES:
            result = "memory"
        return result, action, message, seconds, memory

    def _cpu(self):
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def sweep(kinds, numbers, source, report=None):
    """Return Counter of (kind, outcome), and the list of outcomes that must not be."""
    worker, counts, wrong = Worker(source), Counter(), []
    try:
        for number in numbers:
            for kind in kinds:
                found = worker.read(kind, number)
                counts[kind, found[0]] += 1
                if found[0] not in GOOD:
                    wrong.append({"kind": kind, "number": number, "outcome": found[0],
                                  "action": found[1], "message": found[2]})
                    if report:
                        report(wrong[-1])
    finally:
        worker.close()
    return counts, wrong


def main():
    if sys.argv[1] == "work":
        work(sys.argv[2])
        return
    first, count = map(int, sys.argv[1:3])
    source = os.environ.get("MUTATION_FILES") or tempfile.mkdtemp()
    if not os.path.exists(source + "/recipe.yaml"):
        os.makedirs(source, exist_ok=True)
        make_files(source)
    counts, _ = sweep(sys.argv[3:] or KINDS, range(first, first + count), source,
                      lambda each: print(json.dumps(each), flush=True))
    print(json.dumps({" ".join(key): value for key, value in sorted(counts.items())}))


if __name__ == "__main__":
    main()
