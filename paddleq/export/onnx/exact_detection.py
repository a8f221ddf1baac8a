"""ONNX forms of the operators that select boxes."""

import numpy as np

from .splice import exact_form

_FLOAT, _INT32, _INT64 = 1, 6, 7  # onnx.TensorProto.DataType
_LOWEST = np.float32(-3e38)  # score of a box that is left out


@exact_form("multiclass_nms3", "multiclass_nms2", "multiclass_nms")
def multiclass_nms(operator):
    """Boxes that no box of higher score overlaps, for each class.

    paddle2onnx orders them by score, and ignores the offset of pixels and the limit for each class.
    (With pixels, a gap of less than one between two boxes counts as an overlap here.)
    """
    boxes, scores = operator.input("BBoxes"), operator.input("Scores")
    if (len(operator.shape(scores)) != 3 or operator.shape(boxes)[2:] != [4]
            or operator.attribute("nms_eta", 1.0) < 1 or operator.input("RoisNum")):
        return None

    def write(to):
        classes = operator.shape(scores)[1]
        kept = _without_background(to, operator, scores, classes)
        kept = _highest(to, kept, operator.attribute("nms_top_k", -1))
        corners = boxes
        if not operator.attribute("normalized", True):  # pixels, whose last one is inside
            corners = to.node("Add", boxes, np.array([0, 0, 1, 1], np.float32))
        count = to.node("Gather", to.node("Shape", boxes), np.array([1]))
        chosen = to.node("NonMaxSuppression", corners, kept, count,
                         np.float32(operator.attribute("nms_threshold", 0.3)),
                         np.float32(operator.attribute("score_threshold", 0.0)))
        # Rows (image, class, box), sorted by image, class and score.
        values = to.node("GatherND", scores, chosen)
        chosen, values = _best(to, chosen, values, boxes, operator.attribute("keep_top_k", -1))
        _write_detections(to, operator, boxes, chosen, values)

    return write


@exact_form("nms")
def nms(operator):
    """Boxes that no box before them overlaps; ``paddle.vision.ops.nms`` sorts them by score."""
    def write(to):
        boxes = operator.input("Boxes")
        count = to.node("Shape", boxes)
        count = to.node("Gather", count, np.array(0))
        order = to.node("Neg", to.node("Cast", to.node("Range", np.array(0), count, np.array(1)),
                                       to=_FLOAT))
        chosen = to.node("NonMaxSuppression", to.node("Unsqueeze", boxes, np.array([0])),
                         to.node("Unsqueeze", order, np.array([0, 1])),
                         to.node("Unsqueeze", count, np.array([0])),
                         np.array([operator.attribute("iou_threshold", 0.3)], np.float32))
        to.node("Gather", chosen, np.array(2), axis=1, output=operator.output("KeepBoxesIdxs"))

    return write


@exact_form("matrix_nms")
def matrix_nms(operator):
    """Boxes whose scores the overlap with boxes of higher scores lowers."""
    boxes, scores = operator.input("BBoxes"), operator.input("Scores")
    if operator.shape(boxes)[2:] != [4]:
        return None

    def write(to):
        kept = _without_background(to, operator, scores, operator.shape(scores)[1])
        count = to.node("Gather", to.node("Shape", boxes), np.array([1]))
        limit = operator.attribute("nms_top_k", -1)
        if limit >= 0:
            count = to.node("Min", count, np.array([limit]))
        values, places = _top(to, kept, count)
        pixel = np.float32(0.0 if operator.attribute("normalized", True) else 1.0)
        picked = to.node("GatherND", boxes, to.node("Unsqueeze", places, np.array([3])),
                         batch_dims=1)
        decay = _decay(to, operator, _overlaps(to, picked, pixel))
        lowered = to.node("Mul", values, decay)
        valid = to.node("And", *(to.node("Greater", each, np.float32(operator.attribute(name)))
                                 for each, name in ((values, "score_threshold"),
                                                    (lowered, "post_threshold"))))
        rows = to.node("Transpose", to.node("NonZero", valid), perm=[1, 0])
        box = to.node("Unsqueeze", to.node("GatherND", places, rows), np.array([1]))
        chosen = to.node("Concat", to.node("Gather", rows, np.array([0, 1]), axis=1), box, axis=1)
        found = to.node("GatherND", lowered, rows)
        _write_detections(to, operator, boxes, *_best(
            to, chosen, found, boxes, operator.attribute("keep_top_k", -1), by_score=True))

    return write


def _overlaps(to, boxes, pixel):
    """Return the intersection over union of each box with those before it, 0 for the others."""
    sides = []
    for axes in ([2, 3], [0, 1]):
        ends = to.node("Gather", boxes, np.array(axes), axis=3)
        kind = "Min" if axes == [2, 3] else "Max"
        sides.append(to.node(kind, to.node("Unsqueeze", ends, np.array([3])),
                             to.node("Unsqueeze", ends, np.array([2]))))
        if axes == [2, 3]:
            last = ends
    size = to.node("Add", to.node("Sub", last, ends), pixel)
    area = to.node("Mul", *(to.node("Gather", size, np.array(i), axis=3) for i in (0, 1)))
    reach = to.node("Sub", *sides)
    meets = to.node("Cast", to.node("GreaterOrEqual", reach, np.float32(0)), to=_FLOAT)
    shared = to.node("Mul", to.node("Add", reach, pixel), meets)
    common = to.node("Mul", *(to.node("Gather", shared, np.array(i), axis=4) for i in (0, 1)))
    union = to.node("Sub", to.node("Add", to.node("Unsqueeze", area, np.array([3])),
                                   to.node("Unsqueeze", area, np.array([2]))), common)
    return to.node("Trilu", to.node("Div", common, union), np.array(-1), upper=0)


def _decay(to, operator, overlaps):
    """Return the least factor of each box: of all boxes before it, and 1."""
    own = to.reduce("ReduceMax", overlaps, 3)  # of the boxes before, with those before them
    before = to.node("Unsqueeze", own, np.array([2]))
    one = np.float32(1)
    if operator.attribute("use_gaussian", False):
        squares = to.node("Sub", to.node("Mul", before, before),
                          to.node("Mul", overlaps, overlaps))
        factor = to.node("Exp", to.node("Mul", squares, np.float32(
            operator.attribute("gaussian_sigma", 2.0))))
    else:
        factor = to.node("Div", to.node("Sub", one, overlaps),
                         to.node("Add", to.node("Sub", one, before), np.float32(1e-10)))
    # Factors of boxes that do not come before are 1.
    lower = to.node("Trilu", to.node("Sub", factor, one), np.array(-1), upper=0)
    return to.node("Add", to.node("Min", to.reduce("ReduceMin", lower, 3), np.float32(0)), one)


def _without_background(to, operator, scores, classes):
    background = operator.attribute("background_label", 0)
    if not 0 <= background < classes:
        return scores
    left_out = (np.arange(classes) == background).reshape(1, classes, 1)
    return to.node("Where", left_out, _LOWEST, scores)


def _highest(to, scores, count):
    """Leave the ``count`` highest scores along the last axis; the others become the lowest."""
    if count < 0:
        return scores
    have = to.node("Gather", to.node("Shape", scores), np.array([2]))
    count = to.node("Min", have, np.array([count]))
    values, places = _top(to, scores, count)
    lowest = to.node("Expand", _LOWEST, to.node("Shape", scores))
    return to.node("ScatterElements", lowest, places, values, axis=2)


def _top(to, values, count, largest=1):
    """Return the ``count`` highest or lowest values along the last axis, and their places."""
    names = [to.names.fresh("form.TopK"), to.names.fresh("form.places")]
    to.several("TopK", values, count, outputs=names, largest=largest)
    return names


def _images(to, chosen, boxes):
    """Return a table with a 1 in the column of the image of each row."""
    count = to.node("Gather", to.node("Shape", boxes), np.array(0))
    images = to.node("Range", np.array(0), count, np.array(1))
    own = to.node("Gather", chosen, np.array([0]), axis=1)
    return to.node("Cast", to.node("Equal", own, images), to=_INT64)


def _best(to, chosen, values, boxes, count, by_score=False):
    """Leave the ``count`` rows of each image with the highest scores.

    They keep their order, or are sorted by image and then ``by_score``.
    """
    if count < 0 and not by_score:
        return chosen, values
    _, order = _top(to, values, to.node("Shape", values))
    if count >= 0:
        table = _images(to, to.node("Gather", chosen, order), boxes)
        rank = to.node("ReduceSum", to.node("Mul", to.node("CumSum", table, np.array(0)), table),
                       np.array([1]), keepdims=0)
        order = to.node("Compress", order, to.node("LessOrEqual", rank, np.array(count)), axis=0)
    if by_score:
        size = to.node("Shape", order)
        image = to.node("Gather", to.node("Gather", chosen, order), np.array(0), axis=1)
        place = to.node("Range", np.array(0), to.node("Squeeze", size), np.array(1))
        key = to.node("Add", to.node("Mul", image, size), place)
        order = to.node("Gather", order, _top(to, key, size, largest=0)[1])
    else:
        order, _ = _top(to, order, to.node("Shape", order), largest=0)
    return to.node("Gather", chosen, order), to.node("Gather", values, order)


def _write_detections(to, operator, boxes, chosen, values):
    """Write rows (class, score, corners), their numbers among all boxes, and their counts."""
    place = to.node("Gather", chosen, np.array([0, 2]), axis=1)
    label = to.node("Cast", to.node("Gather", chosen, np.array([1]), axis=1), to=_FLOAT)
    score = to.node("Unsqueeze", values, np.array([1]))
    to.node("Concat", label, score, to.node("GatherND", boxes, place), axis=1,
            output=operator.output())
    if operator.output("Index"):
        size = to.node("Gather", to.node("Shape", boxes), np.array([1]))
        image, box = (to.node("Gather", chosen, np.array([i]), axis=1) for i in (0, 2))
        number = to.node("Add", to.node("Mul", image, size), box)
        to.node("Cast", number, to=_INT32, output=operator.output("Index"))
    numbers = operator.output("NmsRoisNum") or operator.output("RoisNum")
    if numbers:
        counts = to.node("ReduceSum", _images(to, chosen, boxes), np.array([0]), keepdims=0)
        to.node("Cast", counts, to=_INT32, output=numbers)


@exact_form("box_coder")
def box_coder(operator):
    """Boxes as differences from prior boxes, or back."""
    target, prior = operator.input("TargetBox"), operator.input("PriorBox")
    encode = operator.attribute("code_type") == "encode_center_size"
    pixel = np.float32(0.0 if operator.attribute("box_normalized", True) else 1.0)
    # Targets are rows for encoding; for decoding, the axis of the prior boxes is chosen.
    added = 0 if encode else operator.attribute("axis", 0)

    def factors(to):
        """Return the variances, None without any."""
        if operator.input("PriorBoxVar"):
            return to.node("Unsqueeze", operator.input("PriorBoxVar"), np.array([added]))
        given = operator.attribute("variance") or []
        return np.array(given, np.float32) if given else None

    def write(to):
        size, center = _extents(to, to.node("Unsqueeze", prior, np.array([added])), pixel)
        variances, half = factors(to), np.float32(0.5)
        if encode:
            boxes = to.node("Unsqueeze", target, np.array([1]))
            own, _ = _extents(to, boxes, pixel)
            ends = [to.node("Gather", boxes, np.array(places), axis=2)
                    for places in ([0, 1], [2, 3])]
            middle = to.node("Mul", to.node("Add", *ends), half)
            parts = [to.node("Div", to.node("Sub", middle, center), size),
                     to.node("Log", to.node("Abs", to.node("Div", own, size)))]
            found = to.node("Concat", *parts, axis=2)
            to.node("Identity", found if variances is None else to.node("Div", found, variances),
                    output=operator.output("OutputBox"))
            return
        boxes = target if variances is None else to.node("Mul", target, variances)
        shift, growth = (to.node("Gather", boxes, np.array(places), axis=2)
                         for places in ([0, 1], [2, 3]))
        middle = to.node("Add", to.node("Mul", shift, size), center)
        reach = to.node("Mul", to.node("Mul", to.node("Exp", growth), size), half)
        to.node("Concat", to.node("Sub", middle, reach),
                to.node("Sub", to.node("Add", middle, reach), pixel), axis=2,
                output=operator.output("OutputBox"))

    return write


def _extents(to, boxes, pixel):
    """Return the sizes (width, height) and centers of boxes, along the last axis."""
    first, last = (to.node("Gather", boxes, np.array(places), axis=2)
                   for places in ([0, 1], [2, 3]))
    size = to.node("Add", to.node("Sub", last, first), pixel)
    return size, to.node("Add", first, to.node("Mul", size, np.float32(0.5)))


@exact_form("prior_box")
def prior_box(operator):
    """Boxes of given sizes around each place of a map; only the sizes of the inputs matter."""
    halves = _prior_sizes(operator) / 2
    variances = np.array(operator.attribute("variances"), np.float32)

    def write(to):
        sides = {slot: to.node("Gather", to.node("Shape", operator.input(slot)), np.array([3, 2]))
                 for slot in ("Input", "Image")}  # width, height
        image = to.node("Cast", sides["Image"], to=_FLOAT)
        steps = np.array([operator.attribute("step_w", 0.0), operator.attribute("step_h", 0.0)],
                         np.float32)
        if not steps.all():
            steps = to.node("Div", image, to.node("Cast", sides["Input"], to=_FLOAT))
        grid = to.node("Concat", to.node("Gather", sides["Input"], np.array([1, 0])),
                       np.array([1, 1]), axis=0)
        centers = [to.node("Expand", _centers(to, operator, sides["Input"], steps, axis), grid)
                   for axis in (0, 1)]
        center = to.node("Concat", *centers, axis=3)
        boxes = to.node("Concat", *(to.node("Div", to.node(kind, center, halves), image)
                                    for kind in ("Sub", "Add")), axis=3)
        if operator.attribute("clip", False):
            boxes = to.node("Clip", boxes, np.float32(0), np.float32(1))
        to.node("Identity", boxes, output=operator.output("Boxes"))
        to.node("Expand", variances, to.node("Shape", boxes), output=operator.output("Variances"))

    return write


def _prior_sizes(operator):
    """Return the sizes (width, height) of the boxes of a place, in the order of Paddle."""
    ratios, found = [1.0], []
    for ratio in operator.attribute("aspect_ratios") or []:
        if all(abs(ratio - each) >= 1e-6 for each in ratios):
            ratios += [ratio, 1 / ratio] if operator.attribute("flip", False) else [ratio]
    largest = operator.attribute("max_sizes") or []
    for number, size in enumerate(operator.attribute("min_sizes")):
        boxes = [(size * np.sqrt(ratio), size / np.sqrt(ratio)) for ratio in ratios]
        if largest:
            at = 1 if operator.attribute("min_max_aspect_ratios_order", False) else len(boxes)
            boxes.insert(at, (np.sqrt(size * largest[number]),) * 2)
        found += boxes
    return np.array(found, np.float32)


def _centers(to, operator, sides, steps, axis):
    """Return the coordinates of one axis, 0 for columns, in a tensor of rank 4."""
    step = (np.float32(steps[axis]) if isinstance(steps, np.ndarray)
            else to.node("Gather", steps, np.array(axis)))
    count = to.node("Gather", sides, np.array(axis))
    places = to.node("Cast", to.node("Range", np.array(0), count, np.array(1)), to=_FLOAT)
    places = to.node("Add", places, np.float32(operator.attribute("offset", 0.5)))
    return to.node("Unsqueeze", to.node("Mul", places, step),
                   np.array([0, 2, 3] if axis == 0 else [1, 2, 3]))
