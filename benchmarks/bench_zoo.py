"""Small networks of about 65 architectures, quantized, in every stock runtime.

For each: distance of the runtime from the simulation, and in brackets the distance that rounding
explains. ``--seed`` draws other weights and inputs. Exits with 1 if a value is wrong.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "tests/helpers")]

import zlib  # noqa: E402, F401  (before paddle: Paddle 2.6 brings zlib symbols)

from zoo_architectures import ARCHITECTURES, METHODS, RUNTIMES, measure  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ARCHITECTURES)}; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(ARCHITECTURES))
    if unknown:
        parser.error(f"unknown architectures: {', '.join(unknown)}")
    logging.getLogger("paddleq").setLevel(logging.ERROR)
    print(f"{'':24}{'loss':>9}" + "".join(f"{runtime:>20}" for runtime in args.runtimes))
    failed, reasons = [], []
    for name in args.names or ARCHITECTURES:
        for method in args.methods:
            result, cells = measure(name, method, args.seed, args.runtimes), []
            for runtime in args.runtimes:
                if runtime in result.refusals:
                    cells.append("refused")
                    reasons.append(f"{name}, {method}, {runtime}: {result.refusals[runtime]}")
                    continue
                mark = "!" if result.wrong(runtime) else " "
                cells.append(f"{result.errors[runtime]:.1e}{mark}({result.bound(runtime):.0e})")
                if mark == "!":
                    failed.append(f"{name}, {method}, {runtime}")
            print(f"{name + ', ' + method:24}{result.loss:9.1e}"
                  + "".join(f"{cell:>20}" for cell in cells), flush=True)
    for reason in reasons:
        print("refused:", reason)
    for each in failed:
        print("wrong:", each)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
