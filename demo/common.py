"""What the demo of digits needs besides paddleq: data, a network and its training."""

import numpy as np
import paddle
from paddle import nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def digits():
    """Scikit-learn's 1797 handwritten digits: (train images, labels, test images, labels)."""
    data = load_digits()
    images = (data.images[:, None].astype("float32") - 8.0) / 8.0
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target.astype("int64"), test_size=0.4, random_state=0, stratify=data.target)
    return train_x, train_y, test_x, test_y


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, inputs, outputs, stride):
        super().__init__(
            nn.Conv2D(inputs, inputs, 3, stride, 1, groups=inputs, bias_attr=False),
            nn.BatchNorm2D(inputs), nn.ReLU(),
            nn.Conv2D(inputs, outputs, 1, bias_attr=False),
            nn.BatchNorm2D(outputs), nn.ReLU())


class DigitsNet(nn.Layer):
    """A MobileNet for 8x8 images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(1, 16, 3, padding=1, bias_attr=False),
                                  nn.BatchNorm2D(16), nn.ReLU())
        self.blocks = nn.Sequential(
            Separable(16, 64, 2), Separable(64, 128, 1), Separable(128, 128, 1),
            Separable(128, 256, 2), Separable(256, 256, 1))
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        return self.head(paddle.flatten(self.pool(self.blocks(self.stem(x))), 1))


def batches(images, labels=None, size=64, order=None):
    """Batches of tensors: of images, or of (images, labels)."""
    order = np.arange(len(images)) if order is None else order
    for start in range(0, len(order), size):
        part = order[start:start + size]
        image = paddle.to_tensor(images[part])
        yield image if labels is None else (image, paddle.to_tensor(labels[part]))


def train(model, images, labels, epochs, learning_rate, batch_size=32, seed=0):
    """Adam with a cosine schedule."""
    shuffle = np.random.default_rng(seed)
    steps = epochs * -(-len(images) // batch_size)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    adam = paddle.optimizer.Adam(schedule, parameters=model.parameters(), weight_decay=1e-4)
    model.train()
    for _ in range(epochs):
        for image, label in batches(images, labels, batch_size,
                                    shuffle.permutation(len(images))):
            loss = nn.functional.cross_entropy(model(image), label)
            loss.backward()
            adam.step()
            adam.clear_grad()
            schedule.step()
    model.eval()


def predict(model, images):
    """Labels that a model in memory gives."""
    model.eval()
    with paddle.no_grad():
        return np.concatenate([model(image).numpy().argmax(1) for image in batches(images)])
