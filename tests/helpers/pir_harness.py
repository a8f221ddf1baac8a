"""Saving, converting and running the small programs of ``pir_cases.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np
import paddle
from runtimes import paddle_inference

from paddleq.export import to_program_desc


class Case(NamedTuple):
    """A small program.

    Attributes:
        ops: names of PIR operations that occur in it.
        function: what it does; a function of tensors.
        inputs: numpy arrays that it is run on.
        spec: shapes that it is traced with, None where a dimension is not known.
        reference: what dygraph computes instead, for operations that it has not.
        make: makes a layer, called anew for each run, which ``function`` gets first.
        check: compares outputs found and expected where equality is not what one expects.
        tolerance: relative L2 distance that is allowed.
    """

    ops: tuple
    function: Callable
    inputs: tuple
    spec: tuple
    make: Optional[Callable]
    reference: Optional[Callable]
    check: Optional[Callable]
    tolerance: float


class _Net(paddle.nn.Layer):
    def __init__(self, case):
        super().__init__()
        self.layer = case.make and case.make()
        self.function, self.reference = case.function, case.reference

    def call(self, *tensors):
        if self.layer is not None:
            tensors = (self.layer, *tensors)
        if self.reference is not None and paddle.in_dynamic_mode():
            return self.reference(*tensors)
        return self.function(*tensors)


class _Net0(_Net):
    def forward(self):
        return self.call()


class _Net1(_Net):
    def forward(self, a):
        return self.call(a)


class _Net2(_Net):
    def forward(self, a, b):
        return self.call(a, b)


class _Net3(_Net):
    def forward(self, a, b, c):
        return self.call(a, b, c)


class _Net4(_Net):
    def forward(self, a, b, c, d):
        return self.call(a, b, c, d)


class _Net5(_Net):
    def forward(self, a, b, c, d, e):
        return self.call(a, b, c, d, e)


_NETS = (_Net0, _Net1, _Net2, _Net3, _Net4, _Net5)


def net(case):
    """The layer of a case."""
    paddle.seed(0)
    made = _NETS[len(case.inputs)](case)
    made.eval()
    return made


def specs(case):
    """Return the input specs to trace the case with."""
    return [paddle.static.InputSpec(shape, each.dtype.name, name)
            for name, shape, each in zip("abcde", case.spec, case.inputs)]


def expected(case):
    """The layer, and what it computes in dygraph: numpy arrays, each result once."""
    made = net(case)
    tensors = [paddle.to_tensor(each) for each in case.inputs]
    results = [each for each in paddle.utils.flatten(made(*tensors)) if each is not None]
    # A result that is returned twice is saved once.
    return made, [each.numpy() for each in {id(each): each for each in results}.values()]


def save(case, prefix):
    """Save the case as PIR; returns what dygraph computes."""
    made, arrays = expected(case)
    if "array_to_tensor" in case.ops:
        _save_apart(case, prefix)
    else:
        paddle.jit.save(made, prefix, input_spec=specs(case))
    return arrays


def _save_apart(case, prefix):
    """Trace in a process of its own, anew where that crashes.

    Paddle 3.1 reads memory that is not its own when it traces concat() or stack() of an array;
    whether that ends the process hangs on what ran in it before.
    """
    script = ("import sys, zlib, paddle, pir_cases, pir_harness as h; "
              "case = pir_cases.CASES[int(sys.argv[1])]; "
              "paddle.jit.save(h.net(case), sys.argv[2], input_spec=h.specs(case))")
    from pir_cases import CASES

    number = next(i for i, each in enumerate(CASES) if each is case)
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", script, str(number), str(Path(prefix).resolve())],
            cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        if done.returncode == 0:
            return
        if done.returncode > 0:
            break
    raise RuntimeError(f"tracing ended with {done.returncode}: {done.stdout[-2000:]}")


def operations(path):
    """Names of the operations in a ``.json``, without dialect numbers of Paddle's own."""
    with open(path, encoding="utf-8") as file:
        return {name for name, _ in each_operation(json.load(file)["program"]["regions"][0])}


def each_operation(region):
    """(name, content) of each operation in a region and in those inside of it."""
    for block in region["blocks"]:
        for each in block["ops"]:
            dialect, _, name = each["#"].partition(".")
            prefix = {"0": "builtin.", "1": "", "2": "cf."}.get(dialect)
            yield "builtin.parameter" if dialect == "p" else f"{prefix}{name}", each
            for inner in each.get("regions") or []:
                yield from each_operation(inner)


def run(case, prefix, wanted):
    """Convert the saved case and compare Paddle Inference with dygraph."""
    output = f"{prefix}.old"
    missing = set(case.ops) - operations(f"{prefix}.json")
    assert not missing, f"the program has no {missing}, only {operations(f'{prefix}.json')}"
    to_program_desc(prefix, output)
    compare(case, paddle_inference(output, case.inputs), wanted)


def compare(case, found, wanted):
    """Assert that a runtime's outputs are those of dygraph."""
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted):
        assert got.dtype == want.dtype and got.shape == want.shape, (
            got.dtype, want.dtype, got.shape, want.shape)
    if case.check is not None:
        case.check(found, wanted)
        return
    for got, want in zip(found, wanted):
        if want.dtype.kind != "f":
            assert np.array_equal(got, want), (got, want)
            continue
        finite = np.isfinite(want)
        assert np.array_equal(np.where(finite, 0, got), np.where(finite, 0, want),
                              equal_nan=True), (got, want)
        got, want = (np.float64(each[finite]) for each in (got, want))
        distance = np.linalg.norm(got - want)
        assert distance <= case.tolerance * np.linalg.norm(want), (got, want)
