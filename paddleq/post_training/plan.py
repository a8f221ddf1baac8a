"""Plan of static post-training quantization, and its steps in their order.

Front ends and recipes parse their arguments to rules and a plan, and run its steps.
"""

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Callable, Collection, Iterable, Iterator, List, Optional, Sequence

from paddle import nn

from .. import engine
from .._distributed import groups
from .._layer_state import state_of
from ..algorithms.bias_correction import correct_on_batches
from ..algorithms.equalization import equalize_on
from ..algorithms.reconstruction.driver import reconstruct_on
from ..algorithms.reconstruction.settings import AdaRound
from ..analysis import AccuracyReport
from ..analysis.accuracy import AccuracySearch
from ..config import QuantConfig
from ..engine.batch import Batch
from ..engine.calibration import with_progress
from ..engine.example_inputs import run_on_first_inputs
from ..saved_model.fold_layer_affines import fold_in_programs, fold_layers
from ..saved_model.full_scope import SCOPES, extend_rules


@dataclass
class PostTrainingPlan:
    """Settings of the steps of static post-training quantization, in the order of the steps.

    Attributes:
        fuse: fold batch norms and affine operators into weights.
        fuse_list: names of the pairs to fold. None: all norms and affine operators that can be.
        warn_unfused: warn if ``fuse`` finds no batch norm to fold.
        scope: "weighted", or "full" for a :class:`paddleq.SavedModel`, whose rules are extended to
            the whole graph.
        skip_tensors: for "full", variables of which operators without weights stay float.
        equalize: equalize the ranges of the channels of successive layers.
        round_type: settings of a learned rounding. None: to nearest.
        bias_correction: method, "fast" or "full". None: no correction.
        accuracy: search for layers to leave float. None: no search.
    """

    fuse: bool = False
    fuse_list: Optional[Sequence[Sequence[str]]] = None
    warn_unfused: bool = True
    scope: str = SCOPES[0]
    skip_tensors: Collection[str] = ()
    equalize: bool = False
    round_type: Optional[AdaRound] = None
    bias_correction: Optional[str] = None
    accuracy: Optional[AccuracySearch] = None


def run(model: nn.Layer, rules: QuantConfig, plan: PostTrainingPlan, data: Iterable,
        num_batches: Optional[int] = None, argument: str = "data") -> Optional[AccuracyReport]:
    """Run all steps of a plan on a float model, in place.

    Args:
        model: a float Layer, which may be a :class:`paddleq.SavedModel`. After an error it is
            half changed.
        rules: configurations of the layers. Changed by the scope "full".
        data: batches, as for :func:`paddleq.calibrate`.
        num_batches: calibrate on this many batches. Default: all.
        argument: name of ``data`` for messages.

    Returns:
        Result of ``plan.accuracy``, None without it.
    """
    batches = engine.iter_batches(model, data, num_batches, "calibrating",
                                  allow_empty=bool(groups()), argument=argument)
    first = next(batches, None)
    prepare(model, rules, plan, first)
    calibrate(model, plan, batches if first is None else chain([first], batches))
    return None if plan.accuracy is None else plan.accuracy.run(model)


def prepare(model: nn.Layer, rules: QuantConfig, plan: PostTrainingPlan,
            inputs: Any = None) -> None:
    """Fold, equalize and insert observers, in place.

    Folding and equalization run on the example ``inputs``, a batch of ``engine.iter_batches`` or as
    for :meth:`paddleq.PTQ.quantize`, or later on the first batch if ``inputs`` is None.
    """
    if plan.fuse and plan.fuse_list is None:
        fold_in_programs(model)
    finish = extend_rules(model, rules, plan.scope, plan.fuse, plan.skip_tensors)
    change: Optional[Callable] = None
    if plan.fuse:
        change = partial(fold_layers, model, inputs, plan.fuse_list,
                         equalize_on if plan.equalize else None, plan.warn_unfused)
    elif plan.equalize:
        change = partial(run_on_first_inputs, model, inputs, equalize_on)
    engine.prepare(model, rules, change)
    model.eval()
    engine.set_state(model, "calibration")
    state_of(model).fold_on_export = plan.fuse and plan.fuse_list is None
    finish()


def calibrate(model: nn.Layer, plan: PostTrainingPlan, batches: Iterable[Batch]) -> int:
    """Compute the scales, learn the rounding and correct biases on batches of ``iter_batches``.

    Batches are kept in memory if the plan reads them again. Returns the number of batches.
    """
    kept: List[Batch] = []
    if plan.round_type is not None or plan.bias_correction is not None:
        batches = _keep(batches, kept)
    with engine.calibrating(model):
        count = engine.run_batches(lambda inputs: model(*inputs[0], **inputs[1]), batches)
    if plan.round_type is not None:
        reconstruct_on(model, kept, plan.round_type)
    if plan.bias_correction is not None:
        correct_on_batches(model, with_progress(kept, "correcting biases"), plan.bias_correction)
    return count


def _keep(batches: Iterable[Batch], kept: List[Batch]) -> Iterator[Batch]:
    for batch in batches:
        kept.append(batch)
        yield batch
