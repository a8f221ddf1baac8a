"""Losses between tensors of a student and of its teacher."""

import math
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import paddle
import paddle.nn.functional as F

from ..._checks import check_choice, check_fields, check_float, checked_field, wrong_type
from ..._registry import Registry
from ...errors import ConfigError

_OF_LOGITS = ("soft_label", "kl")
_TINY = 1e-8  # smallest probability whose logarithm is used
# Functions of (student, teacher, term) to a scalar, by name.
DISTILL_LOSSES: "Registry[Callable]" = Registry("distillation loss")
register_distill_loss = DISTILL_LOSSES.register


def _check_nodes(name: str, value: Any) -> Tuple[Union[str, Tuple[str, str]], ...]:
    pairs = isinstance(value, (list, tuple)) and all(
        isinstance(node, str) or isinstance(node, (list, tuple)) and len(node) == 2
        and all(isinstance(each, str) for each in node) for node in value)
    if not pairs:
        raise wrong_type(name, value, "a list of names, or of pairs [name in the teacher, name in "
                                      "the student]")
    return tuple(node if isinstance(node, str) else (node[0], node[1]) for node in value)


@dataclass
class DistillLoss:
    """One term of the loss of :func:`paddleq.distill`.

    Args:
        loss: name of a registered loss, called on the tensors of student s and teacher t:

            - "l2" (also "mse"): mean of (s - t)^2.
            - "relative_l2": the same divided by the mean of t^2.
            - "l1": mean of abs(s - t).
            - "cosine": 1 minus the cosine of each item of the batch, on average.
            - "soft_label" (also "kl"): Kullback-Leibler divergence of the softmax along the last
              axis, on average over rows, times temperature^2. Tensors that are probabilities
              already (not negative, rows with a sum of 1 in the first batch of the teacher) are
              taken as they are. Of outputs of a softmax in a saved model, its input is compared.
        node: names of tensors; of a saved model those of its program, of a Layer those of its
            sublayers, whose outputs are compared. A pair is the name in the teacher and the name
            in the student. Default: all floating outputs of the model.
        alpha: factor of this term. Default 1.0.
        temperature: divisor of the logits, for "soft_label". Default 1.0.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid.

    Examples:
        >>> import paddle
        >>> from paddleq import DistillLoss
        >>> term = DistillLoss("relative_l2", alpha=2.0)
        >>> student, teacher = paddle.to_tensor([1.0, 2.0]), paddle.to_tensor([1.0, 3.0])
        >>> round(term.of([student], [teacher]).item(), 3)
        0.2
    """

    loss: str = checked_field(
        "l2", lambda name, value: check_choice(name, value, DISTILL_LOSSES))
    node: Sequence[Union[str, Sequence[str]]] = checked_field((), _check_nodes)
    alpha: float = checked_field(1.0, lambda name, value: check_float(
        name, value, 0.0, math.inf, open_low=True, open_high=True))
    temperature: float = checked_field(1.0, lambda name, value: check_float(
        name, value, 0.0, math.inf, open_low=True, open_high=True))

    def __post_init__(self) -> None:
        check_fields(self)
        # Name of a tensor, or its number -> True if the teacher's is a probability distribution.
        self.probabilities: Dict[Any, bool] = {}

    def __str__(self) -> str:
        return f"{self.loss} of {', '.join(map(str, self.node)) or 'the outputs'}"

    def names(self, side: int) -> List[str]:
        """Return the names of the tensors of the teacher (0) or of the student (1)."""
        return [node if isinstance(node, str) else node[side] for node in self.node]

    def of(self, student: Sequence[paddle.Tensor], teacher: Sequence[paddle.Tensor]
           ) -> paddle.Tensor:
        """Return the sum of the losses of pairs of tensors, times ``alpha``."""
        total = None
        for number, (s, t) in enumerate(zip(student, teacher)):
            if list(s.shape) != list(t.shape):
                where = self.node[number] if self.node else f"output {number}"
                raise ConfigError(f"the {self.loss} loss of {where!r} needs tensors of one shape, "
                                  f"but the student's is {list(s.shape)} and the teacher's "
                                  f"{list(t.shape)}")
            value = DISTILL_LOSSES[self.loss](s, t, _Term(self, number))
            total = value if total is None else total + value
        assert total is not None
        return total * self.alpha


@dataclass(frozen=True)
class _Term:
    """Options of a loss for one tensor."""

    owner: DistillLoss
    number: int

    @property
    def temperature(self) -> float:
        return self.owner.temperature

    def logits(self, student, teacher):
        """Return both tensors as logits; those of probabilities are their logarithms."""
        known = self.owner.probabilities
        if self.number not in known:
            known[self.number] = is_distribution(teacher)
        if known[self.number]:
            student, teacher = (paddle.log(paddle.clip(each, _TINY)) for each in (student, teacher))
        return student / self.temperature, teacher / self.temperature


def is_distribution(x: paddle.Tensor) -> bool:
    """Return True if the rows along the last axis of ``x`` are probability distributions."""
    if not x.shape or x.shape[-1] < 2 or float(x.min()) < 0.0:
        return False
    return bool(((x.sum(-1) - 1.0).abs() < 1e-3).all())


@register_distill_loss("mse")
@register_distill_loss("l2")
def _l2(student, teacher, _):
    return F.mse_loss(student, teacher)


@register_distill_loss("relative_l2")
def _relative_l2(student, teacher, _):
    return F.mse_loss(student, teacher) / paddle.clip((teacher * teacher).mean(), 1e-12)


@register_distill_loss("l1")
def _l1(student, teacher, _):
    return F.l1_loss(student, teacher)


@register_distill_loss("cosine")
def _cosine(student, teacher, _):
    rows = [x.reshape([x.shape[0] if x.shape else 1, -1]) for x in (student, teacher)]
    return (1.0 - F.cosine_similarity(*rows, axis=1)).mean()


@register_distill_loss("kl")
@register_distill_loss("soft_label")
def _soft_label(student, teacher, term):
    student, teacher = term.logits(student, teacher)
    # F.log_softmax clips its result to -64.
    student, teacher = (each - paddle.logsumexp(each, -1, keepdim=True)
                        for each in (student, teacher))
    rows = (paddle.exp(teacher) * (teacher - student)).sum(-1)
    return rows.mean() * term.temperature ** 2


def on_logits(losses: Optional[Sequence[DistillLoss]], logits: Sequence[Tuple[str, str]]
              ) -> Optional[List[DistillLoss]]:
    """Return losses of which those of probabilities are computed on ``logits``, if there are any.

    The softmax of a confident model underflows, and with it the gradient where the student is
    wrong.
    """
    if not logits:
        return None if losses is None else list(losses)
    given = [DistillLoss("soft_label")] if losses is None else losses
    return [replace(each, node=logits) if each.loss in _OF_LOGITS and not each.node else each
            for each in given]


def default_losses(outputs: Sequence[paddle.Tensor]) -> List[DistillLoss]:
    """Return the losses for a model whose teacher has these floating outputs."""
    probabilities = [is_distribution(output) for output in outputs]
    return [DistillLoss("soft_label" if all(probabilities) else "relative_l2")]
