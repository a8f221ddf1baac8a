"""Fixtures and settings of all tests. Modules of ``helpers`` are imported by their bare names."""

import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings zlib symbols that break a later import)

import numpy as np
import paddle
import pytest
from hypothesis import settings
from paddle_lite import Lite

# "ci" draws the same examples in each run, so that a failure comes from a change of the code.
# "nightly" (pytest --hypothesis-profile=nightly) explores.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("nightly", deadline=None, max_examples=300, print_blob=True)
settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption(
        "--every", type=int, default=1, metavar="N",
        help="of a test with 2 N or more cases run the first of each N, where CI has no time for "
             "all; nightly has (default: 1)")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    every = config.getoption("--every")
    cases = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {item for each in cases.values() if len(each) >= 2 * every
                for number, item in enumerate(each) if number % every}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _seeded():
    """Make the random numbers of a test independent of the tests before it."""
    paddle.seed(2024)
    np.random.seed(2024)


class Digits:
    """scikit-learn's digits: float32 NCHW images [n, 1, 8, 8] in [0, 1], int64 labels.

    Attributes:
        train, test: (images, labels), numpy.
    """

    def __init__(self):
        from sklearn.datasets import load_digits

        data = load_digits()
        images = (data.images / 16.0).astype("float32")[:, None]
        labels = data.target.astype("int64")
        order = np.random.RandomState(0).permutation(len(labels))
        train, test = order[:1437], order[1437:]
        self.train = images[train], labels[train]
        self.test = images[test], labels[test]

    def batches(self, size, count=None):
        """Return the first ``count`` batches of training images as tensors."""
        images = self.train[0]
        starts = range(0, len(images) - size + 1, size)
        return [paddle.to_tensor(images[i:i + size]) for i in list(starts)[:count]]


@pytest.fixture(scope="session")
def digits():
    """:class:`Digits`: real data, split once for all tests."""
    return Digits()


@pytest.fixture(scope="session")
def lite():
    """Paddle-Lite in its own interpreter."""
    return Lite()


@pytest.fixture
def prefix(tmp_path):
    """Path prefix of an export. Its files, some of hundreds of megabytes, are deleted at once."""
    yield str(tmp_path / "model")
    for file in tmp_path.iterdir():
        file.unlink()
