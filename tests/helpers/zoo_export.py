"""Float, QAT and PTQ exports of the zoo's models, and the outputs that they must have."""

import numpy as np
import paddle
import zoo
from runtimes import relative_error

import paddleq

METHODS = ("float", "qat", "ptq")


def export(name, method, path):
    """Write a model of the zoo as ``path.pdmodel``; vision models are untrained.

    Returns:
        The layer that the file must compute, and the float layer.
    """
    model, net = zoo.ZOO[name], zoo.network(name, trained=False)
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
        with paddle.no_grad():  # moving averages start at 1
            for draw in draws:
                net(*model.tensors(draw))
        net.eval()
        plain, state = zoo.ZOO[name].make(), net.state_dict()
        plain.eval()
        plain.set_state_dict({key: state[key] for key in plain.state_dict()})
    else:
        quanter, plain = paddleq.PTQ("AbsmaxQuantizer"), net
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [model.tensors(draw) for draw in draws[:2]])
    quanter.save_quantized_model(net, path, model.spec())
    return net, plain


def difference(found, expected):
    """Return the largest relative L2 distance of an output, infinity if shapes differ."""
    assert len(found) == len(expected)
    return max(relative_error(f, e) if np.shape(f) == np.shape(e) else float("inf")
               for f, e in zip(found, expected))


def cases(name, *nets):
    """Yield inputs and the outputs of each of ``nets``, also in other sizes if those are open."""
    model = zoo.ZOO[name]
    for other in (False, True) if model.open_sizes() else (False,):
        inputs = model.tensors(zoo.unseen(3 if other else 32), other)
        with paddle.no_grad():
            results = [[value.numpy() for value in zoo.outputs(net(*inputs))] for net in nets]
        yield [[value.numpy() for value in inputs], *results]
