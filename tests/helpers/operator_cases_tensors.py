"""Reductions, shapes, indices and linear algebra for the test of operator conformance."""

import paddle
import paddle.nn.functional as F
from operator_cases import ramp, unit, whole

INDEX = [3, 0, 3, 5]


def index(*values, dtype="int64"):
    """Constant of indices."""
    return paddle.to_tensor(list(values), dtype)


REDUCTIONS = {
    "mean": lambda x: x.mean([1, 3]),
    "mean keepdim": lambda x: x.mean(2, keepdim=True),
    "mean all": lambda x: x.mean(),
    "sum": lambda x: x.sum([-1, 1]),
    "max": lambda x: x.max([2, 3], keepdim=True),
    "min": lambda x: x.min(1),
    "amax": lambda x: paddle.amax(x, [1, 2]),
    "amin": lambda x: paddle.amin(x, -1, keepdim=True),
    "prod": lambda x: paddle.prod(unit(x) + 1, 3),
    "all": lambda x: paddle.all(x > -1, 1),
    "any": lambda x: paddle.any(x > 1, [2, 3]),
    "std": lambda x: paddle.std(x, 1, unbiased=False),
    "var": lambda x: paddle.var(x, [2, 3], keepdim=True),
    "median": lambda x: paddle.median(x, 3),
    "median even": lambda x: paddle.median(x, 1),
    "nanmedian": lambda x: paddle.nanmedian(x, 2),
    "nanmean": lambda x: paddle.nanmean(x, 1),
    "nansum": lambda x: paddle.nansum(x, 2),
    "quantile 0.3": lambda x: paddle.quantile(x, 0.3, axis=2),
    "logsumexp": lambda x: paddle.logsumexp(x, [1, 2], keepdim=True),
    "norm": lambda x: paddle.norm(x, axis=1),
    "norm 1": lambda x: paddle.norm(x, 1, axis=2),
    "norm 1.5": lambda x: paddle.norm(x, 1.5, axis=2, keepdim=True),
    "norm inf": lambda x: paddle.norm(x, float("inf"), axis=1),
    "norm matrix": lambda x: paddle.norm(x, "fro", axis=[2, 3]),
    "vector_norm": lambda x: paddle.linalg.vector_norm(x, 3.0, axis=[1, 2]),
    "matrix_norm": lambda x: paddle.linalg.matrix_norm(x, 1, axis=[2, 3]),
    "count_nonzero": lambda x: paddle.count_nonzero(F.relu(x), 1),
    "cumsum": lambda x: paddle.cumsum(x, 2),
    "cumsum flat": lambda x: paddle.cumsum(x[0, 0]),
    "cumprod": lambda x: paddle.cumprod(unit(x) + 0.9, 1),
    "cummax": lambda x: paddle.cummax(x, 1)[0],
    "cummin": lambda x: paddle.cummin(x, 2)[0],
    "logcumsumexp": lambda x: paddle.logcumsumexp(x, 2),
    "argmax": lambda x: paddle.argmax(x, 1),
    "argmax keepdim": lambda x: paddle.argmax(x, -1, keepdim=True),
    "argmin": lambda x: paddle.argmin(x, 2, dtype="int32"),
    "argsort": lambda x: paddle.argsort(x, 1),
    "argsort descending": lambda x: paddle.argsort(x, 2, descending=True),
    "sort": lambda x: paddle.sort(x, 1),
    "sort descending": lambda x: paddle.sort(x, -1, descending=True),
    "topk": lambda x: paddle.topk(x, 4, axis=1),
    "topk smallest": lambda x: paddle.topk(x, 3, axis=2, largest=False),
    "kthvalue": lambda x: paddle.kthvalue(x, 3, axis=1)[0],
    "mode": lambda x: paddle.mode(whole(x), 2)[0],
    "searchsorted": lambda x: paddle.searchsorted(ramp(7, low=-2), x),
    "searchsorted right": lambda x: paddle.searchsorted(ramp(7, low=-2), x, right=True),
    "bucketize": lambda x: paddle.bucketize(x, ramp(7, low=-2)),
    "histogram": lambda x: paddle.histogram(x, 5, -2, 2),
    "bincount": lambda x: paddle.bincount(whole(x[0, 0, 0]), minlength=12),
    "renorm": lambda x: paddle.renorm(x, 2.0, 1, 1.5),
    "numel": lambda x: x.sum() / paddle.numel(x).astype("float32"),
    "normalize": lambda x: F.normalize(x, axis=1),
    "normalize 1.5": lambda x: F.normalize(x, 1.5, axis=2),
    "cov": lambda x: paddle.linalg.cov(x[0, 0]),
    "corrcoef": lambda x: paddle.linalg.corrcoef(x[0, 0]),
    "trace": lambda x: paddle.trace(x, 1, 2, 3),
    "trace later axis first": lambda x: paddle.trace(x, -1, 3, 2),
    "det": lambda x: paddle.linalg.det(x[:, :, :3, :3]),
    "inverse": lambda x: paddle.inverse(unit(x[:, :, :3, :3]) + 4 * paddle.eye(3)),
    "matrix_power": lambda x: paddle.linalg.matrix_power(unit(x[:, :, :3, :3]), 3),
    "multi_dot": lambda x: paddle.linalg.multi_dot([x[0, 0], x[0, 1].t(), x[1, 0]]),
    "cholesky": lambda x: paddle.linalg.cholesky(
        paddle.matmul(x[0, 0, :3], x[0, 0, :3], transpose_y=True) + 4 * paddle.eye(3)),
}

SHAPES = {
    "reshape": lambda x: x.reshape([0, 4, -1, 7]),
    "transpose": lambda x: x.transpose([0, 2, 3, 1]),
    "flatten": lambda x: x.flatten(1, 2),
    "squeeze": lambda x: x[:, 2:3].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze([1, -1]),
    "concat": lambda x: paddle.concat([x, F.relu(x), x], 2),
    "split": lambda x: paddle.split(x, [2, 4, -1], 2),
    "chunk": lambda x: paddle.chunk(x, 3, 1),
    "tensor_split": lambda x: paddle.tensor_split(x, 4, 2),
    "stack": lambda x, y: paddle.stack([x, y], 2),
    "unstack": lambda x: paddle.unstack(x, 3),
    "unbind": lambda x: paddle.unbind(x, 0),
    "tile": lambda x: paddle.tile(x, [1, 2, 1, 3]),
    "expand": lambda x: x[:, :, :1].expand([2, 12, 4, 7]),
    "expand_as": lambda x, y: x[:, :1].expand_as(y),
    "broadcast_to": lambda x: paddle.broadcast_to(x[:, :, :, :1], [2, 12, 9, 3]),
    "broadcast_tensors": lambda x, y: paddle.broadcast_tensors([x[:, :1], y[:, :, :1]]),
    "flip": lambda x: paddle.flip(x, [1, 3]),
    "rot90": lambda x: paddle.rot90(x, 1, [2, 3]),
    "roll": lambda x: paddle.roll(x, [2, -3], [2, 3]),
    "roll flat": lambda x: paddle.roll(x, 5),
    "moveaxis": lambda x: paddle.moveaxis(x, 1, -1),
    "t": lambda x: paddle.t(x[0, 0]),
    "slice": lambda x: x[:, 1:-2, ::2, -4:],
    "slice negative step": lambda x: x[:, :, ::-2],
    "slice negative steps": lambda x: x[::-1, 9::-4, 1:7:3, ::-2],
    "slice negative step bounded": lambda x: x[:, 7:1:-2, -2:-8:-3],
    "slice negative step squeezed": lambda x: x[:, ::-2, 3, -2::-1],
    "strided_slice": lambda x: paddle.strided_slice(x, [1, 3], [10, 0], [1, 6], [-3, 2]),
    "crop": lambda x: paddle.crop(x, [2, 5, -1, 4], [0, 3, 2, 1]),
    "tril": lambda x: paddle.tril(x, -1),
    "triu": lambda x: paddle.triu(x, 2),
    "diag": lambda x: paddle.diag(x[0, 0, 0], 1),
    "diag of matrix": lambda x: paddle.diag(x[0, 0], -1),
    "diagonal": lambda x: paddle.diagonal(x, 1, 2, 3),
    "diag_embed": lambda x: paddle.diag_embed(x[:, :, 0], 1),
    "diagflat": lambda x: paddle.diagflat(x[0, 0, 0], -1),
    "meshgrid": lambda x: paddle.meshgrid(x[0, 0, 0], x[0, :, 0, 0]),
    "repeat_interleave": lambda x: paddle.repeat_interleave(x, 3, 2),
    "unflatten": lambda x: paddle.unflatten(x, 1, [3, -1]),
    "hstack": lambda x, y: paddle.hstack([x, y]),
    "vstack": lambda x, y: paddle.vstack([x, y]),
    "dstack": lambda x, y: paddle.dstack([x, y]),
    "hsplit": lambda x: paddle.hsplit(x, 3),
    "vsplit": lambda x: paddle.vsplit(x, 2),
    "atleast_2d": lambda x: paddle.atleast_2d(x[0, 0, 0]),
    "block_diag": lambda x: paddle.block_diag([x[0, 0], x[1, 0, :2]]),
    "cartesian_prod": lambda x: paddle.cartesian_prod([x[0, 0, 0], x[0, 1, 1]]),
    "vander": lambda x: paddle.vander(unit(x[0, 0, 0]), 4),
    "tensor_unfold": lambda x: x.unfold(2, 3, 2),
    "as_strided": lambda x: paddle.as_strided(x, [2, 3, 4], [40, 7, 2], 3),
    "eye": lambda x: paddle.matmul(x, paddle.eye(7, 4)),
    "arange": lambda x: x + paddle.arange(7, dtype="float32"),
    "linspace": lambda x: x + paddle.linspace(-1, 2, 7),
    "full": lambda x: x + paddle.full([12, 1, 1], 0.3),
    "shape": lambda x: x * paddle.shape(x)[2].astype("float32"),
    "nonzero": lambda x: paddle.nonzero(x[0, 0] > 0.2),
    "masked_select": lambda x: paddle.masked_select(x, x > 0.5),
}

INDICES = {
    "gather": lambda x: paddle.gather(x, index(*INDEX), 1),
    "gather axis 2": lambda x: paddle.gather(x, index(8, 0, 8), 2),
    "gather_nd": lambda x: paddle.gather_nd(x, paddle.to_tensor([[1, 3], [0, 11]])),
    "index_select": lambda x: paddle.index_select(x, index(*INDEX), 3),
    "index_sample": lambda x: paddle.index_sample(
        x[:, :, 0, 0], paddle.to_tensor([[3, 0], [11, 3]])),
    "index_put": lambda x: paddle.index_put(x, (index(0, 1), index(3, 5)), x[:, 0] * 2),
    "index_put accumulate": lambda x: paddle.index_put(
        x, (index(1, 1), index(3, 3)), x[:, 0] * 2, True),
    "index_fill": lambda x: paddle.index_fill(x, index(0, 4), 1, 2.5),
    "take": lambda x: paddle.take(x, index(0, 5, 100, -1)),
    "take_along_axis": lambda x: paddle.take_along_axis(
        x, paddle.to_tensor([[[[1]], [[7]]]]), 1),
    "put_along_axis": lambda x: paddle.put_along_axis(
        x, paddle.to_tensor([[[[1, 2]]], [[[4, 0]]]]), 2.5, 3),
    "put_along_axis add": lambda x: paddle.put_along_axis(
        x[0, 0, :, :2], paddle.to_tensor([[1, 2], [1, 0]]), x[0, 1, :2, :2], 0, "add"),
    "scatter": lambda x, y: paddle.scatter(x[0], index(3, 1), y[0, :2]),
    "scatter add": lambda x, y: paddle.scatter(x[0], index(3, 3), y[0, :2], overwrite=False),
    "scatter_nd": lambda x: paddle.scatter_nd(
        paddle.to_tensor([[1], [4], [1]]), x[0, :3], [6, 9, 7]),
    "scatter_nd_add": lambda x, y: paddle.scatter_nd_add(
        x, paddle.to_tensor([[1, 3], [0, 2], [1, 3]]), y[0, :3]),
    "select_scatter": lambda x, y: paddle.select_scatter(x, y[:, 0], 1, 4),
    "slice_scatter": lambda x, y: paddle.slice_scatter(
        x, y[:, :, 2:5], axes=[2], starts=[1], ends=[7], strides=[2]),
    "masked_scatter": lambda x, y: paddle.masked_scatter(x, x > 0.3, y),
    "one_hot": lambda x: F.one_hot(whole(x), 10),
    "embedding": lambda x: F.embedding(whole(x[:, 0]).astype("int64"), ramp(10, 5)),
    "embedding padding": lambda x: F.embedding(whole(x[:, 0]).astype("int64"), ramp(10, 5),
                                               padding_idx=3),
    "sequence_mask": lambda x: F.sequence_mask(whole(x[:, 0, 0, 0]), 11, "float32"),
    "shard_index": lambda x: paddle.shard_index(
        whole(x[0, 0]).astype("int64").unsqueeze(-1), 10, 2, 1),
    "set_value": lambda x: _assigned(x),
    "unique": lambda x: paddle.unique(whole(x[0, 0])),
}


def _assigned(x):
    y = x * 2
    y[:, 1:5:2, 2] = x[:, :2, 0]
    return y


TABLES = (REDUCTIONS, SHAPES, INDICES)
