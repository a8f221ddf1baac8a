"""Methods of quantization of recipes: their keys, their checks and their steps."""

import abc
from itertools import islice
from typing import Any, Callable, Dict, Tuple, Type

import paddle
from paddle import nn

from .. import engine, post_training
from .._checks import check_metric
from .._registry import Registry
from ..analysis.accuracy import accuracy_search
from ..config import LayerConfig, Scope
from ..errors import ConfigError, ConfigTypeError
from ..export.pir_to_program import load_program
from ..export.trace import trace_float
from ..frontends.amct import convert, quantize
from ..frontends.amct_config import AmctConfig
from ..frontends.golden_stick import PTQ as GoldenStickPTQ
from ..frontends.golden_stick import PTQConfig
from ..frontends.paddleslim import PTQ
from ..frontends.paddleslim.distill import (
    QuantAware,
    check_train_config,
    distill,
    parse_losses,
)
from ..frontends.paddleslim.quant_post import weight_only
from ..frontends.paddleslim.shared import rules_for
from ..post_training import PostTrainingPlan
from ..post_training.saved_models import calibrated_rules, weight_only_model
from ..saved_model import SavedModel
from ..saved_model.files import locate
from ..saved_model.full_scope import SCOPES
from .sources import build_model, find_function, open_data

METHODS: "Registry[Type[Method]]" = Registry("method")


class Method(abc.ABC):
    """Method of quantization of recipes.

    Attributes:
        keys: of the section ``quantize`` that the method has.
        needs_data: True if it calibrates on ``data.calibration``.
        trains: True if it can train on ``data.training``.
        takes: kinds of models: "build", a Layer, and "path", a saved model.
        in_memory: kinds of models that are quantized as a Layer which is exported. The program of
            the others is written.
        checkpoint: True if ``load_checkpoint`` can load the checkpoint of a Layer.
    """

    keys: Tuple[str, ...] = ()
    needs_data = True
    trains = False
    takes: Tuple[str, ...] = ("build", "path")
    in_memory: Tuple[str, ...] = ("build",)
    checkpoint = True

    def checks(self, section: Any) -> Dict[str, Callable[[], Any]]:
        """Return key -> function that raises an error if its value in ``section`` is wrong."""
        return {}

    @abc.abstractmethod
    def run(self, recipe: Any, result: Any) -> nn.Layer:
        """Return the quantized model of a recipe; fields of the RecipeResult may be set."""


@METHODS.register("ptq")
class _PostTraining(Method):
    keys = ("activation_quantizer", "weight_quantizer", "fuse", "rules", "skip", "accuracy",
            "scope", "round_type", "bias_correction", "equalize")

    def run(self, recipe, result):
        plan = ptq_plan(recipe)
        model, rules = model_and_rules(recipe, plan)
        plan.accuracy = _accuracy_search(recipe)
        data = data_of(recipe, "calibration") if plan.accuracy is None else plan.accuracy.data
        result.accuracy = post_training.run(model, rules, plan, data)
        return model


@METHODS.register("dynamic")
class _WeightOnly(Method):
    keys = ("weight_bits", "weight_quantize_type", "quantizable_op_type")
    needs_data = False
    in_memory = ()
    checkpoint = False

    def run(self, recipe, result):
        model, quantize = recipe.values.model, recipe.values.quantize
        program = (trace_float(_built(recipe), model.input_specs()) if model.build
                   else load_program(*locate(recipe.resolve(model.path))))
        given = _given(quantize, "quantizable_op_type")
        return weight_only_model(program, weight_only(
            **_given(quantize, "weight_bits", "weight_quantize_type")), **given)


@METHODS.register("golden_stick")
class _GoldenStick(Method):
    keys = ("config", "layer_policies")
    takes = ("build",)

    def checks(self, section):
        return {"config": lambda: PTQConfig.parse(section.config),
                "layer_policies": lambda: GoldenStickPTQ(None, section.policies())}

    def run(self, recipe, result):
        net, section = float_model(recipe), recipe.values.quantize
        ptq = GoldenStickPTQ(section.config, section.policies())
        return ptq.convert(ptq.apply(net, datasets=data_of(recipe, "calibration")))


@METHODS.register("amct")
class _Amct(Method):
    keys = ("config",)
    takes = ("build",)

    def checks(self, section):
        return {"config": lambda: AmctConfig.parse(section.config)}

    def run(self, recipe, result):
        net, config = float_model(recipe), recipe.values.quantize.config
        quantize(net, config)
        with paddle.no_grad():
            engine.run_batches(lambda inputs: net(*inputs[0], **inputs[1]), engine.iter_batches(
                net, data_of(recipe, "calibration"), config["batch_num"]))
        convert(net)
        return net


@METHODS.register("distill")
class _Distillation(Method):
    keys = ("config", "losses", "train", "teacher", "fuse", "skip")
    trains = True
    in_memory = ("build", "path")
    checkpoint = False  # nothing but a training makes layers with its learned quantizers

    def checks(self, section):
        return {"config": lambda: QuantAware(section.config),
                "losses": lambda: parse_losses(section.losses),
                "train": lambda: check_train_config(section.train or {})}

    def run(self, recipe, result):
        net = float_model(recipe)
        quantize, sections = recipe.values.quantize, recipe.values.data
        calibration, training = (data_of(recipe, name) for name in ("calibration", "training"))
        if training is None:
            training, calibration = calibration, None
        elif sections.training.source == sections.calibration.source:
            # Without calibration data, batches for the evaluations are kept from the training.
            calibration = None
        batches = sections.calibration.batches
        return distill(
            net, training, quantize.config, quantize.losses,
            teacher=None if quantize.teacher is None else recipe.resolve(quantize.teacher),
            calibration_data=calibration, eval_data=data_of(recipe, "evaluation"),
            fuse=quantize.fuse is not False, skip=quantize.skip,
            **({} if batches is None else {"calibration_batches": batches}),
            **{"seed": recipe.values.seed, **(quantize.train or {})}).model


def _built(recipe):
    """Return the Layer of a recipe after a forward pass on its calibration data."""
    model = recipe.values.model
    net = build_model(model.build, recipe.folder, model.arguments, model.weights)
    first = islice(data_of(recipe, "calibration") or (), 1)

    def run(batch):
        args, kwargs = batch
        net(*args, **kwargs)

    try:
        with paddle.no_grad():
            engine.run_batches(run, engine.iter_batches(net, first, allow_empty=True))
    except Exception as error:
        message = " ".join(str(error).split())
        raise recipe.error(
            ("data", "calibration"), "does not fit the model, which fails on its first batch: "
            f"{type(error).__name__}: {message[:600]}") from error
    return net


def float_model(recipe):
    """Return the float model of a recipe, a Layer or a SavedModel."""
    path = recipe.values.model.path
    return _built(recipe) if path is None else SavedModel(*locate(recipe.resolve(path)))


def _accuracy_search(recipe):
    """Return the search of ``quantize.accuracy`` on the calibration data, or None."""
    accuracy = recipe.values.quantize.accuracy
    if accuracy is None:
        return None
    if ":" in accuracy["metric"]:
        metric = find_function(accuracy["metric"], recipe.folder)
        try:
            check_metric("", metric)
        except ConfigTypeError as error:
            raise recipe.error(("quantize", "accuracy", "metric"), str(error).strip()) from error
        accuracy = {**accuracy, "metric": metric}
    return accuracy_search(accuracy, list(data_of(recipe, "calibration")))


def ptq_plan(recipe):
    """Return the :class:`~paddleq.post_training.PostTrainingPlan` of the method ptq."""
    quantize, ptq, saved = recipe.values.quantize, _ptq(recipe), recipe.values.model.path
    return PostTrainingPlan(
        fuse=quantize.fuse is not False, warn_unfused=not saved, scope=quantize.scope or SCOPES[0],
        skip_tensors=[*(quantize.skip or ()), *(rule.name for rule in quantize.rules or ())]
        if saved else (), equalize=ptq.equalize, round_type=ptq.round_type,
        bias_correction=ptq.bias_correction)


def model_and_rules(recipe, plan):
    """Return (float model to change in place, rules of its layers) of the method ptq."""
    net, quantize, ptq = float_model(recipe), recipe.values.quantize, _ptq(recipe)
    if isinstance(net, SavedModel):
        return net, calibrated_rules(net, _layer_config(ptq), skip_tensors=plan.skip_tensors,
                                     scope=plan.scope)
    rules = rules_for(None, _layer_config(ptq))
    for number, rule in enumerate(quantize.rules or ()):
        scope = rule.scope()
        try:
            scope.find(net)
        except ConfigError as error:
            key = "pattern" if rule.name is None else "name"
            raise recipe.error(("quantize", "rules", number, key), str(error)) from error
        engine.warn_unmatched_types(net, scope.types, f"quantize.rules[{number}].type")
        rules.add(scope, None if rule.skip else _layer_config(ptq, rule))
    rules.add(Scope.parse(quantize.skip, net), None)
    return engine.copy_of(net, "let the function of model.build return a model that can"), rules


def _ptq(recipe):
    return PTQ(**_given(recipe.values.quantize, "activation_quantizer", "weight_quantizer",
                        "round_type", "bias_correction", "equalize"))


def _given(section, *keys):
    """Return the values of a section that are given."""
    return {key: getattr(section, key) for key in keys if getattr(section, key) is not None}


def _layer_config(ptq, rule=None):
    weight = rule and rule.weight_quantizer or ptq.weight_quantizer
    activation = rule and rule.activation_quantizer or ptq.activation_quantizer
    return LayerConfig(weight=weight.weight(), activation=activation.activation())


def data_of(recipe, purpose) -> Any:
    """Return the batches of ``data.calibration`` or ``data.evaluation``, or None."""
    section = getattr(recipe.values.data, purpose)
    return None if section is None else open_data(folder=recipe.folder, **section.model_dump())
