"""Held-out batches of a distillation: fixed, and not trained on in any pass, by kind of data."""

import logging

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq.algorithms.distillation.held_out import hold_out
from paddleq.errors import ConfigError

COUNT, SIZE = 120, 6  # 20 batches, of which 2 are held out
ROWS = np.stack([np.arange(COUNT), np.arange(COUNT) ** 2], 1).astype("float32")


class Dataset(paddle.io.Dataset):
    def __getitem__(self, index):
        return ROWS[index]

    def __len__(self):
        return COUNT


class Stream(paddle.io.IterableDataset):
    def __iter__(self):
        return iter(ROWS)


class Pairs(paddle.io.Sampler):
    """Batches of two neighbours, in random order, without the samples 0 and 1."""

    def __init__(self):
        super().__init__(Dataset())
        self.batch_size, self.drop_last = 2, False

    def __iter__(self):
        for each in np.random.permutation(np.arange(1, COUNT // 2)).tolist():
            yield [2 * each, 2 * each + 1]

    def __len__(self):
        return COUNT // 2 - 1


def loader(dataset=None, **options):
    options = options if "batch_sampler" in options else {"batch_size": SIZE, **options}
    return paddle.io.DataLoader(Dataset() if dataset is None else dataset, **options)


def in_order():
    return [ROWS[i:i + SIZE] for i in range(0, COUNT, SIZE)]


class Sized:
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return COUNT // SIZE

    def __iter__(self):
        return iter(self.make())


class Unsized:
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return iter(self.make())


def other_batches():
    order = np.random.permutation(COUNT // SIZE)
    return (in_order()[each] for each in order)


def other_samples():
    order = np.random.permutation(COUNT).reshape([-1, SIZE])
    return (ROWS[each] for each in order)


def other_tensors_of_dicts():
    return ({"x": paddle.to_tensor(rows), "y": [rows[:, 0]]} for rows in other_samples())


LOADERS = {
    "in order": loader, "shuffled": lambda: loader(shuffle=True),
    "shuffled, last dropped": lambda: loader(shuffle=True, drop_last=True, batch_size=7),
    "shuffled, workers": lambda: loader(shuffle=True, num_workers=2),
    "shuffled, last batch smaller": lambda: loader(shuffle=True, batch_size=7),
    "single samples": lambda: loader(shuffle=True, batch_size=1),
    "distributed": lambda: loader(batch_sampler=paddle.io.DistributedBatchSampler(
        Dataset(), SIZE, shuffle=True)),
    "user's sampler": lambda: loader(batch_sampler=Pairs())}
OTHERS = {
    "list": in_order, "stream": lambda: loader(Stream()),
    **{f"{kind.__name__}, {make.__name__}": lambda kind=kind, make=make: kind(make)
       for kind in (Sized, Unsized)
       for make in (in_order, other_batches, other_samples, other_tensors_of_dicts)}}


def numbers(batch):
    """Return the numbers of the samples."""
    if isinstance(batch, dict):
        assert batch["x"][:, 0].numpy().tolist() == batch["y"][0].tolist()
        batch = batch["x"]
    batch = batch[0] if isinstance(batch, (list, tuple)) else batch
    return np.asarray(batch).reshape([-1, 2])[:, 0].astype(int).tolist()


@pytest.mark.parametrize("kind", [*LOADERS, *OTHERS])
def test_held_out_samples_are_fixed_and_not_trained_on(kind, caplog):
    np.random.seed(0)
    paddle.seed(0)
    data = {**LOADERS, **OTHERS}[kind]()
    whole = {i for batch in data for i in numbers(batch)} if "dropped" not in kind else (
        set(range(COUNT)))
    caplog.set_level(logging.WARNING, "paddleq")
    training, evaluation = hold_out(data)
    held_out = [numbers(batch) for batch in evaluation]
    every = {i for batch in held_out for i in batch}
    assert len(every) == sum(map(len, held_out)) and 1 <= len(held_out) <= 4
    for _ in range(3):
        batches = [numbers(batch) for batch in training]
        trained = [i for batch in batches for i in batch]
        assert not every & set(trained)
        assert [numbers(batch) for batch in evaluation] == held_out
        if "dropped" not in kind:
            assert set(trained) == whole - every
        if kind in LOADERS:
            assert len(trained) == len(set(trained)) and len(training) == len(batches)
        assert len({len(batch) for batch in batches[:-1]}) == 1
    assert not caplog.messages
    assert {i for batch in data for i in numbers(batch)} <= whole  # data is as before


def test_equal_batches_are_left_out_once():
    training, evaluation = hold_out([ROWS[:SIZE]] * 20)
    assert len(evaluation) == 2 and len(list(training)) == len(training) == 18


def test_equal_rows_are_no_samples():
    """Padding of sequences, whose first axis is the time, is not told apart."""
    def shuffled():
        for each in np.random.permutation(20):
            yield np.stack([ROWS[each], 0 * ROWS[0], 0 * ROWS[0]])

    training, evaluation = hold_out(Unsized(shuffled))
    assert len(evaluation) == 2
    assert all((batch[1:] == 0).all() for batch in training)


def test_few_batches_are_trained_on_too():
    for data in (in_order()[:9], Unsized(lambda: in_order()[:9]), loader(batch_size=COUNT // 8)):
        training, evaluation = hold_out(data)
        assert training is data and len(evaluation) == 4


def test_data_without_a_length_are_read_once():
    passes = []

    def few():
        passes.append(1)
        yield from in_order()[:9]

    _, evaluation = hold_out(Unsized(few))
    assert [numbers(batch) for batch in evaluation] == list(map(numbers, in_order()[:4]))
    assert len(passes) == 1
    del passes[:]
    net = nn.Sequential(nn.Linear(2, 2))
    paddleq.distill(net, few, train_iter=9)
    # Calibration, held-out batches, learning rate, training.
    assert len(passes) == 4


def test_a_stream_needs_the_number_of_steps():
    net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match="train_iter must be given"):
        paddleq.distill(net, loader(Stream()), epochs=1)
    assert paddleq.distill(net, loader(Stream()), train_iter=40).steps == 40  # 18 in each pass


def test_samples_that_change_are_reported(caplog):
    training, _ = hold_out(Unsized(lambda: (x + np.random.rand() for x in in_order())))
    with caplog.at_level(logging.WARNING, "paddleq"):
        assert len(list(training)) == 20 and len(list(training)) == 20
    assert len(caplog.messages) == 1 and "give eval_data" in caplog.messages[0]


def test_distillation_of_a_shuffling_loader_is_repeatable():
    """The metric of the first evaluation is the loss of samples that no step has."""
    paddle.seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    seen = []

    class Recorded(Dataset):
        def __getitem__(self, index):
            seen.append(index)
            return ROWS[index] / COUNT

    def run():
        seen.clear()
        return paddleq.distill(net, loader(Recorded(), shuffle=True), {"weight_bits": 4}, epochs=3,
                               calibration_batches=20)

    first = run()
    steps = first.steps
    trained = seen[-SIZE * steps:]
    assert steps == 3 * 18 and len(set(trained)) == COUNT - 2 * SIZE
    assert run().metrics == first.metrics
