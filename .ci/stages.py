#!/usr/bin/env python3
"""Run every check that must pass before a change is merged: the stages below, in parallel.

    .ci/run [--cores N] [--only PATTERN] [--list]

Needs Python 3.11 with venv, make, a package index, the other Python versions that are named below
(on PATH, or of pyenv), and Chromium with its driver, or apt-get and the right to install them. All
else is installed in .venv*. A check that cannot run fails.

A stage starts when the stages that it needs have passed and enough cores are free; among those
ready, the one on the longest remaining path starts first. The log of each stage is
out/ci/STAGE.log: its end is printed when the stage passes, all of it when it fails. After a failure
the stages that do not depend on the failed one still run, and the exit code is 1.
"""

import argparse
import fnmatch
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "out" / "ci"
SLOWEST = 50
TAIL = 3  # lines printed of a stage that passed
# Directories of the default suite that one stage runs, so that the suite is two stages of about
# the same length.
EXPORT = "tests/export tests/deploy tests/models"
BROWSER = ("command -v chromium && command -v chromedriver || { apt-get update -q && "
           "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "
           "chromium chromium-driver; }")


@dataclass
class Stage:
    """One command.

    Attributes:
        name: unique; names of other stages appear in ``needs``.
        command: run by bash in the root of the repository.
        seconds: estimated duration on one core, for the order of stages.
        needs: stages that must have passed before.
        cores: cores that it occupies.
    """

    name: str
    command: str
    seconds: int
    needs: tuple = ()
    cores: int = 1


STAGES = [
    Stage("environment of 3.1.1", "make env", 45),
    Stage("environment of 2.6.2", "make env-2.6", 42),
    Stage("environment of 3.3.1", "make env-3.3", 40),
    Stage("environment of Paddle-Lite", "make lite-env", 10),
    Stage("lint", "make lint", 5, ("environment of 3.1.1",)),
    Stage("types", "make types", 30, ("environment of 3.1.1",)),
    Stage("documentation", "make docs", 30),
    Stage("installed command", ".venv/bin/paddleq --version", 5, ("environment of 3.1.1",)),
    Stage("demo of transformers", "make demo-text", 205, ("environment of 3.1.1",)),
    Stage("default suite: export", f"make test WORKERS=0 TESTS='{EXPORT}'", 380,
          ("environment of 3.1.1",)),
    Stage("default suite: others",
          "make test WORKERS=0 TESTS='"
          + " ".join(f"--ignore={folder}" for folder in EXPORT.split()) + "'",
          500, ("environment of 3.1.1",)),
    Stage("slow tests: models", "make test-slow WORKERS=0 TESTS=tests/models", 355,
          ("environment of 3.1.1",)),
    Stage("slow tests: others",
          "make test-slow WORKERS=0 TESTS='--ignore=tests/models --every 3'", 230,
          ("environment of 3.1.1", "demo of transformers")),
    Stage("Paddle 2.6.2", "make test-2.6 WORKERS=0", 260, ("environment of 2.6.2",)),
    Stage("Paddle 2.6.2, slow", "make test-slow-2.6 WORKERS=0", 60,
          ("environment of 2.6.2", "slow tests: models")),
    Stage("Paddle 3.3.1", "make test-3.3 WORKERS=0", 280, ("environment of 3.3.1",)),
    Stage("Paddle 3.3.1, slow", "make test-slow-3.3 WORKERS=0", 70,
          ("environment of 3.3.1", "slow tests: models")),
    Stage("two Paddle versions", "make test-versions", 25,
          ("environment of 2.6.2", "environment of 3.3.1")),
    Stage("Paddle-Lite", "make test-lite", 210,
          ("environment of 3.1.1", "environment of Paddle-Lite", "slow tests: models")),
    Stage("demo", "make demo", 70, ("environment of 3.1.1",)),
    Stage("demo of deployment", "make demo-deploy", 50, ("environment of 3.1.1",)),
    Stage("demo of images", "make demo-images", 70, ("environment of 3.1.1",)),
    Stage("wheel", "make wheel", 10),
    Stage("wheel on Python 3.9", "make smoke PY=3.9", 30, ("wheel",)),
    Stage("wheel on Python 3.13", "make smoke PY=3.13", 30, ("wheel",)),
    Stage("browser", BROWSER, 30),
    Stage("VisualDL in a browser", "make test-browser", 90,
          ("browser", "environment of 3.1.1", "environment of 3.3.1")),
]


def slug(stage):
    return re.sub(r"[^a-z0-9.]+", "-", stage.name.lower())


def remaining(stages):
    """Return, by name, the estimated seconds from the start of a stage to the end of the run."""
    lengths = {}

    def length(stage):
        if stage.name not in lengths:
            after = [length(other) for other in stages if stage.name in other.needs]
            lengths[stage.name] = stage.seconds + max(after, default=0)
        return lengths[stage.name]

    for stage in stages:
        length(stage)
    return lengths


class Run:
    """State of all stages: waiting, running or ended."""

    def __init__(self, stages, cores):
        self.stages, self.cores = stages, cores
        self.priority = remaining(stages)
        self.began = time.time()
        self.processes = {}  # name -> Popen
        self.results = {}  # name -> (start, end, result, last line)

    def free(self):
        used = sum(stage.cores for stage in self.stages if stage.name in self.processes)
        return self.cores - used

    def start_ready(self):
        waiting = [stage for stage in self.stages
                   if stage.name not in self.processes and stage.name not in self.results]
        for stage in waiting:
            failed = [name for name in stage.needs
                      if name in self.results and self.results[name][2] != "ok"]
            if failed:
                self.results[stage.name] = (0, 0, "NOT RUN", f"needs {', '.join(failed)}")
        ready = [stage for stage in waiting if stage.name not in self.results and all(
            self.results.get(name, (0, 0, ""))[2] == "ok" for name in stage.needs)]
        for stage in sorted(ready, key=lambda stage: -self.priority[stage.name]):
            if min(stage.cores, self.cores) <= self.free():
                self.start(stage)

    def start(self, stage):
        print(f"=== {time.time() - self.began:5.0f} s  {stage.name}: {stage.command}", flush=True)
        report = LOGS / f"{slug(stage)}.xml"
        environment = {**os.environ, "PYTEST_ADDOPTS": f"--junitxml={report}"}
        with open(LOGS / f"{slug(stage)}.log", "wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", stage.command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        process.started = time.time()
        self.processes[stage.name] = process

    def collect_ended(self):
        for stage in self.stages:
            process = self.processes.get(stage.name)
            if process is None or process.poll() is None:
                continue
            del self.processes[stage.name]
            text = (LOGS / f"{slug(stage)}.log").read_text(encoding="utf-8", errors="replace")
            lines = text.strip().splitlines() or [""]
            result = "ok" if process.returncode == 0 else f"FAILED ({process.returncode})"
            closing = [line for line in lines if re.search(r"\d (passed|failed|error)", line)]
            start, end = process.started - self.began, time.time() - self.began
            self.results[stage.name] = (start, end, result, closing[-1] if closing else "")
            print("\n".join(lines if process.returncode else lines[-TAIL:]))
            print(f"=== {end:5.0f} s  {stage.name}: {result}, {end - start:.0f} s", flush=True)

    def __call__(self):
        try:
            while len(self.results) < len(self.stages):
                self.start_ready()
                self.collect_ended()
                time.sleep(0.2)
        finally:
            for process in self.processes.values():
                os.killpg(process.pid, signal.SIGKILL)
        return all(result == "ok" for _, _, result, _ in self.results.values())

    def print_table(self):
        print(f"\n{'stage':28}{'start':>7}{'seconds':>9}  {'result':14}closing line")
        for stage in sorted(self.stages, key=lambda stage: self.results[stage.name][0]):
            start, end, result, closing = self.results[stage.name]
            print(f"{stage.name:28}{start:7.0f}{end - start:9.0f}  {result:14}"
                  f"{closing.strip('= ')}")
        busy = sum(end - start for start, end, _, _ in self.results.values())
        total = time.time() - self.began
        print(f"{'all':28}{0:7}{total:9.0f}  {busy / total / self.cores:.0%} of {self.cores} cores")


def test_times():
    """Return (seconds, stage, test) of every test in the reports of pytest."""
    found = []
    for report in LOGS.glob("*.xml"):
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
            found.append((float(case.get("time", 0)), report.stem, name))
    return sorted(found, reverse=True)


def print_test_times():
    times = test_times()
    print(f"\nThe {SLOWEST} slowest of {len(times)} tests")
    for seconds, stage, name in times[:SLOWEST]:
        print(f"{seconds:8.1f} s  {stage:24}{name}")
    folders = {}
    for seconds, stage, name in times:
        key = stage, "/".join(name.split("::")[0].split("/")[:2])
        folders[key] = folders.get(key, 0) + seconds
    print("\nSeconds of tests, by stage and folder (20 s and more)")
    for (stage, folder), seconds in sorted(folders.items(), key=lambda item: -item[1]):
        if seconds >= 20:
            print(f"{seconds:8.0f} s  {stage:24}{folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", metavar="PATTERN", help="stages to run, with what they need")
    parser.add_argument("--list", action="store_true", help="list the stages")
    options = parser.parse_args()
    stages = STAGES
    if options.only:
        by_name = {stage.name: stage for stage in STAGES}
        wanted = fnmatch.filter(by_name, options.only)
        for name in wanted:
            wanted.extend(need for need in by_name[name].needs if need not in wanted)
        stages = [stage for stage in STAGES if stage.name in wanted]
    if options.list or not stages:
        for stage in stages or STAGES:
            print(f"{stage.name:28}{stage.seconds:5} s  {stage.command}")
        return 0 if stages else 2
    LOGS.mkdir(parents=True, exist_ok=True)
    for file in LOGS.iterdir():
        file.unlink()
    run = Run(stages, options.cores)
    passed = run()
    run.print_table()
    print_test_times()
    print(f"\n=== {'all passed' if passed else 'FAILED'}, {time.time() - run.began:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
