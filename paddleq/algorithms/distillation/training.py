"""Training loop of distillation: batches, steps, evaluations, the best state, resumption."""

import logging
import math
import random
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, cast

import numpy as np
import paddle
from paddle import nn

from ..._checks import wrong_type
from ..._distributed import check_one_process
from ...engine.batch import Batch
from ...engine.calibration import iter_batches
from ...engine.hooks import eager_evaluation
from ...engine.state import fake_quantizers, quantized_layers, set_state
from ...errors import CalibrationError, ConfigError, ModelError, NonFiniteError
from ...fake_quant.fake_quantize import State
from ...fake_quant.lsq import LSQ
from .held_out import HeldOut
from .losses import DistillLoss, default_losses, on_logits
from .optimization import (
    RATE_BATCHES,
    automatic_rate,
    make_optimizer,
    make_schedule,
    relative_rates,
)
from .resume import (
    TrainingCheckpoint,
    accumulators_of,
    assign_tensors,
    copy_of_tensors,
    digest_of,
    tensors_of,
)
from .tensors import NamedTensors, logits_of, pairs_of
from .train_config import DistillResult, TrainConfig

_logger = logging.getLogger("paddleq")
_ORIGIN_TOLERANCE = 0.05


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all random generators, and restore their states on exit."""
    states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        paddle.set_rng_state(states[2])


def set_training(model: nn.Layer, training: bool) -> None:
    """Switch the quantizers of a model to training or to evaluation.

    All float parts stay in evaluation mode: batch norms use their running statistics and dropout is
    inactive, as in the teacher. Only recurrent layers, of which Paddle has no gradient in
    evaluation mode, are in training mode, without dropout.
    """
    model.eval()
    set_state(model, State.VALIDATION)
    if not training:
        return
    for _, quantizer in fake_quantizers(model):
        # Others would compute a new scale from statistics of a whole calibration.
        if quantizer.observer.online and not isinstance(quantizer, LSQ):
            quantizer.set_state(State.QAT)
    for _, layer in quantized_layers(model):
        layer.training = True
        for name in layer._paddleq.parts:
            part = getattr(layer, name)
            for each in part.sublayers(include_self=True) if isinstance(part, nn.Layer) else ():
                each.training = True
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, (nn.SimpleRNN, nn.LSTM, nn.GRU)):
            layer.dropout = 0.0
            layer.training = True


class _Training:
    """One run of :func:`train`."""

    def __init__(self, student, teacher, losses, config, steps, metric, eval_data):
        self.student, self.config, self.steps = student, config, steps
        self.metric = self._negative_loss if metric is None and eval_data is not None else metric
        self.eval_data = eval_data
        self.losses: Optional[List[DistillLoss]] = losses
        names = [[name for each in losses or () for name in each.names(side)] for side in (0, 1)]
        self.teacher = NamedTensors(teacher, names[0], "teacher")
        self.tensors = NamedTensors(student, names[1], "student")
        self.trained = {name: each for name, each in student.named_parameters()
                        if not each.stop_gradient}
        if not self.trained:
            raise ModelError("the student has no trainable parameter; each has stop_gradient=True")
        self.schedule = make_schedule(config.learning_rate, steps)
        self.optimizer = make_optimizer(config.optimizer_builder, self.schedule,
                                        list(self.trained.values()))
        # Rates relative to the start, also where a training continues.
        self.rates = (relative_rates(student, list(self.trained.values()))
                      if config.relative else nullcontext())
        self.result = DistillResult(student)
        self.best: Optional[Dict[str, Any]] = None
        self.held_out: Dict[int, Any] = {}  # tensors of the teacher for batches of a HeldOut
        self.rate: Optional[float] = None  # automatic learning rate
        self.reached: List[str] = []  # parameters with a gradient

    def step(self, batch: Batch) -> None:
        """Train on one batch."""
        loss = self._backward(batch)
        if not self.result.steps:
            self.reached = [name for name, each in self.trained.items() if each.grad is not None]
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.schedule.step()
        self.result.losses.append(loss)
        self.result.steps += 1

    def _backward(self, batch):
        """Add the gradient of the loss of a batch and return the loss."""
        terms, values = self._loss(batch)
        for term, value in zip(terms, values):
            if not math.isfinite(cast(float, value.item())):
                raise NonFiniteError(f"the loss {term} is {value.item()} in step "
                                     f"{self.result.steps} ({batch.name}); use a smaller "
                                     "learning_rate, a grad_clip in optimizer_builder, or remove "
                                     "that batch")
        loss = values[0] if len(values) == 1 else paddle.add_n(values)
        if loss.stop_gradient:
            raise ModelError(f"no trainable parameter of the student reaches the loss "
                             f"{', '.join(map(str, terms))}")
        loss.backward()
        return cast(float, loss.item())

    def _choose_rate(self, data):
        """Set the automatic learning rate from the first batches."""
        if not self.config.relative or self.config.learning_rate is not None:
            return
        loss = 0.0
        with seeded(self.config.seed):  # a training that continues does not repeat this
            for batch in _batches(self.student, data, min(RATE_BATCHES, self.steps)):
                with batch.errors_named():
                    loss += self._backward(batch)
        self._set_rate(automatic_rate(loss, self.trained.values()))
        self.optimizer.clear_grad()

    def _set_rate(self, rate):
        self.rate = self.schedule.base_lr = rate
        self.schedule.last_lr = self.schedule.get_lr()
        _logger.info("learning rate: %.3g of the magnitude of each parameter", rate)

    def _wanted(self, batch):
        """Return the tensors of the teacher for a batch."""
        args, kwargs = batch
        with paddle.no_grad():
            return self.teacher.run(args, kwargs)

    def _loss(self, batch, wanted=None):
        """Return the terms of the loss and their values for a batch."""
        args, kwargs = batch
        wanted = self._wanted(batch) if wanted is None else wanted
        found = self.tensors.run(args, kwargs)
        terms = self._terms(wanted)
        return terms, [term.of(pairs_of(found, term.names(1)), pairs_of(wanted, term.names(0)))
                       for term in terms]

    def _negative_loss(self, model):
        """Return the mean loss of ``eval_data``, negative."""
        assert self.eval_data is not None
        found = []
        with paddle.no_grad():
            for number, batch in enumerate(iter_batches(model, self.eval_data,
                                                        argument="eval_data")):
                with batch.errors_named():
                    wanted = self.held_out.get(number)
                    if wanted is None:
                        wanted = self._wanted(batch)
                    if isinstance(self.eval_data, HeldOut):  # few
                        self.held_out[number] = wanted
                    found.append(sum(value.item() for value in self._loss(batch, wanted)[1]))
        return -sum(found) / len(found)

    def check_origin(self) -> None:
        """Raise if the metric of the teacher is not the known one."""
        known = self.config.origin_metric
        if known is None or self.metric is None:
            return
        with seeded(self.config.seed):
            found = float(self.metric(self.teacher.model))
        if not abs(found - known) <= _ORIGIN_TOLERANCE:
            raise ConfigError(f"origin_metric is {known}, but the metric of the float model is "
                              f"{found:.6g}; correct the data, its preparation or origin_metric")

    def _terms(self, wanted):
        if self.losses is None:
            self.losses = default_losses(wanted[None])
        if not wanted[None] and any(not term.node for term in self.losses):
            raise ConfigError("the model has no floating output; name tensors in node")
        return self.losses

    def evaluate(self) -> bool:
        """Evaluate, keep the best state, and return True if the target is reached."""
        if self.metric is None:
            return False
        set_training(self.student, False)
        with seeded(self.config.seed):  # a resumed training does not repeat evaluations
            value = self.metric(self.student)
        set_training(self.student, True)
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise wrong_type("the result of eval_callback", value, "a number") from None
        if not math.isfinite(value):
            raise NonFiniteError(f"the metric is {value} after step {self.result.steps}")
        best = max((each for _, each in self.result.metrics), default=-math.inf)
        self.result.metrics.append((self.result.steps, value))
        _logger.info("metric after step %d: %.6g", self.result.steps, value)
        if self.config.keep_best and value > best:
            self.result.best_step, self.best = self.result.steps, copy_of_tensors(self.student)
        target = self.config.target_metric
        return target is not None and value >= target

    def save(self, checkpoint: TrainingCheckpoint, done: bool) -> None:
        """Write the state after a step."""
        result = self.result
        kept = dict(enumerate(accumulators_of(self.optimizer))) if result.steps else {}
        checkpoint.save(
            {"steps": result.steps, "losses": result.losses, "metrics": result.metrics,
             "best_step": result.best_step, "reached": self.reached, "done": done,
             "rate": self.rate,
             "default_loss": [each.loss for each in self.losses or ()],
             "probabilities": [each.probabilities for each in self.losses or ()]},
            model=tensors_of(self.student), best=self.best or {},
            optimizer={str(number): each for number, each in kept.items()})

    def load(self, checkpoint: TrainingCheckpoint) -> bool:
        """Load the state of a checkpoint and return True if the training was finished."""
        record, result = checkpoint.record, self.result
        assert record is not None
        result.steps, result.losses = record["steps"], record["losses"]
        result.metrics = [tuple(each) for each in record["metrics"]]
        result.best_step, self.reached = record["best_step"], record["reached"]
        if record["rate"] is not None:
            self._set_rate(record["rate"])
        if self.losses is None and record["default_loss"]:
            self.losses = [DistillLoss(name) for name in record["default_loss"]]
        for term, known in zip(self.losses or (), record["probabilities"]):
            term.probabilities = {int(key): value for key, value in known.items()}
        self._create_accumulators()
        kept = accumulators_of(self.optimizer) if result.steps else []
        assign_tensors({str(number): each for number, each in enumerate(kept)},
                       checkpoint.group("optimizer"))
        assign_tensors(tensors_of(self.student), checkpoint.group("model"))
        best = checkpoint.group("best")
        if best:
            self.best = {name: paddle.to_tensor(np.array(array)) for name, array in best.items()}
        for _ in range(result.steps):
            self.schedule.step()
        return record["done"]

    def _create_accumulators(self):
        # An optimizer creates its tensors in its first step. The parameters that this step may
        # change, by weight decay, are loaded afterwards.
        if self.reached:
            paddle.add_n([(self.trained[name] * 0.0).sum().astype("float32")
                          for name in self.reached]).backward()
            self.optimizer.step()
            self.optimizer.clear_grad()

    def run(self, data: Iterable, interval: int, checkpoint: Optional[TrainingCheckpoint],
            done: bool) -> None:
        """Train from the present step to the last one, with an evaluation every ``interval``."""
        if done:
            return
        first, steps, config = self.result.steps, self.steps, self.config
        if not self.result.metrics:
            self.check_origin()
            done = self.evaluate()
        if not first:
            self._choose_rate(data)
        with _progress(steps, first) as bar:
            for number, batch in enumerate(_batches(self.student, data, steps)):
                if number < first:  # read again for the state of its random generators
                    continue
                if done:
                    break
                with batch.errors_named():
                    self.step(batch)
                bar.update()
                if (number + 1) % config.logging_iter == 0:
                    bar.set_postfix(loss=f"{self.result.losses[-1]:.4g}")
                    _logger.debug("step %d: loss %.6g", number + 1, self.result.losses[-1])
                if (number + 1) % interval == 0 or number + 1 == steps:
                    done = self.evaluate()
                done = done or number + 1 == steps
                if checkpoint is not None and (
                        done or (number + 1) % (config.checkpoint_iter or interval) == 0):
                    self.save(checkpoint, done)

    def finish(self) -> DistillResult:
        if self.best is not None:
            assign_tensors(tensors_of(self.student), self.best)
        else:
            self.result.best_step = self.result.steps
        set_training(self.student, False)
        return self.result


def train(student: nn.Layer, teacher: nn.Layer, data: Iterable,
          losses: Optional[Sequence[DistillLoss]], config: TrainConfig,
          metric: Optional[Callable[[nn.Layer], float]] = None,
          eval_data: Optional[Iterable] = None, checkpoint_dir: Any = None,
          run: Optional[Dict[str, Any]] = None) -> DistillResult:
    """Train a calibrated quantized model, in place, towards the outputs of its teacher.

    Args:
        student: a quantized model with scales.
        teacher: the float model; it is called with the same inputs.
        data: an iterable of batches, iterated once for each epoch.
        losses: terms of the loss. None: see :func:`~.losses.default_losses`.
        metric: function of the model in evaluation mode to a number, higher is better.
        eval_data: in place of ``metric``, batches whose mean loss, negative, is the metric.
        checkpoint_dir: folder for the state, from which an interrupted training continues.
        run: further plain values that determine the result, for ``checkpoint_dir``.
    """
    check_one_process("distillation")
    steps = config.steps(data)
    interval = config.eval_iter or max(1, -(-steps // 5))
    terms = on_logits(losses, logits_of(teacher, student))
    # to_static would compile the models: named tensors and hooks are unknown in its programs.
    with eager_evaluation(teacher), paddle.enable_grad(), seeded(config.seed):
        set_training(student, True)
        work = _Training(student, teacher, terms, config, steps, metric, eval_data)
        with work.rates:
            checkpoint, done = None, False
            if checkpoint_dir is not None:
                described = {
                    "config": {key: repr(value) for key, value in asdict(config).items()
                               if key not in ("logging_iter", "checkpoint_iter")},
                    "losses": repr(terms), "steps": steps, "paddle": paddle.__version__,
                    "student": digest_of(tensors_of(student)),
                    "teacher": digest_of(tensors_of(teacher)), **(run or {})}
                checkpoint = TrainingCheckpoint(checkpoint_dir, described)
                if checkpoint.record is not None:
                    done = work.load(checkpoint)
            work.run(data, interval, checkpoint, done)
        return work.finish()


def _batches(model, data, steps):
    """Yield ``steps`` batches, from as many passes over the data as needed."""
    count = 0
    while count < steps:
        before = count
        for batch in iter_batches(model, data, steps - count, allow_empty=bool(count)):
            count += 1
            yield batch
        if count == before:
            raise CalibrationError(
                f"data must yield batches each time that it is iterated, but ended after {count} "
                f"of {steps} steps; give a list, a DataLoader or a function that returns an "
                "iterator, or a smaller train_iter")


@contextmanager
def _progress(steps, first):
    from tqdm import tqdm

    with tqdm(total=steps, initial=first, desc="distilling", disable=None, leave=False) as bar:
        yield bar
