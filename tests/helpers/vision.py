"""Models of ``paddle.vision.models``, trained until they know digits, quantized and exported."""

import numpy as np
import paddle
import paddle.nn.functional as F
from trained import TRAINING, Recipe, first, labels, trained_state

import paddleq

# They are trained until they know digits that they have not seen. In a net of random weights, or
# one that learned for a few steps, one value that a runtime rounds the other way, because it adds
# in another order, may change the output by per cents, whichever runtime it is. AlexNet takes
# 224 x 224 only.
MODELS = {
    "LeNet": Recipe("LeNet", 400, rate=5e-4, channels=1, size=28),
    "AlexNet": Recipe("alexnet", 40, batch=16, rate=2e-4, size=224, scaled=True),
    "VGG11": Recipe("vgg11", 40, rate=3e-4, scaled=True),
    "MobileNetV1": Recipe("mobilenet_v1", 350),
    "MobileNetV2": Recipe("mobilenet_v2", 200),
    "MobileNetV3-small": Recipe("mobilenet_v3_small", 300),
    "MobileNetV3-large": Recipe("mobilenet_v3_large", 340),
    "ResNet18": Recipe("resnet18", 94),
    "ResNet50": Recipe("resnet50", 100),
    "SqueezeNet": Recipe("squeezenet1_1", 400, rate=5e-4),
    "ShuffleNetV2": Recipe("shufflenet_v2_x1_0", 300),
    "DenseNet121": Recipe("densenet121", 120),
    "GoogLeNet": Recipe("googlenet", 110, batch=16, rate=5e-4, size=192, scaled=True),
}
SCALE_STEPS = 25
HELD_OUT = np.arange(1600, 1664)
assert HELD_OUT.min() >= TRAINING


def network(name, seed=0):
    """The trained float network."""
    net = MODELS[name].make()
    net.set_state_dict(trained_state(name, MODELS[name], seed))
    return net


def _outputs(net, x):
    net.eval()
    with paddle.no_grad():
        return first(net(x)).numpy()


def float_outputs(name, seed=0):
    """What the float model says about the held-out images."""
    return _outputs(network(name, seed), MODELS[name].pictures(HELD_OUT))


def share_right(outputs):
    """Of the held-out images, the share that gets the right label; by chance it is 0.1."""
    return float((outputs.argmax(axis=1) == labels(HELD_OUT)).mean())


def export_both(name, method, path, seed=0):
    """Quantize a model, export it, return (simulated output, inputs)."""
    recipe, net, rng = MODELS[name], network(name, seed), np.random.RandomState(seed + 1)
    if method == "qat":
        quanter = paddleq.QAT()
        quanter.quantize(net)
        optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
        net.train()
        x, y = recipe.draw(rng)
        F.cross_entropy(first(net(x)), y).backward()
        optimizer.step()
        with paddle.no_grad():  # the moving averages start at 1: let them find the range
            for _ in range(SCALE_STEPS):
                net(recipe.draw(rng)[0])
    else:
        quanter = paddleq.PTQ()
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [recipe.draw(rng)[0] for _ in range(2)])
    x = recipe.pictures(HELD_OUT)
    expected = _outputs(net, x)
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32")]
    quanter.save_quantized_model(net, path, spec)
    return expected, x.numpy()
