"""Draw the figures of concepts.md with the functions of paddleq: python docs/pictures.py"""

import pathlib

import matplotlib
import numpy as np
import paddle

matplotlib.use("svg")
import matplotlib.pyplot as plt

from paddleq import PerChannel, QuantSpec
from paddleq.functional import abs_max, fake_quantize, quantize
from paddleq.observers import AbsMaxObserver, HistogramObserver, KLObserver

FOLDER = pathlib.Path(__file__).resolve().parent / "images"
BLUE, ORANGE, GREEN, GREY = "#1f6feb", "#d1570b", "#1a7f37", "#8c959f"
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "paddleq", "font.size": 10,
                     "axes.spines.top": False, "axes.spines.right": False})


def save(figure, name):
    FOLDER.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(FOLDER / name, metadata={"Date": None})
    plt.close(figure)


def staircase():
    """Plot rounding and clipping."""
    spec, abs_max = QuantSpec(bits=3), paddle.to_tensor([3.0])
    x = paddle.linspace(-5, 5, 2001)
    y = fake_quantize(x, abs_max, spec)
    figure, axes = plt.subplots(figsize=(6, 3.2))
    axes.plot(x.numpy(), x.numpy(), color=GREY, lw=1, label="float")
    axes.plot(x.numpy(), y.numpy(), color=BLUE, lw=2, label="3 bits, abs_max 3")
    for edge in (-3.0, 3.0):
        axes.axvline(edge, color=ORANGE, lw=1, ls="--")
    axes.annotate("clipped", (4.1, 3.0), (3.6, 1.2), arrowprops={"arrowstyle": "->"})
    axes.annotate("rounded: scale = abs_max / 3", (0.0, 0.0), (-4.6, 1.8),
                  arrowprops={"arrowstyle": "->"})
    axes.set(xlabel="x", ylabel="what is computed with")
    axes.legend(frameon=False, loc="lower right")
    save(figure, "staircase.svg")


def thresholds():
    """Plot abs_max of three calibration methods for one activation."""
    random = np.random.RandomState(0)
    values = np.concatenate([np.abs(random.laplace(0, 1, 40000)), [24.0, 26.0, 31.0]])
    found = {}
    for name, observer in (("AbsmaxQuantizer", AbsMaxObserver()),
                           ("HistQuantizer, 0.9999", HistogramObserver(hist_percent=0.9999)),
                           ("KLQuantizer", KLObserver())):
        observer.update(paddle.to_tensor(values.astype("float32")))
        found[name] = observer.abs_max().item()
    figure, axes = plt.subplots(figsize=(6, 3.2))
    axes.hist(values, bins=120, color=GREY, log=True)
    for (name, largest), color in zip(found.items(), (ORANGE, GREEN, BLUE)):
        axes.axvline(largest, color=color, lw=2, label=f"{name}: {largest:.1f}")
    axes.set(xlabel="|x|", ylabel="how often")
    axes.legend(frameon=False)
    save(figure, "thresholds.svg")


def granularity():
    """The error of a weight whose channels differ, with one scale and with one for each."""
    random = np.random.RandomState(0)
    sizes = np.geomspace(0.02, 1.0, 16)
    weight = paddle.to_tensor((random.randn(16, 256) * sizes[:, None]).astype("float32"))
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for label, spec, color in (("one scale", QuantSpec(bits=4), ORANGE),
                               ("one for each channel",
                                QuantSpec(bits=4, granularity=PerChannel(0)), BLUE)):
        largest = abs_max(weight, spec)
        integers = quantize(weight, largest, spec)
        back = integers * largest.reshape([-1, 1]) / spec.quant_max
        error = ((back - weight).square().mean(1) / weight.square().mean(1)).sqrt()
        axes.plot(sizes, error.numpy(), "o-", color=color, label=label)
    axes.set(xscale="log", xlabel="size of the channel's weights", ylabel="relative error, 4 bits",
             ylim=(0, None))
    axes.legend(frameon=False)
    save(figure, "granularity.svg")


if __name__ == "__main__":
    staircase()
    thresholds()
    granularity()
