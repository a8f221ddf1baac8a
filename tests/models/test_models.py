"""Simulated = exported, for the models of ``paddle.vision.models``.

``python tests/test_models.py [--seed N] [model ...]`` prints the table. One thread
(OMP_NUM_THREADS=1) in everything that is compared: sums in another order move values on rounding
borders.
"""

import argparse
import tempfile
import warnings
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

import paddle
import pytest
import vision
from runtimes import DISTANCES, distances, openvino, paddle_inference, relative_error
from trained import first

pytestmark = pytest.mark.slow

# Those of a model in one process (--dist loadgroup): it is trained once.
CASES = [pytest.param(name, method, marks=pytest.mark.xdist_group(name))
         for name in vision.MODELS for method in ("qat", "ptq")]


@pytest.mark.parametrize("name, method", CASES)
def test_exported_equals_simulated(name, method, tmp_path):
    path = str(tmp_path / "model")
    expected, x = vision.export_both(name, method, path)
    assert vision.share_right(expected) >= 0.4  # it works: by chance it would be 0.1
    assert relative_error(paddle_inference(path, [x])[0], expected) <= 1e-4
    assert relative_error(openvino(path, [x])[0], expected) <= 1e-2
    if paddle.__version__.startswith("2.6"):
        # Paddle 3's jit.load does not see a .pdmodel.
        loaded = paddle.jit.load(path)
        assert relative_error(first(loaded(paddle.to_tensor(x))).numpy(), expected) <= 1e-4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("models", nargs="*", default=list(vision.MODELS), metavar="model")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"Paddle {paddle.__version__}, seed {args.seed}; relative L2 distance to the simulated "
          "model, but for the share of labels that it gets right")
    print(f"{'model':20}{'method':8}{'labels':>8}{'float':>9}{DISTANCES}")
    for name in args.models:
        for method in ("qat", "ptq"):
            with tempfile.TemporaryDirectory() as folder:
                expected, x = vision.export_both(name, method, f"{folder}/m", args.seed)
                quantization = relative_error(vision.float_outputs(name, args.seed), expected)
                found = distances(f"{folder}/m", x, expected)
            print(f"{name:20}{method:8}{vision.share_right(expected):8.2f}{quantization:9.4f}"
                  f"{found}", flush=True)


if __name__ == "__main__":
    main()
