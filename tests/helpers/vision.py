"""Models of ``paddle.vision.models`` for digits: trained, untrained, quantized and exported."""

import numpy as np
import paddle
import paddle.nn.functional as F
from trained import TRAINING, Recipe, first, scale_layers, settle_norms, trained_state

import paddleq

# AlexNet accepts 224 x 224 only.
MODELS = {
    "LeNet": Recipe("LeNet", 400, rate=5e-4, channels=1, size=28),
    "AlexNet": Recipe("alexnet", 40, batch=16, rate=2e-4, size=224, scaled=True),
    "VGG11": Recipe("vgg11", 40, rate=3e-4, scaled=True),
    "MobileNetV1": Recipe("mobilenet_v1", 200, batch=16),
    "MobileNetV2": Recipe("mobilenet_v2", 200),
    "MobileNetV3-small": Recipe("mobilenet_v3_small", 300),
    "MobileNetV3-large": Recipe("mobilenet_v3_large", 300),
    "ResNet18": Recipe("resnet18", 94),
    "ResNet50": Recipe("resnet50", 100),
    "SqueezeNet": Recipe("squeezenet1_1", 400, rate=5e-4),
    "ShuffleNetV2": Recipe("shufflenet_v2_x1_0", 300),
    "DenseNet121": Recipe("densenet121", 120),
    "GoogLeNet": Recipe("googlenet", 110, batch=16, rate=5e-4, size=192, scaled=True),
}
SCALE_STEPS = 10
# The models that run on every version of Paddle; the others run on one, and nightly on all.
SMALL = ("LeNet", "MobileNetV1", "MobileNetV3-small", "ResNet18", "ShuffleNetV2", "SqueezeNet")
HELD_OUT = np.arange(1600, 1608)
assert HELD_OUT.min() >= TRAINING


def network(name, seed=0):
    """The trained float network."""
    net = MODELS[name].make()
    net.set_state_dict(trained_state(name, MODELS[name], seed))
    return net


def untrained(name, seed=0):
    """A new network of random weights whose norms have the statistics of the data."""
    recipe = MODELS[name]
    paddle.seed(seed)
    net, rng = recipe.make(), np.random.RandomState(seed)
    if recipe.scaled:
        scale_layers(net, recipe.draw(rng)[0])
    net.train()
    settle_norms(net, [recipe.draw(rng)[0]])
    net.eval()
    return net


def export_both(name, method, path):
    """Quantize an untrained model and export it; return (quantized model, inputs)."""
    recipe, net, rng = MODELS[name], untrained(name), np.random.RandomState(1)
    if method == "qat":
        quanter = paddleq.QAT()
        quanter.quantize(net)
        optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
        net.train()
        x, y = recipe.draw(rng)
        F.cross_entropy(first(net(x)), y).backward()
        optimizer.step()
        with paddle.no_grad():  # moving averages start at 1
            for _ in range(SCALE_STEPS):
                net(recipe.draw(rng)[0])
    else:
        quanter = paddleq.PTQ()
        net = quanter.quantize(net, fuse=True)
        quanter.calibrate(net, [recipe.draw(rng)[0] for _ in range(2)])
    net.eval()
    x = recipe.pictures(HELD_OUT)
    quanter.save_quantized_model(
        net, path, [paddle.static.InputSpec([None, *x.shape[1:]], "float32")])
    return net, x
