"""Rounding a weight row after row, while errors are fed back to the rows that follow."""

import paddle

from ..functional.fake_quant import round_and_clip_

# Each row that is rounded updates the rest of its block, which is wasteful with many: of 4 to 128
# rows all cost about the same, 128 a tenth more.
_FEW = 16


class RowByRow:
    """One pass over a weight [K, N], which it leaves as it is.

    Halves within halves: the upper half of some rows is rounded, one matrix product feeds its
    errors back to the lower half, and so on within either. So nearly all of the work is in large
    products, and only a few rows are updated after each single one.

    Args:
        weight: float32 [K, N], rows in the order of quantization.
        feedback: what :func:`~paddleq.algorithms.error_feedback.feedback_matrix` gives.
        spec: a :class:`~paddleq.QuantSpec`.
        size: how many rows make a group.
        steps_of: called when the turn of a group comes, with (number of its first row, the best
            real values of its rows, given how all rows before were rounded: float32). Returns for
            each row of the group (scale, zero point or None), float32 [1] or [N].
        block_size: how many rows at most are rounded one by one between two matrix products;
            more than 16 are never taken.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms.gptq_rows import RowByRow
        >>> feedback = paddle.to_tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> rows = RowByRow(paddle.to_tensor([[0.4], [0.2]]), feedback, QuantSpec(bits=4), 2,
        ...                 lambda start, best: [(paddle.ones([1]), None)] * 2)
        >>> rows.integers().tolist()  # 0.2 + 0.4 is nearer to 1
        [[0], [1]]
    """

    def __init__(self, weight, feedback, spec, size, steps_of, block_size=_FEW):
        self.weight, self.feedback, self.spec = weight, feedback, spec
        self.size, self.steps_of, self.block_size = size, steps_of, min(block_size, _FEW)
        self._errors = paddle.zeros_like(weight)
        self._steps = []
        self._integers = []

    def integers(self):
        """Round all rows; returns them in the spec's storage."""
        self._round(0, self.weight.shape[0], self.weight)
        return paddle.concat(self._integers)

    def _round(self, start, stop, target):
        """Round these rows, which ``target`` holds with the errors of all before them fed back."""
        rows = stop - start
        if rows <= self.size and len(self._steps) == start:
            self._steps += self.steps_of(start, self._best(start, stop, target))
        if rows <= self.block_size and rows <= self.size:
            self._round_block(start, target)
            return
        # Groups stay whole for as long as there are several.
        unit = self.size if rows > self.size else self.block_size
        half = -(-rows // unit) // 2 * unit
        self._round(start, start + half, target[:half])
        owed = paddle.matmul(self.feedback[start + half:stop, start:start + half],
                             self._errors[start:start + half])
        self._round(start + half, stop, target[half:] + owed)

    def _best(self, start, stop, target):
        """What these rows would best be if they were not rounded.

        ``target`` is that for the first one. The others reckon with the ones before them as they
        are best, not as they will have been rounded.
        """
        if not start:
            return target
        weight = self.weight[start:stop]
        # With e = weight - best, best = target + within @ e: (1 + within) @ e = weight - target.
        within = self.feedback[start:stop, start:stop]
        return weight - paddle.linalg.triangular_solve(within, weight - target, upper=False,
                                                       unitriangular=True)

    def _round_block(self, start, target):
        stop = start + target.shape[0]
        # Of a column, the rows that have been rounded are zero: no slices need to be taken.
        columns = self.feedback[start:stop, start:stop].unsqueeze(2).unbind(1)
        rows, levels, errors = self.weight[start:stop].unbind(0), [], []
        for i, (scale, zero) in enumerate(self._steps[start:stop]):
            if i:
                target = paddle.addmm(target, columns[i - 1], errors[-1].unsqueeze(0))
            level = round_and_clip_(target[i] / scale, self.spec, 0 if zero is None else zero)
            errors.append(rows[i] - level * scale)
            levels.append(level if zero is None else level + zero)
        self._errors[start:stop] = paddle.stack(errors)
        self._integers.append(paddle.stack(levels).astype(self.spec.storage))
