"""Compare the peak memory of layer-by-layer quantization with the size of the float model.

    python benchmarks/bench_memory_llm.py [--layers 8] [--width 512]

Each row is a separate process: an untrained Llama-style decoder, 4 batches of 4 x 128 characters.
All sizes are in MB. "allowed" is 1.15 x (float model + one decoder layer + activations), where the
activations are the outputs of one decoder layer for all batches and the memory of a float forward
pass. "peak" is the largest resident memory of the process minus that before the model was built
(with all kernels loaded).
"""

import argparse
import gc
import json
import os
import sys

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import child, heading, table, timed

# isort: split
import paddle
from paddle import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from demo.text.models import Llama
from paddleq import PerChannel, PerGroup, PerToken, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, SmoothQuant, quantize_layer_by_layer
from paddleq.config import LayerConfig, QuantConfig
from paddleq.nn import KVCache

W4, W8 = QuantSpec(4, granularity=PerGroup(64)), QuantSpec(8, granularity=PerChannel(1))
SCHEMES = {
    "W4 g64, round to nearest": LayerConfig(W4),
    "W4 g64, AWQ": LayerConfig(W4, smoother=AWQ(grids_num=4)),
    "W4 g64, GPTQ": LayerConfig(W4, rounder=GPTQ()),
    "W4 g64, AWQ and GPTQ": LayerConfig(W4, smoother=AWQ(grids_num=4), rounder=GPTQ()),
    "W8A8 per token, SmoothQuant": LayerConfig(W8, QuantSpec(8, granularity=PerToken()),
                                                SmoothQuant()),
}
BATCHES, BATCH, TOKENS = 4, 4, 128
MB = 1e6


def status(field):
    """A size from the kernel's account of this process, in MB (VmRSS, VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024 / MB


def peak_of(function):
    """The largest resident memory while ``function`` runs, in MB."""
    gc.collect()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak counts from now
    function()
    return status("VmHWM")


def size(layer):
    """Return the size of the parameters in MB."""
    return sum(p.numpy().nbytes for p in layer.parameters()) / MB


def model(layers, width):
    """An untrained decoder in evaluation mode."""
    paddle.seed(0)
    made = Llama(layers, width, (8 * width // 3 + 63) // 64 * 64, width // 64, width // 128,
                 TOKENS)
    made.eval()
    return made


def measure(scheme, layers, width):
    """Quantize once; returns the sizes."""
    config = QuantConfig()
    config.add_type(nn.Linear, SCHEMES[scheme])
    config.add_type(KVCache, LayerConfig(kv_cache="per_channel"))

    def quantize(network, batches):
        quantize_layer_by_layer(network, None, config, batches)

    batches = [paddle.randint(0, 90, [BATCH, TOKENS]) for _ in range(BATCHES)]
    quantize(model(1, 128), batches)  # kernels and their buffers
    gc.collect()
    before = status("VmRSS")
    network = model(layers, width)
    sizes = {"float model": size(network), "one layer": size(network.layers[0])}
    loaded = status("VmRSS")

    def run():
        with paddle.no_grad():
            network(batches[0])

    sizes["activations"] = (BATCHES * BATCH * TOKENS * width * 4 / MB
                            + max(peak_of(run) - loaded, 0))
    sizes["seconds"], sizes["peak"] = timed(lambda: peak_of(lambda: quantize(network, batches)))
    sizes["peak"] -= before
    sizes["loaded"] = loaded - before
    sizes["allowed"] = 1.15 * (sizes["float model"] + sizes["one layer"] + sizes["activations"])
    gc.collect()
    sizes["afterwards"] = status("VmRSS") - before
    return sizes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--scheme", choices=SCHEMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scheme:
        print(json.dumps(measure(arguments.scheme, arguments.layers, arguments.width)))
        return
    heading(f"Memory of quantizing {arguments.layers} decoder layers of width {arguments.width}")
    columns = ["float model", "one layer", "activations", "loaded", "allowed", "peak",
               "afterwards", "seconds"]
    rows = [["MB", *columns, "peak / allowed"]]
    for scheme in SCHEMES:
        found, _ = child(__file__, "--scheme", scheme, "--layers", str(arguments.layers),
                         "--width", str(arguments.width))
        rows.append([scheme, *(f"{found[column]:.0f}" for column in columns),
                     f"{found['peak'] / found['allowed']:.2f}"])
    table(rows)


if __name__ == "__main__":
    main()
