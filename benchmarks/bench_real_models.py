"""Real models quantized by paddleq, ONNX Runtime and NNCF: accuracy, time, size, latency.

    make bench-real
    python benchmarks/bench_real_models.py --models rec,det --lines 200 --peers nncf,ort
    python benchmarks/bench_real_models.py --latency

All quantizers get the same float files and calibration batches, all rows the same test data, and
each file runs in every runtime that reads it. The first form measures accuracy, the second one
latency only. ``docs/real_models.md`` describes both. Needs the environment of ``make bench-real``.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part)
                for part in ("", "demo", "tests/helpers")]

from side_by_side import THREADS, child, interleaved, median  # noqa: E402  (before paddle)

# isort: split
import ocr  # noqa: E402
import real_model_rows  # noqa: E402
import real_model_tasks  # noqa: E402
from common import ROOT  # noqa: E402
from real_model_rows import GROUPS, RUNTIMES, TITLES, Row  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tables import markdown  # noqa: E402

OUT = ROOT / "out" / "real_models"
# (group, row) of the int8 files that are timed in each runtime.
TIMED = {"Paddle Inference": (("paddleq", "mse"),),
         "OpenVINO": (("paddleq", "mse"), ("nncf", "mixed")),
         "ONNX Runtime": (("paddleq", "mse"), ("ort", "MinMax"), ("ort", "MinMax, products"))}


def kept_result(folder, group, row):
    """Return the file with the result of a row."""
    return folder / f"{group}-{real_model_rows.file_name(row)}.json"


def accuracy(name, options):
    """Return (titles of the metrics, results of all rows) of a model."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    task = real_model_tasks.make(name, folder, options)
    base = real_model_rows.float_row(task, folder)
    makers = [("float", "float", lambda *_: base)]
    makers += [(group, row, maker) for group in ["paddleq", *options.peers]
               for row, maker in GROUPS[group].items()]
    results = []
    for group, row, make in makers:
        kept = kept_result(folder, group, row)
        if options.resume and kept.exists():
            results.append(json.loads(kept.read_text()))
        elif row == "float" or not options.rows or row in options.rows:
            print(f"{name}: {TITLES.get(group, group)} {row}", file=sys.stderr, flush=True)
            made = make(row, task, folder)
            metrics = {runtime: [float(value) for value in task.measure(
                made.run(runtime, folder / "runtimes.log", THREADS))] for runtime in made.files}
            results.append({"group": group, "name": row, "metrics": metrics, "kb": made.size(),
                            "seconds": made.seconds, "note": made.note,
                            "files": {key: str(path) for key, path in made.files.items()}})
            kept.write_text(json.dumps(results[-1]))
    return task.metrics, results


def accuracy_rows(titles, results):
    """Return the rows of the table of a model; a cell holds the metrics in one runtime."""
    rows = [(", ".join(titles), *RUNTIMES, "s", "KB", "")]
    for each in results:
        cells = [" / ".join(f"{value:.2f}" for value in each["metrics"].get(runtime, ()))
                 for runtime in RUNTIMES]
        label = f"{TITLES[each['group']]} {each['name']}" if each["group"] in TITLES else "float"
        seconds = f"{each['seconds']:.0f}" if each["seconds"] else ""
        rows.append((label, *cells, seconds, f"{each['kb']:.0f}", each["note"]))
    return rows


def best_rows(titles, results):
    """Return a sentence with the best row of each quantizer by the first metric."""
    parts = []
    for group, title in TITLES.items():
        found = [(values[0], each["name"], runtime) for each in results if each["group"] == group
                 for runtime, values in each["metrics"].items()]
        if found:
            value, row, runtime = max(found)
            parts.append(f"{title} {value:.2f} ({row}, {runtime})")
    return f"Best {titles[0]}: {'; '.join(parts)}." if parts else ""


def print_table(title, rows, options, console):
    """Print rows of cells, the first one as the head."""
    if options.markdown:
        print(f"\n### {title}\n")
        markdown(rows)
        return
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def timed_files(name, options):
    """Quantize a model for the latency; return (title, runtime, row) for each file."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    task = real_model_tasks.make(name, folder, options)
    made = {("float", "float"): real_model_rows.float_row(task, folder)}
    found = []
    for runtime in RUNTIMES:
        for group, row in [("float", "float"), *TIMED[runtime]]:
            if group not in ("float", "paddleq", *options.peers):
                continue
            kept = kept_result(folder, group, row)
            if (group, row) not in made and options.resume and kept.exists():
                files = json.loads(kept.read_text())["files"]
                made[group, row] = Row(row, {key: Path(path) for key, path in files.items()})
            elif (group, row) not in made:
                made[group, row] = GROUPS[group][row](row, task, folder)
            title = f"{runtime}, {f'{TITLES[group]} {row}' if group in TITLES else row}"
            found.append((title, runtime, made[group, row]))
    return task, found


def latency(name, options, console):
    """Print the table of the latency of a model."""
    task, files = timed_files(name, options)
    print(f"{name}: {len(files)} files; load average before the timing {os.getloadavg()[0]:.1f}",
          file=sys.stderr)
    order = json.dumps({"shapes": task.shapes, "seconds": options.seconds, "files": [
        (title, runtime, {**asdict(row), "files": {
            key: str(path) for key, path in row.files.items()}}) for title, runtime, row in files]})
    head, times = [""], {}
    for threads in options.threads:
        found, _ = child(__file__, "--timing", order,
                         environment={"BENCHMARK_THREADS": str(threads)})
        for number, shape in enumerate(task.shapes):
            head.append(f"{threads} thread{'s' * (threads > 1)}, batch {shape[0]}")
            times[threads, number] = found["times"][number]
    rows = [head] + [
        [title, *(f"{each[title]:.2f} ({each[f'{runtime}, float'] / each[title]:.2f})"
                  for each in times.values())] for title, runtime, _ in files]
    print_table(f"{name}: median ms (float of the same runtime / this)", rows, options, console)


def timing(order):
    """Time the files of an order of :func:`latency` side by side; print JSON."""
    order = json.loads(order)
    runs = {}
    for title, runtime, row in order["files"]:
        row["files"] = {key: Path(path) for key, path in row["files"].items()}
        runs[title] = Row(**row).run(runtime, OUT / "runtimes.log", THREADS)
    found = []
    for shape in order["shapes"]:
        sample = real_model_rows.random_input(shape)
        calls = {title: partial(run, sample) for title, run in runs.items()}
        once = interleaved(calls, 3)
        seconds = sum(min(each) for each in once.values())
        rounds = max(5, int(order["seconds"] / (2 * seconds)))
        found.append({title: 1e3 * median(each)
                      for title, each in interleaved(calls, rounds).items()})
    print(json.dumps({"times": found}))


def names(choices):
    """Return a parser of names of ``choices`` with commas between them."""
    def parse(text):
        found = [each for each in text.split(",") if each not in ("", "none")]
        unknown = sorted(set(found) - set(choices))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from "
                                             f"{', '.join(choices)}")
        return found

    return parse


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=names(real_model_tasks.TASKS),
                        help="default: all, with --latency rec,det")
    parser.add_argument("--lines", type=int, default=200, help="lines of text; twice as many crops")
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the test data")
    parser.add_argument("--peers", type=names(("ort", "nncf")), default=["ort", "nncf"],
                        help="ort,nncf (default) or none")
    parser.add_argument("--rows", type=lambda text: text.split(";"), metavar="NAME;NAME",
                        help="rows of the accuracy tables, default: all")
    parser.add_argument("--resume", action="store_true",
                        help="keep the rows, with --latency the files, of the last run")
    parser.add_argument("--latency", action="store_true", help="measure latency only")
    parser.add_argument("--threads", type=lambda text: [int(each) for each in text.split(",")],
                        default=[1, 2])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each cell of latencies")
    parser.add_argument("--markdown", action="store_true", help="print tables of Markdown")
    parser.add_argument("--timing", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timing:
        timing(options.timing)
        return
    console = Console(width=130)
    ocr.install_fonts(console)
    OUT.mkdir(parents=True, exist_ok=True)
    if options.latency:
        for name in options.models or ("rec", "det"):
            latency(name, options, console)
        return
    found = {name: accuracy(name, options) for name in options.models or real_model_tasks.TASKS}
    for name, result in found.items():
        print_table(name, accuracy_rows(*result), options, console)
        console.print(best_rows(*result))


if __name__ == "__main__":
    main()
