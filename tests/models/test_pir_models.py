"""Models that Paddle 3 saves as PIR, float and quantized, run as a .pdmodel.

``python tests/test_pir_models.py [model ...]`` prints the list and the differences.
"""

import sys
import tempfile
import time
import warnings
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

import numpy as np
import paddle
import pytest
import zoo
from runtimes import openvino, paddle_inference, relative_error

import paddleq

pytestmark = [pytest.mark.slow, pytest.mark.needs_pir]

METHODS = ("float", "qat", "ptq")
# Operators that OpenVINO's frontend does not have, and models that need them.
OPENVINO_LACKS = {"CRNN, log_softmax": "log_softmax", "SSD, NMS": "argsort"}


def export(name, method, path):
    """Write a model of the zoo as ``path.pdmodel``.

    Returns:
        (a layer that computes what the file shall, the float layer).
    """
    model, net = zoo.ZOO[name], zoo.trained(name)
    if method == "float":
        paddle.jit.save(net, path + "_pir", input_spec=model.spec())
        paddleq.export.to_program_desc(path + "_pir", path)
        return net, net
    rng = np.random.RandomState(1)
    draws = [rng.choice(zoo.TRAINING, model.batch) for _ in range(model.settling)]
    if method == "qat":
        quanter = paddleq.QAT()
        quanter.quantize(net)
        optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
        net.train()
        for draw in draws[:2]:
            model.loss_of(net, draw).backward()
            optimizer.step()
            optimizer.clear_grad()
        with paddle.no_grad():  # the moving averages start at 1: let them find the range
            for draw in draws:
                net(*model.tensors(draw))
        net.eval()
        plain, state = zoo.ZOO[name].make(), net.state_dict()
        plain.eval()
        plain.set_state_dict({key: state[key] for key in plain.state_dict()})
    else:
        # (KL cuts off much of pictures of which most is background: a net that hardly works any
        # more is as sensitive as one of random weights.)
        quanter, plain = paddleq.PTQ("AbsmaxQuantizer"), net
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [model.tensors(draw) for draw in draws[:2]])
    quanter.save_quantized_model(net, path, model.spec())
    return net, plain


def difference(found, expected):
    """The largest relative L2 distance of an output; infinity where their shapes differ."""
    assert len(found) == len(expected)
    return max(relative_error(f, e) if np.shape(f) == np.shape(e) else float("inf")
               for f, e in zip(found, expected))


def cases(name, *nets):
    """(inputs, what each of ``nets`` makes of them): other sizes too where those are open."""
    model = zoo.ZOO[name]
    for other in (False, True) if model.open_sizes() else (False,):
        inputs = model.tensors(zoo.unseen(3 if other else 32), other)
        with paddle.no_grad():
            results = [[value.numpy() for value in zoo.outputs(net(*inputs))] for net in nets]
        yield [[value.numpy() for value in inputs], *results]


# Those of a model in one process (--dist loadgroup): it is trained once.
CASES = [pytest.param(name, method, marks=pytest.mark.xdist_group(zoo.ZOO[name].family or name))
         for name in zoo.ZOO for method in METHODS]


@pytest.mark.parametrize("name, method", CASES)
def test_runtimes_compute_what_the_model_computes(name, method, tmp_path):
    path = str(tmp_path / "model")
    for inputs, expected in cases(name, export(name, method, path)[0]):
        assert all(np.isfinite(value).all() for value in expected)
        assert max(value.std(axis=0).max() for value in expected) > 0
        assert difference(paddle_inference(path, inputs), expected) <= 1e-4
        if method == "float":
            assert difference(paddle_inference(path, inputs, ir_optim=True), expected) <= 1e-4
        if name in OPENVINO_LACKS:
            with pytest.raises(RuntimeError, match=f"No creator found for {OPENVINO_LACKS[name]}"):
                openvino(path, inputs)
            continue
        allowed = 1e-4 if method == "float" else 1e-2
        assert difference(openvino(path, inputs), expected) <= allowed


def _cell(run, expected):
    try:
        return f"{difference(run(), expected):.1e}"
    except RuntimeError as error:
        missing = str(error).partition("No creator found for ")[2]
        return f"no {missing.split()[0]}" if missing else "refused"


def _row(path, inputs, expected):
    return (_cell(lambda: paddle_inference(path, inputs), expected),
            _cell(lambda: paddle_inference(path, inputs, ir_optim=True), expected),
            _cell(lambda: openvino(path, inputs), expected))


def main():
    warnings.simplefilter("ignore")
    print(f"Paddle {paddle.__version__}; largest relative L2 distance of an output to dygraph, and "
          "of dygraph to the float model")
    print(f"{'model':22}{'':8}{'Inference':>12}{'optimized':>12}{'OpenVINO':>16}{'rounding':>12}"
          f"{'s':>8}")
    for name in sys.argv[1:] or zoo.ZOO:
        for method in METHODS:
            started = time.time()
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/model"
                for inputs, expected, plain in cases(name, *export(name, method, path)):
                    row = _row(path, inputs, expected)
                    print(f"{name:22}{method:8}{row[0]:>12}{row[1]:>12}{row[2]:>16}"
                          f"{difference(expected, plain):12.1e}{time.time() - started:8.1f}",
                          flush=True)


if __name__ == "__main__":
    main()
