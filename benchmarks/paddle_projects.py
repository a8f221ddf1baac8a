"""Quantization scripts of PaddleOCR, PaddleDetection, PaddleSeg and PaddleClas on tiny data.

    python benchmarks/paddle_projects.py FOLDER [RECIPE ...] [--keep WORK]

``FOLDER`` holds checkouts (``PaddleOCR``, ...; missing ones are left out). Each is copied, with
``paddleslim`` replaced by ``paddleq.paddleslim`` in its scripts, and each recipe is run there by
this Python, which needs the projects' requirements. For each exported file: quantized layers of all
layers with weights, distance of the file as it stands and of stock Paddle Inference int8 from the
simulation, and the distance that rounding explains. Exits with 1 if a script fails, or if a file as
it stands is more than 1e-6 away.
"""

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings zlib symbols)
from pathlib import Path

HERE = Path(__file__).resolve()
SCRIPTS = {
    "PaddleClas": ["ppcls/arch/slim/quant.py", "deploy/slim/quant_post_static.py"],
    "PaddleSeg": [f"deploy/slim/quant/{name}.py" for name in (
        "qat_train", "qat_export", "qat_val", "ptq")],
    "PaddleDetection": ["ppdet/slim/quant.py"],
    "PaddleOCR": [f"deploy/slim/quantization/{name}.py" for name in (
        "quant", "export_model", "quant_kl")],
}
# The changes of docs/paddle_projects.md, in order.
CHANGES = [
    (r"^from paddleslim\.analysis import .*\n", ""),  # not used
    (r"^(\s*)import paddleslim$", r"\1import paddleq.paddleslim as paddleslim"),
    (r"^(\s*)from paddleslim\b", r"\1from paddleq.paddleslim"),
    (r"try_import\('paddleslim'\)", "try_import('paddleq.paddleslim')"),
    (r"^(\s*)use_gpu = True$", r"\1use_gpu = False"),  # PaddleSeg's ptq.py
]
BOUND = 1e-6


def copy_of(checkout, work):
    """Copy a checkout without its pictures and history, and change its imports."""
    folder = Path(work) / checkout.name
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(
        ".git", "*.png", "*.jpg", "*.gif", "*.ttf", "*.pdf", "output", "docs", "doc"))
    for name in SCRIPTS[checkout.name]:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in CHANGES:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")
    return folder


def run_script(report, script, arguments):
    """Run a script of a project, and compare each file that it exports with the simulation."""
    import compare_export

    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    rows = compare_export.recording()
    runpy.run_path(script, run_name="__main__")
    Path(report).write_text(json.dumps(rows))


def run_recipe(folder, name, commands):
    """Run the commands of a recipe; return (rows of its exports, error or None)."""
    rows = []
    key = re.sub(r"\W+", "_", name)
    environment = {**os.environ, "FLAGS_enable_pir_api": "0", "PYTHONPATH": os.pathsep.join(
        [str(HERE.parents[1]), str(folder), os.environ.get("PYTHONPATH", "")])}
    for number, (script, *arguments) in enumerate(commands(folder, key)):
        report = Path(folder) / f"tiny/{key}-{number}.json"
        log = report.with_suffix(".log")
        with open(log, "w") as output:
            done = subprocess.run(
                [sys.executable, str(HERE), "--inside", str(report), script, *arguments],
                cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            return rows, f"{script}: {''.join(last)[:300]} ({log})"
        rows += json.loads(report.read_text())
    return rows, None if rows else "nothing was exported"


def _line(project, name, row):
    mark = " " if row["as it stands"] <= BOUND else "!"
    int8 = row["int8"] if isinstance(row["int8"], str) else f"{row['int8']:.1e}"
    return (f"{project:16}{name:32}{row['file']:44}{row['layers']:>8} layers"
            f"{row['as it stands']:10.1e}{mark} int8 {int8} (rounding {row['bound']:.0e})")


def main():
    if sys.argv[1:2] == ["--inside"]:
        return run_script(sys.argv[2], sys.argv[3], sys.argv[4:])
    from paddle_project_recipes import RECIPES, shrink_detection, write_data

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", help="names or parts of names; default all")
    parser.add_argument("--keep", help="folder for the copies, which are kept")
    args = parser.parse_args()
    work = args.keep or tempfile.mkdtemp()
    failed = 0
    try:
        for project, recipes in RECIPES.items():
            names = [name for name in recipes if not args.recipes or any(
                part in f"{project} {name}" for part in args.recipes)]
            if not names or not (args.folder / project).is_dir():
                continue
            folder = Path(work) / project
            if not folder.exists():
                copy_of(args.folder / project, work)
                write_data(folder / "tiny" / "data")
                if project == "PaddleDetection":
                    shrink_detection(folder)
            for name in names:
                start = time.perf_counter()
                rows, error = run_recipe(folder, name, recipes[name])
                seconds = time.perf_counter() - start
                for row in rows:
                    failed += not row["as it stands"] <= BOUND
                    print(_line(project, name, row), flush=True)
                if error:
                    failed += 1
                    print(f"{project:16}{name:32}FAILED {error}", flush=True)
                print(f"{project:16}{name:32}{seconds:.0f} s", flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(work)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
