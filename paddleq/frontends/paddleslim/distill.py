"""``paddleq.distill``: training of a quantized model towards its float self, without labels."""

import copy
import os
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Union, cast

from paddle import nn

from ... import engine, post_training
from ..._checks import (
    check_bool,
    check_config,
    check_int,
    check_known_keys,
    check_metric,
    wrong_type,
    wrong_value,
)
from ...algorithms.distillation import DistillLoss, DistillResult, TrainConfig, seeded, train
from ...algorithms.distillation.held_out import hold_out
from ...algorithms.distillation.optimization import make_schedule
from ...algorithms.distillation.tensors import NamedTensors
from ...config import LayerConfig, QuantConfig, Scope
from ...config.layer_config import check_activation_observer
from ...engine.provenance import plain_value
from ...errors import ConfigError
from ...fake_quant import LSQ, PACT
from ...fake_quant.lsq import LEARNED_QUANTIZERS
from ...observers import OBSERVERS
from ...post_training import PostTrainingPlan
from ...post_training.saved_models import (
    LINEAR_OPS,
    OP_TYPES,
    check_op_types,
    operator_rules,
)
from ...saved_model import SavedModel
from .qat import QAT
from .shared import rules_for

CALIBRATION_BATCHES = 16
_SAME_TENSOR = 1e-3  # relative distance of a tensor in the teacher and in the folded student
# PaddleSlim's alpha starts far above the activations, and so needs larger steps.
_PACT = partial(PACT, learning_rate=100.0)
_OPS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul", "matmul", "matmul_v2")
_QAT_KEYS = ("weight_bits", "activation_bits", "weight_quantize_type", "activation_quantize_type",
             "dtype", "window_size", "moving_rate", "onnx_format")


def _names(name: str, value: Any) -> List[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise wrong_type(name, value, "a list of names")
    return list(value)


def _not_for_tensorrt(name: str, value: Any) -> bool:
    if check_bool(name, value):
        raise wrong_value(name, value, "False: TensorRT is no runtime of paddleq; use the format "
                                       "'onnx' of save_quantized_model, which TensorRT reads")
    return False


class QuantAware:
    """Quantization of :func:`paddleq.distill`, with the keys of PaddleSlim's ``QuantAware``.

    Args:
        config: dict; None for the defaults. Keys, defaults and values:

            - ``quantize_op_types`` (convolutions, transposed ones and Linear): operators of a saved
              model, as for :func:`paddleq.quant_post_static`. For a Layer,
              ``quantizable_layer_type``, a list of layer classes, takes its place.
            - ``weight_bits``, ``activation_bits`` (8).
            - ``weight_quantize_type`` ("channel_wise_abs_max"): or "channel_wise_lsq" and the other
              types of :class:`paddleq.QAT`.
            - ``activation_quantize_type`` ("lsq"): or "moving_average_abs_max", PaddleSlim's
              default, and the other types of :class:`paddleq.QAT`.
            - ``algo`` ("mse"): observer of the calibration that sets the first scales of "lsq".
            - ``use_pact`` (False): clip activations to a trained range before they are quantized.
            - ``not_quant_pattern`` (none): parts of names of layers that stay float.
            - ``is_full_quantize`` (False): quantize the operators of all supported types.
            - ``dtype``, ``window_size``, ``moving_rate``, ``onnx_format``: as for
              :class:`paddleq.QAT`. ``for_tensorrt`` must be False.

    Raises:
        ConfigError, ConfigTypeError: an unknown key or an invalid value.

    Examples:
        >>> from paddleq.paddleslim import QuantAware
        >>> QuantAware({"weight_bits": 4}).qat.layer_config.weight_spec.bits
        4
    """

    def __init__(self, config: Optional[Dict[str, Any]] = None) -> None:
        checks: Dict[str, Callable] = {
            "quantize_op_types": lambda name, value: sorted(check_op_types(value)),
            "quantizable_layer_type": lambda name, value: value,
            "algo": check_activation_observer, "use_pact": check_bool,
            "not_quant_pattern": _names, "is_full_quantize": check_bool,
            "for_tensorrt": _not_for_tensorrt,
            **{key: lambda name, value: value for key in _QAT_KEYS}}
        given = check_config("quantization", config, checks, optional=True)
        self.given = dict(given)
        kind = given.setdefault("activation_quantize_type", "lsq")
        qat = {key: given[key] for key in _QAT_KEYS if key in given}
        if given.get("use_pact") and kind in LEARNED_QUANTIZERS:
            if "activation_quantize_type" in self.given:
                raise ConfigError(f"use_pact trains a range, as {kind!r} does: give another "
                                  "activation_quantize_type, or use_pact=False")
            kind = qat["activation_quantize_type"] = "moving_average_abs_max"
        if "algo" in given and kind != "lsq":
            raise ConfigError("algo sets the first scales of 'lsq', but activation_quantize_type "
                              f"is {kind!r}")
        observer = OBSERVERS[given.get("algo", "mse")]
        hook = LSQ.with_args(observer=observer) if kind == "lsq" else None
        self.qat = QAT(qat, act_preprocess=_PACT if given.get("use_pact") else None,
                       act_quantize=hook)
        self.onnx_format: bool = self.qat.config["onnx_format"]

    def rules(self, model: nn.Layer, skip: Any) -> QuantConfig:
        """Return the rules for a model; ``skip`` are layers, or tensors of a saved model."""
        config = self.qat.layer_config
        if isinstance(model, SavedModel):
            if "quantizable_layer_type" in self.given:
                raise ConfigError("quantizable_layer_type is for a Layer; use quantize_op_types "
                                  "for a saved model")
            full = self.given.get("is_full_quantize", False)
            types = set(OP_TYPES if full else self.given.get("quantize_op_types", _OPS))
            if types & set(LINEAR_OPS):
                types |= set(LINEAR_OPS)
            rules = operator_rules(model, types - {"lookup_table_v2"}, config,
                                   _names("skip", [] if skip is None else skip))
        else:
            if "quantize_op_types" in self.given or "is_full_quantize" in self.given:
                raise ConfigError("quantize_op_types and is_full_quantize are for a saved model; "
                                  "use quantizable_layer_type for a Layer")
            classes = self.given.get("quantizable_layer_type")
            rules = rules_for(classes and QAT({"quantizable_layer_type": classes})
                              .config["quantizable_layer_type"], config, Scope.parse(skip, model))
        names = [name for name, _ in model.named_sublayers()]
        rules.exclude_substrings(self.given.get("not_quant_pattern", ()), names,
                                 "not_quant_pattern")
        return rules


def distill(model: Union[str, os.PathLike, nn.Layer], data: Iterable,
            quantization: Union[Dict[str, Any], QuantConfig, LayerConfig, None] = None,
            losses: Union[str, DistillLoss, Sequence, None] = None, *,
            teacher: Union[str, os.PathLike, nn.Layer, None] = None,
            eval_callback: Optional[Callable[[nn.Layer], float]] = None,
            eval_data: Optional[Iterable] = None, calibration_data: Optional[Iterable] = None,
            calibration_batches: int = CALIBRATION_BATCHES, fuse: bool = True, skip: Any = None,
            checkpoint_dir: Union[str, os.PathLike, None] = None, **train_config: Any
            ) -> DistillResult:
    """Train a quantized copy of a model towards the outputs of the float model.

    Neither labels nor the model's source code are needed. The student is a copy whose batch norms
    are folded, which is quantized and calibrated; then its weights and quantizers are trained.
    Gradients pass the rounding unchanged. Dropout is inactive, and batch norms that are not
    folded keep their statistics.

    Args:
        model: a saved model (prefix, file or folder), a :class:`~paddleq.SavedModel` or another
            float Layer. It is not changed.
        data: an iterable of batches without labels, as for :func:`paddleq.calibrate`, which can
            be iterated repeatedly; or a function that returns an iterator.
        quantization: dict with the keys of
            :class:`~paddleq.frontends.paddleslim.distill.QuantAware`; or a
            :class:`~paddleq.QuantConfig` or :class:`~paddleq.LayerConfig`. Default: 8 bits, one
            scale per channel of weights, learned scales (LSQ) of activations.
        losses: a :class:`~paddleq.DistillLoss`, the name of a loss, or a list of them. Default:
            "soft_label" for outputs that are probabilities, of a saved model on the inputs of its
            last softmax, else "relative_l2".
        teacher: another float model with the same inputs, as for ``model``. Default: ``model``.
        eval_callback: function of the quantized model in evaluation mode to a number, higher is
            better. The best evaluated state is the result, step 0 being the calibrated model.
        eval_data: in place of ``eval_callback``, batches whose mean loss is to become small.
            Default: at most 4 batches of ``calibration_data``, or else of ``data``; a tenth of
            it, on which the model is not trained in any pass, if there are at least 10 batches.
        calibration_data: batches for the first scales. Default: those of ``data``.
        calibration_batches: their number. Default 16.
        fuse: fold batch norms, and multiplications and additions of constants, into weights.
            Default True.
        skip: layers to leave float, as for :meth:`paddleq.PTQ.quantize`; for a saved model, names
            of weights, inputs or outputs of operators.
        checkpoint_dir: folder for the state of the training. A call with the same arguments
            continues an interrupted training, and has the same result as an uninterrupted one.
        **train_config: ``epochs`` (1) or ``train_iter``, ``learning_rate`` (automatic),
            ``optimizer_builder`` (Adam), ``keep_best`` (True), ``eval_iter``, ``logging_iter``,
            ``origin_metric``, ``target_metric``, ``checkpoint_iter`` and ``seed``, of
            :class:`~paddleq.algorithms.distillation.TrainConfig`.

    Returns:
        :class:`~paddleq.algorithms.distillation.DistillResult`; export its ``model`` with
        :func:`paddleq.save_quantized_model`.

    Raises:
        ConfigError, ConfigTypeError: a wrong argument; a name in ``node`` that the model does not
            have; a tensor that folding changes; student and teacher of different shapes.
        ModelError: there is nothing to quantize or to train, or an operator has no gradient.
        CalibrationError: ``data`` is empty, or ends too early.
        NonFiniteError: a loss or a metric is NaN or infinite; names the step and the batch.
        FormatError: a saved model or a checkpoint is missing or damaged.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 8), paddle.nn.ReLU())
        >>> data = [paddle.rand([16, 8]) for _ in range(4)]
        >>> result = paddleq.distill(net, data, {"weight_bits": 4}, epochs=2)
        >>> result.steps, type(result.model[0]).__name__
        (8, 'QuantizedLinear')
    """
    config = check_train_config(train_config)
    terms = parse_losses(losses)
    check_int("calibration_batches", calibration_batches, 1)
    check_bool("fuse", fuse)
    if eval_callback is not None and eval_data is not None:
        raise ConfigError("one of eval_callback and eval_data must be given, but both are")
    if eval_callback is not None:
        check_metric("eval_callback", eval_callback)
    source = _loaded("model", model)
    engine.check_model(source)
    master = source if teacher is None else _loaded("teacher", teacher)
    for term in terms or ():  # before folding, which removes tensors
        NamedTensors(master, term.names(0), "teacher")
        NamedTensors(source, term.names(1), "student")
    student = engine.copy_of(source)
    rules = _rules(student, quantization, skip)
    batches = Repeatable.of("data", data)
    examples = batches if calibration_data is None else Repeatable.of("calibration_data",
                                                                      calibration_data)
    # After the rules, because variables in skip may be gone when operators are folded.
    post_training.prepare(student, rules, PostTrainingPlan(fuse=fuse))
    if fuse:
        _check_kept(student, terms)
    with seeded(config.seed):  # a training that continues calibrates on the same batches
        engine.calibrate(student, examples, calibration_batches)
    _start_clipping(student)
    if terms is not None and teacher is None:
        _check_same_tensors(student, master, terms, examples)
    described = quantization if isinstance(quantization, dict) else (
        None if quantization is None else plain_value(
            quantization.rules if isinstance(quantization, QuantConfig) else quantization))
    if eval_data is not None:
        eval_data = Repeatable.of("eval_data", eval_data)
    elif eval_callback is None and config.keep_best:
        with seeded(config.seed):  # the same ones for a training that continues
            batches, eval_data = hold_out(batches,
                                          None if calibration_data is None else examples)
    result = train(student, master, batches, terms, config, eval_callback, eval_data,
                   checkpoint_dir,
                   {"quantization": plain_value(described), "fuse": fuse,
                    "calibration_batches": calibration_batches})
    engine.set_provenance(
        student, "distill", quantization=described, fuse=fuse,
        losses=None if terms is None else [plain_value(each) for each in terms],
        train=train_config, steps=result.steps, best_step=result.best_step)
    return result


class Repeatable:
    """Data that is iterated more than once: an iterable, or the iterators of a function."""

    def __init__(self, make: Callable[[], Iterable]) -> None:
        self.make = make

    @classmethod
    def of(cls, name: str, data: Any) -> Any:
        """Return ``data``, or a Repeatable if it is a function."""
        if hasattr(data, "__iter__") and hasattr(data, "__next__"):
            raise wrong_type(name, data, "a list, a DataLoader or a function that returns an "
                                         "iterator; an iterator ends after one pass")
        if callable(data) and not hasattr(data, "__iter__"):
            return cls(cast(Callable[[], Iterable], data))
        return data

    def __iter__(self):
        return iter(self.make())


def check_train_config(given: Dict[str, Any]) -> TrainConfig:
    """Return the :class:`TrainConfig` of keyword arguments of :func:`distill`."""
    check_known_keys("distill", given, TrainConfig.__dataclass_fields__)
    config = TrainConfig(**given)
    make_schedule(config.learning_rate, 1)
    return config


def parse_losses(losses: Any) -> Optional[List[DistillLoss]]:
    """Return the terms of the argument ``losses``; None for the default."""
    if losses is None:
        return None
    entries = losses if isinstance(losses, (list, tuple)) else [losses]
    found = []
    for entry in entries:
        if isinstance(entry, dict):
            check_known_keys("losses", entry, DistillLoss.__dataclass_fields__)
            entry = DistillLoss(**entry)
        elif isinstance(entry, str):
            entry = DistillLoss(entry)
        elif not isinstance(entry, DistillLoss):
            raise wrong_type("losses", entry, "a DistillLoss, the name of a loss or a list of them")
        found.append(copy.deepcopy(entry))
    if not found:
        raise wrong_value("losses", losses, "None or a list with a loss")
    return found


def _loaded(name, model):
    if isinstance(model, (str, os.PathLike)):
        return SavedModel(model)
    if not isinstance(model, nn.Layer):
        raise wrong_type(name, model, "a saved model or a paddle.nn.Layer")
    return model


def _rules(student, quantization, skip):
    if isinstance(quantization, QuantConfig):
        if skip is not None:
            raise ConfigError("skip has no effect with a QuantConfig; add a rule for None to it")
        return quantization
    if isinstance(quantization, LayerConfig):
        return rules_for(None, quantization, Scope.parse(skip, student))
    if quantization is not None and not isinstance(quantization, dict):
        raise wrong_type("quantization", quantization, "a dict, a QuantConfig or a LayerConfig")
    return QuantAware(quantization).rules(student, skip)


def _start_clipping(student):
    """Start the ranges of PACT at the calibrated ranges, where they clip the first values."""
    for _, layer in engine.quantized_layers(student):
        for slot in range(len(layer._paddleq.kind.inputs)):
            preprocess, quantizer = layer.input_parts(slot)
            if PACT.clips(preprocess) and getattr(quantizer, "initialized", False):
                preprocess.alpha.set_value(quantizer.abs_max)


def _check_kept(student, terms):
    """Raise for named tensors that a program does not compute since operators are folded."""
    if isinstance(student, SavedModel):
        known = set(student.tensor_names)
        for name in [name for term in terms or () for name in term.names(1) if name not in known]:
            raise ConfigError(f"node has {name!r}, which is not computed when multiplications and "
                              "additions of constants are folded into weights; name a tensor "
                              "after them, or use fuse=False")


def _check_same_tensors(student, teacher, terms, data):
    """Raise for named tensors that folding changed."""
    names = [name for term in terms for name in term.names(1)
             if name in term.names(0)]
    if not names:
        return
    (first,) = engine.iter_batches(student, data, 1)
    args, kwargs = first
    with engine.eager_evaluation(student, teacher), engine.quantization_off(student):
        found, wanted = (NamedTensors(model, names, whose).run(args, kwargs)
                         for model, whose in ((student, "student"), (teacher, "teacher")))
    for name in names:
        distance = (found[name] - wanted[name]).norm() / wanted[name].norm().clip(1e-12)
        if float(distance) > _SAME_TENSOR:
            raise ConfigError(
                f"node has {name!r}, which is another tensor since operators are folded "
                f"(relative distance {float(distance):.2g} in float); name the output of the batch "
                "norm or of the last operator that is folded, or use fuse=False")
