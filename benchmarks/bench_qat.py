"""A training step of MobileNetV1 in float, with paddleq's QAT and with Paddle's own.

    python benchmarks/bench_qat.py [--rounds 7] [--batch 4]
"""

import argparse

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import heading, interleaved, median, table

# isort: split
import paddle
from paddle import nn
from paddle.vision.models import mobilenet_v1
from paddles_own import ReferencePACT, reference

import paddleq
from paddleq import FakeQuantize
from paddleq.fake_quant import PACT
from paddleq.observers import CurrentMinMaxObserver

CLIPPING = 2.0  # an alpha that clips part of every activation


class ReferenceClippingPACT(ReferencePACT):
    """The same with an alpha that clips."""

    init = CLIPPING


def _clipping_pact():
    return PACT(CLIPPING)


def ours(**arguments):
    """A function that quantizes a model with paddleq."""
    return lambda model: paddleq.QAT(**arguments).quantize(model)


VARIANTS = {
    "float": lambda model: model,
    "paddleq QAT": ours(),
    "Paddle QAT": reference(),
    "paddleq QAT, FakeQuantize": ours(
        act_quantize=FakeQuantize,
        weight_quantize=FakeQuantize.with_args(observer=CurrentMinMaxObserver)),
    "paddleq QAT, FakeQuantize, saturate=False": ours(
        act_quantize=FakeQuantize.with_args(saturate=False),
        weight_quantize=FakeQuantize.with_args(observer=CurrentMinMaxObserver, saturate=False)),
    "paddleq QAT + PACT": ours(config={"activation_preprocess_type": "PACT"}),
    "Paddle QAT + PACT": reference(ReferencePACT),
    "paddleq QAT + PACT that clips": ours(act_preprocess=_clipping_pact),
    "Paddle QAT + PACT that clips": reference(ReferenceClippingPACT),
}


def training_step(quantize, images, labels):
    """A function that does one training step."""
    paddle.seed(0)
    model = quantize(mobilenet_v1(num_classes=10))
    model.train()
    # So slow that alpha, whose learning rate is 1000 times as high, stays where it is.
    optimizer = paddle.optimizer.Momentum(1e-7, parameters=model.parameters())
    loss_of = nn.CrossEntropyLoss()

    def step():
        loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    heading(f"Training step of MobileNetV1, batch {options.batch} of 3x224x224: forward, "
            "backward, Momentum")
    paddle.seed(1)
    images = paddle.randn([options.batch, 3, 224, 224])
    labels = paddle.randint(0, 10, [options.batch])
    steps = {name: training_step(quantize, images, labels) for name, quantize in VARIANTS.items()}
    interleaved(steps, rounds=1, warmup=0)
    times = interleaved(steps, options.rounds, warmup=0)
    rows = [("step", "ms", "fastest", "over float", "over Paddle's")]
    for name, found in times.items():
        # Pairs of one round saw the same machine; their ratios are steadier than the times.
        over_float = median([t / f for t, f in zip(found, times["float"])])
        rival = name.replace("paddleq", "Paddle").partition(",")[0]
        over_rival = ("" if rival == name else
                      f"{median([t / r for t, r in zip(found, times[rival])]):.2f}")
        rows.append((name, f"{median(found) * 1e3:.0f}", f"{min(found) * 1e3:.0f}",
                     f"{over_float:.2f}", over_rival))
    table(rows)


if __name__ == "__main__":
    main()
