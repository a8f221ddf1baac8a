"""Print how far each runtime is from the simulation, for trained models.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/helpers/model_tables.py ...

    vision [--seed N] [MODEL ...]
    pir [MODEL ...]    (Paddle 3)
    deploy [--seconds S] [MODEL ...]
"""

import argparse
import tempfile
import time
import warnings
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

import deploy_cases
import paddle
import vision
import zoo
from runtimes import openvino, paddle_inference, relative_error
from zoo_export import METHODS, cases, difference, export

DISTANCES = (f"{'Inference, as is':>18}{'int8':>10}{'OpenVINO':>12}{'its int8':>12}"
             f"{'Inference, fused float':>24}")


def distances(path, x, expected):
    """Return the table cells of :data:`DISTANCES`: relative L2 distances from ``expected``."""
    plain, fused = (relative_error(paddle_inference(path, [x], ir_optim=optim)[0], expected)
                    for optim in (False, True))
    try:
        int8 = relative_error(paddle_inference(path, [x], ir_optim=True, int8=True)[0], expected)
    except RuntimeError:  # shown as nan: the runtime refuses the model
        int8 = float("nan")
    vino, fast = (relative_error(openvino(path, [x], as_is=as_is)[0], expected)
                  for as_is in (True, False))
    return f"{plain:18.2e}{int8:10.4f}{vino:12.2e}{fast:12.2e}{fused:24.2e}"


def vision_table(models, seed):
    print(f"Paddle {paddle.__version__}, seed {seed}; relative L2 distance to the simulated model, "
          "but for the share of correct labels")
    print(f"{'model':20}{'method':8}{'labels':>8}{'float':>9}{DISTANCES}")
    for name in models or vision.MODELS:
        for method in ("qat", "ptq"):
            with tempfile.TemporaryDirectory() as folder:
                expected, x = vision.export_both(name, method, f"{folder}/m", seed)
                quantization = relative_error(vision.float_outputs(name, seed), expected)
                found = distances(f"{folder}/m", x, expected)
            print(f"{name:20}{method:8}{vision.share_right(expected):8.2f}{quantization:9.4f}"
                  f"{found}", flush=True)


def _pir_cell(run, expected):
    try:
        return f"{difference(run(), expected):.1e}"
    except RuntimeError as error:
        missing = str(error).partition("No creator found for ")[2]
        return f"no {missing.split()[0]}" if missing else "refused"


def _pir_row(path, inputs, expected):
    return (_pir_cell(lambda: paddle_inference(path, inputs), expected),
            _pir_cell(lambda: paddle_inference(path, inputs, ir_optim=True), expected),
            _pir_cell(lambda: openvino(path, inputs), expected))


def pir_table(models):
    print(f"Paddle {paddle.__version__}; largest relative L2 distance of an output to dygraph, and "
          "of dygraph to the float model")
    print(f"{'model':22}{'':8}{'Inference':>12}{'optimized':>12}{'OpenVINO':>16}{'rounding':>12}"
          f"{'s':>8}")
    for name in models or zoo.ZOO:
        for method in METHODS:
            started = time.time()
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/model"
                for inputs, expected, plain in cases(name, *export(name, method, path)):
                    row = _pir_row(path, inputs, expected)
                    print(f"{name:22}{method:8}{row[0]:>12}{row[1]:>12}{row[2]:>16}"
                          f"{difference(expected, plain):12.1e}{time.time() - started:8.1f}",
                          flush=True)


def deploy_table(models, seconds):
    for name in models or deploy_cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\nPaddle {paddle.__version__}, {name}")
            print(deploy_cases.report(name, folder, seconds), flush=True)


def main():
    parser = argparse.ArgumentParser()
    tables = parser.add_subparsers(dest="table", required=True)
    for name in ("vision", "pir", "deploy"):
        table = tables.add_parser(name)
        table.add_argument("models", nargs="*", metavar="model")
        if name == "vision":
            table.add_argument("--seed", type=int, default=0)
        if name == "deploy":
            table.add_argument("--seconds", type=float, default=2.0, help="timing of each runtime")
    options = vars(parser.parse_args())
    warnings.simplefilter("ignore")
    {"vision": vision_table, "pir": pir_table, "deploy": deploy_table}[options.pop("table")](
        **options)


if __name__ == "__main__":
    main()
