"""Execution of recipes."""

import logging
import os
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, List, Optional

import paddle

from .. import engine, export, post_training
from .._checks import check_metric
from ..algorithms.distillation import seeded
from ..analysis import AccuracyReport, report, sensitivity
from ..analysis.accuracy import accuracy_search
from ..checkpoint import save_checkpoint
from ..config import LayerConfig, Scope
from ..deploy import Report, verify
from ..errors import ConfigError, ConfigTypeError
from ..export.formats import FORMATS
from ..export.paddle.lower import save_for
from ..export.paddle.markers_from_program import raise_to_markers
from ..export.pir_to_program import load_program
from ..export.provenance_file import Provenance, export_files, provenance_path
from ..export.trace import trace_float
from ..frontends.amct import convert, quantize
from ..frontends.golden_stick import PTQ as GoldenStickPTQ
from ..frontends.paddleslim import PTQ
from ..frontends.paddleslim.distill import distill
from ..frontends.paddleslim.quant_post import weight_only
from ..frontends.paddleslim.shared import rules_for
from ..post_training import PostTrainingPlan
from ..post_training.saved_models import (
    calibrated_rules,
    operator_sensitivities,
    quantized_program,
    weight_only_model,
)
from ..saved_model import SavedModel
from ..saved_model.files import locate
from ..saved_model.full_scope import SCOPES
from .recipe import Recipe
from .sources import build_model, find_function, open_data

_logger = logging.getLogger("paddleq")


@dataclass
class RecipeResult:
    """Result of :func:`run`.

    Attributes:
        files: paths of the written files.
        model: quantized Layer. ``None`` if the model is a saved one that was not trained.
        reports: results of the checks, one :class:`~paddleq.deploy.Report` for each path.
        accuracy: result of the search for layers to leave float, None without
            ``quantize.accuracy``.
    """

    files: List[str] = field(default_factory=list)
    model: Optional[paddle.nn.Layer] = None
    reports: List[Report] = field(default_factory=list)
    accuracy: Optional[AccuracyReport] = None

    @property
    def ok(self) -> bool:
        """True if every check passed."""
        return all(report.ok for report in self.reports)


def run(recipe: Recipe) -> RecipeResult:
    """Quantize, export and check as a :class:`Recipe` describes.

    Raises:
        PaddleqError: a subclass for the failed step; problems with a key of the recipe are
            :class:`~paddleq.errors.RecipeError`.
    """
    values, result = recipe.values, RecipeResult()
    # With a new name generator, parameters are named as in a new process: each run writes the
    # same bytes.
    with seeded(values.seed), paddle.utils.unique_name.guard():
        quantized, program = _METHODS[values.quantize.method](recipe, result), None
        if isinstance(quantized, SavedModel) and values.quantize.method != "distill":
            program, _ = quantized_program(quantized)
        else:
            result.model = quantized
        for each in values.export:
            path = recipe.resolve(each.path)
            folder = os.path.dirname(os.path.abspath(path))
            made_by = {"folder": os.path.relpath(recipe.folder, folder).replace(os.sep, "/"),
                       "recipe": recipe.plain}
            if program is not None:
                _write_program(program, path, each.format, made_by)
            elif each.format == "checkpoint":
                save_checkpoint(result.model, path)
                Provenance.of_layer("checkpoint", result.model, made_by).write(path)
            else:
                export.save(result.model, path, values.model.input_specs(), format=each.format,
                            made_by=made_by)
            result.files += written_files(path, each.format)
        # Several formats at one path are verified together.
        for path in dict.fromkeys(each.path for each in values.export
                                  if values.checks and each.format != "checkpoint"):
            data = data_of(recipe, "evaluation") or data_of(recipe, "calibration")
            result.reports.append(verify(
                recipe.resolve(path), result.model, data, runtimes=values.checks.runtimes,
                top1=values.checks.top1_agreement, error=values.checks.relative_error,
                seconds=0.0))
    return result


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


def _float_model(recipe):
    path = recipe.values.model.path
    return _built(recipe) if path is None else SavedModel(*locate(recipe.resolve(path)))


def _by_golden_stick(recipe, _result):
    net, quantize = _built(recipe), recipe.values.quantize
    ptq = GoldenStickPTQ(quantize.config, quantize.policies())
    return ptq.convert(ptq.apply(net, datasets=data_of(recipe, "calibration")))


def _by_amct(recipe, _result):
    net, config = _built(recipe), recipe.values.quantize.config
    quantize(net, config)
    with paddle.no_grad():
        engine.run_batches(lambda inputs: net(*inputs[0], **inputs[1]), engine.iter_batches(
            net, data_of(recipe, "calibration"), config["batch_num"]))
    convert(net)
    return net


def _by_distillation(recipe, _result):
    net = _float_model(recipe)
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


def _by_ptq(recipe, result):
    plan = _ptq_plan(recipe)
    model, rules = _model_and_rules(recipe, plan)
    plan.accuracy = _accuracy_search(recipe)
    data = data_of(recipe, "calibration") if plan.accuracy is None else plan.accuracy.data
    result.accuracy = post_training.run(model, rules, plan, data)
    return model


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


def _ptq_plan(recipe):
    """Return the :class:`~paddleq.post_training.PostTrainingPlan` of the method ptq."""
    quantize, ptq, saved = recipe.values.quantize, _ptq(recipe), recipe.values.model.path
    return PostTrainingPlan(
        fuse=quantize.fuse is not False, warn_unfused=not saved, scope=quantize.scope or SCOPES[0],
        skip_tensors=[*(quantize.skip or ()), *(rule.name for rule in quantize.rules or ())]
        if saved else (), equalize=ptq.equalize, round_type=ptq.round_type,
        bias_correction=ptq.bias_correction)


def _model_and_rules(recipe, plan):
    """Return (float model to change in place, rules of its layers) of the method ptq."""
    net, quantize, ptq = _float_model(recipe), recipe.values.quantize, _ptq(recipe)
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


def sensitivities(recipe, report_path=None):
    """Measure the sensitivity to each layer, or to each operator of a saved model.

    The recipe is of the method ptq. For a Layer, a report is written to ``report_path``.
    """
    data = data_of(recipe, "calibration")
    with seeded(recipe.values.seed):
        plan = _ptq_plan(recipe)
        model, rules = _model_and_rules(recipe, plan)
        if isinstance(model, SavedModel):
            return operator_sensitivities(model, rules, plan, data)
        post_training.run(model, rules, plan, data)
        found = sensitivity(model, data)
        if report_path is not None:
            report(model, report_path, data, sensitivities=found, title=recipe.values.model.build)
        return found


def _by_dynamic(recipe, _result):
    model, quantize = recipe.values.model, recipe.values.quantize
    program = (trace_float(_built(recipe), model.input_specs()) if model.build
               else load_program(*locate(recipe.resolve(model.path))))
    given = _given(quantize, "quantizable_op_type")
    return weight_only_model(program, weight_only(
        **_given(quantize, "weight_bits", "weight_quantize_type")), **given)


_METHODS = {"ptq": _by_ptq, "dynamic": _by_dynamic, "golden_stick": _by_golden_stick,
            "amct": _by_amct, "distill": _by_distillation}


def _write_program(program, path, format, made_by):
    record = Provenance(format, program, **made_by)
    if format == "pdmodel":
        save_for("any", program, path + ".pdmodel", path + ".pdiparams", record)
        return
    exporter, marked = FORMATS[format](), program.copy()
    exporter.require()
    exporter.write(marked, raise_to_markers(marked), path, record)


def written_files(path, format):
    """Return the files of an export at the prefix ``path``, with its provenance file."""
    files = export_files(path, format)
    files.append(provenance_path(files[0]))
    _logger.info("wrote %s", ", ".join(files))
    return files


def data_of(recipe, purpose) -> Any:
    """Return the batches of ``data.calibration`` or ``data.evaluation``, or None."""
    section = getattr(recipe.values.data, purpose)
    return None if section is None else open_data(folder=recipe.folder, **section.model_dump())
