"""Compare int8 and float models in Paddle Inference: latency, size and operators in float.

    python benchmarks/bench_deploy.py [--models mobilenet_v1,resnet50] [--seconds 4]

Weights are random, so accuracy is not measured; "error" is the relative L2 distance of the
int8 runtime from the simulation (the same file run without optimization).
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections import Counter

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import THREADS, child, heading, median, table

# isort: split
import numpy as np
import paddle
import paddle.inference as inference
from paddle.static import InputSpec

import paddleq
from paddleq.export.program.program import Program

MODELS = "mobilenet_v1,resnet50,mobilenet_v2,mobilenet_v3_small,squeezenet1_1"
TARGET = 2.0  # below it, say why
WARM = "weights are in place"
VERBOSE_RUNS = 20
# Calls of one model before the other has its turn. A server calls one model over and over: a few
# calls are not enough to see it as it runs then, for the other one's weights fill the caches.
TURN, WARMUP = 100, 20


def export(name, folder, quantizer):
    """Write ``float`` and ``int8`` into ``folder``."""
    paddle.seed(0)
    model = getattr(paddle.vision.models, name)()
    model.train()
    with paddle.no_grad():
        for _ in range(3):  # batch norms of random data are sane after a few batches
            model(paddle.randn([4, 3, 224, 224]))
    model.eval()
    spec = [InputSpec([None, 3, 224, 224], "float32")]
    paddle.jit.save(model, f"{folder}/float", input_spec=spec)
    if not os.path.exists(f"{folder}/float.pdmodel"):  # Paddle 3
        paddleq.export.to_program_desc(f"{folder}/float", f"{folder}/float")
    ptq = paddleq.PTQ(quantizer)
    quantized = ptq.quantize(model)
    ptq.calibrate(quantized, [paddle.randn([4, 3, 224, 224]) for _ in range(2)])
    ptq.save_quantized_model(quantized, f"{folder}/int8", spec)


def predictor(path, onednn=True, int8=False, as_is=False, log=False, optimized=None):
    """A predictor for batches of one."""
    config = inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(THREADS)
    if onednn:
        config.enable_mkldnn()
    elif hasattr(config, "disable_mkldnn"):  # Paddle 3 has it on by default
        config.disable_mkldnn()
    if int8:
        config.enable_mkldnn_int8()
    if as_is:
        config.switch_ir_optim(False)
    if not log:
        config.disable_glog_info()
    if optimized is not None:
        config.set_optim_cache_dir(optimized)
        config.enable_save_optim_model(True)
    made = inference.create_predictor(config)
    image = np.random.RandomState(0).randn(1, 3, 224, 224).astype("float32")
    made.get_input_handle(made.get_input_names()[0]).copy_from_cpu(image)
    made.run()
    return made


def output(made):
    """Return the last output of a predictor."""
    return made.get_output_handle(made.get_output_names()[0]).copy_to_cpu()


def measure(folder, seconds):
    """Latencies of the three, turn by turn, and the error of the int8 runtime."""
    made = {"float": predictor(f"{folder}/float"),
            "int8": predictor(f"{folder}/int8", int8=True),
            "plain": predictor(f"{folder}/float", onednn=False)}
    times = {name: [] for name in made}
    for name, share in (("plain", 0.2), (None, 0.8)):
        end = time.perf_counter() + seconds * share
        while time.perf_counter() < end or len(times[name or "int8"]) < TURN:
            for one in ([name] if name else ["float", "int8"]):
                for _ in range(WARMUP):
                    made[one].run()  # its own weights back into the caches
                for _ in range(TURN):
                    start = time.perf_counter()
                    made[one].run()
                    times[one].append(time.perf_counter() - start)
    simulated = output(predictor(f"{folder}/int8", onednn=False, as_is=True))
    error = np.linalg.norm(output(made["int8"]) - simulated) / np.linalg.norm(simulated)
    # The turns of a round met the same machine: ratio by ratio, then the median.
    turns = {name: [median(found[i:i + TURN]) for i in range(0, len(found), TURN)]
             for name, found in times.items()}
    ratio = median([f / q for f, q in zip(turns["float"], turns["int8"])])
    return {"ms": {name: median(found) * 1e3 for name, found in times.items()},
            "fastest": {name: min(found) * 1e3 for name, found in times.items()},
            "ratio": ratio, "error": float(error)}


def optimized_ops(folder):
    """Counter of the ops of the program that the runtime makes of the int8 model."""
    predictor(f"{folder}/int8", int8=True, optimized=folder)
    (name,) = [n for n in os.listdir(folder) if n.endswith("_optimized.pdmodel")]
    program = Program.load(f"{folder}/{name}", None)
    return Counter(op.type for op in program.desc.blocks[0].ops
                   if op.type not in ("feed", "fetch"))


def runtime_log(text):
    """(ops that the runtime says it quantized, patterns that its passes did not accept)."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    quantized = Counter()
    for count, kind in re.findall(r"---\s+quantized (\d+) (\w+) ops", text):
        quantized[kind] += int(count)
    refused = Counter(re.findall(r"Attr\(\w+\) of Op\(\w+\) in pass\(\w+\)", text))
    return +quantized, refused


def primitive_times(text, runs):
    """ms of a run in each kind of oneDNN primitive, from ONEDNN_VERBOSE=1."""
    spent = Counter()
    for line in text.partition(WARM)[2].splitlines():
        fields = line.split(",")
        if "exec" not in fields or fields[0] not in ("onednn_verbose", "dnnl_verbose"):
            continue
        at = fields.index("exec")
        kind, formats = fields[at + 2], fields[at + 5]
        kind = {"convolution": "conv", "inner_product": "fc"}.get(kind, kind)
        if kind in ("conv", "fc"):
            kind += " int8" if re.search(r"src[_:][us]8", formats) else " float"
        spent[kind] += float(fields[-1]) / runs
    return dict(spent.most_common())


def _child(options):
    folder, name = options.folder, options.models
    if options.step == "export":
        export(name, folder, options.quantizer)
        result = {}
    elif options.step == "measure":
        result = measure(folder, options.seconds)
    elif options.step == "log":
        predictor(f"{folder}/int8", int8=True, log=True)
        result = {}
    elif options.step == "ops":
        result = optimized_ops(folder)
    else:
        made = predictor(f"{folder}/{options.step}", int8=options.step == "int8")
        made.run()  # the first runs bring the weights into oneDNN's layouts
        print(WARM, flush=True)
        for _ in range(VERBOSE_RUNS):
            made.run()
        result = {}
    print(json.dumps(result), flush=True)


def one_model(name, options):
    """All figures of one model; each step in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        def run(step, **environment):
            return child(__file__, "--step", step, "--folder", folder, "--models", name,
                         "--quantizer", options.quantizer, "--seconds", str(options.seconds),
                         environment=environment)
        run("export")
        found, _ = run("measure")
        size = {kind: sum(os.path.getsize(f"{folder}/{kind}{end}")
                          for end in (".pdmodel", ".pdiparams")) for kind in ("float", "int8")}
        found["size"] = size["int8"] / size["float"]
        _, log = run("log", GLOG_minloglevel="0")
        found["int8 ops"], found["refused"] = runtime_log(log)
        found["float ops"] = +(Counter(run("ops")[0]) - found["int8 ops"])
        found["primitives"] = {step: primitive_times(run(step, ONEDNN_VERBOSE="1")[1],
                                                     VERBOSE_RUNS)
                               for step in ("float", "int8")}
    return found


def why(name, found):
    """Print the reasons that limit the speed of a model."""
    def listed(counts, number="{}"):
        return ", ".join(f"{kind} {number.format(n)}" for kind, n in counts.items())

    ms = {step: listed(times, "{:.2f}") for step, times in found["primitives"].items()}
    total = {step: sum(times.values()) for step, times in found["primitives"].items()}
    print(f"\n{name}: {found['ratio']:.2f}x")
    print("  quantized, says the runtime: " + listed(found["int8 ops"]))
    print("  the other ops it runs:       " + listed(found["float ops"]))
    print("  refused by its passes:       " + (listed(found["refused"]) or "nothing"))
    print(f"  ms in oneDNN, float model:   {ms['float']}; sum {total['float']:.2f}")
    print(f"  ms in oneDNN, int8 model:    {ms['int8']}; sum {total['int8']:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing for each model")
    parser.add_argument("--quantizer", default="AbsmaxQuantizer")
    parser.add_argument("--verbose", action="store_true", help="reasons for every model")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        _child(options)
        return
    heading(f"Paddle Inference, batch 1 of 3x224x224, {options.quantizer}")
    rows = [("model", "FP32 ms", "without oneDNN", "int8 ms", "FP32/int8", "fastest/fastest",
             "size", "error")]
    reasons = []
    for name in options.models.split(","):
        found = one_model(name, options)
        ms, fastest = found["ms"], found["fastest"]
        best = "plain" if ms["plain"] < ms["float"] else "float"
        if best == "plain":
            found["ratio"] = ms["plain"] / ms["int8"]
        rows.append((name, f"{ms['float']:.2f}", f"{ms['plain']:.2f}", f"{ms['int8']:.2f}",
                     f"{found['ratio']:.2f}", f"{fastest[best] / fastest['int8']:.2f}",
                     f"{found['size']:.3f}", f"{found['error']:.4f}"))
        if found["ratio"] < TARGET or options.verbose:
            reasons.append((name, found))
    table(rows)
    for name, found in reasons:
        why(name, found)


if __name__ == "__main__":
    main()
