"""Execution of recipes."""

import contextlib
import logging
import os
import random
from dataclasses import dataclass, field
from itertools import islice
from typing import List, Optional

import numpy as np
import paddle

from .. import engine, export
from ..analysis import report, sensitivity
from ..checkpoint import save_checkpoint
from ..config import LayerConfig
from ..deploy import Report, verify
from ..engine.example_inputs import fold_batch_norms
from ..export.onnx import require_onnx, write_program
from ..export.paddle.markers_from_program import raise_to_markers
from ..export.pir_to_program import load_program
from ..export.provenance_file import Provenance, export_files, provenance_path
from ..export.trace import trace_float
from ..frontends.amct import convert, quantize
from ..frontends.golden_stick import PTQ as GoldenStickPTQ
from ..frontends.paddleslim import PTQ
from ..frontends.paddleslim.post_dynamic import weights_as_integers
from ..frontends.paddleslim.post_static import calibrated_model, sensitivity_post_static
from ..frontends.paddleslim.saved_models import quantized_program
from ..frontends.paddleslim.shared import rules_for
from ..nn.layer_types import known_classes
from ..saved_model.files import find_files
from .recipe import Recipe
from .schema import InputSection
from .sources import build_model, open_data

_logger = logging.getLogger("paddleq")


@dataclass
class RecipeResult:
    """Result of :func:`run`.

    Attributes:
        files: paths of the written files.
        model: quantized Layer. ``None`` if the model is a saved one.
        reports: results of the checks, one :class:`~paddleq.deploy.Report` for each path.
    """

    files: List[str] = field(default_factory=list)
    model: Optional[paddle.nn.Layer] = None
    reports: List[Report] = field(default_factory=list)

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
    # With a new name generator, parameters are named as in a new process: each run writes the
    # same bytes.
    with _seeded(recipe.values.seed), paddle.utils.unique_name.guard():
        return _run(recipe)


def _run(recipe):
    values, result = recipe.values, RecipeResult()
    if values.model.build:
        _run_on_layer(recipe, result)
    else:
        _run_on_saved(recipe, result)
    if values.checks is not None:
        _check(recipe, result)
    return result


def _check(recipe, result):
    checks = recipe.values.checks
    # Several formats at one path are verified together.
    for path in dict.fromkeys(each.path for each in recipe.values.export
                              if each.format != "checkpoint"):
        data = data_of(recipe, "evaluation") or data_of(recipe, "calibration")
        result.reports.append(verify(
            recipe.resolve(path), result.model, data, runtimes=checks.runtimes,
            top1=checks.top1_agreement, error=checks.relative_error, seconds=0.0))


def _run_on_layer(recipe, result):
    model, quantize = recipe.values.model, recipe.values.quantize
    net = _built(recipe)
    spec = input_specs(model.input_spec)
    if quantize.method == "dynamic":
        _check_formats(recipe, "the method dynamic")
        _write_programs(recipe, _dynamic(recipe, trace_float(net, spec)), result)
        return
    result.model = {"ptq": quantized_by_ptq, "golden_stick": _by_golden_stick,
                    "amct": _by_amct}[quantize.method](recipe, net)
    for number, each in enumerate(recipe.values.export):
        path = recipe.resolve(each.path)
        if each.format == "checkpoint":
            if quantize.method == "ptq":
                raise recipe.error(f"export[{number}].format", "checkpoint is for the methods "
                                     "golden_stick and amct, which leave integers in the Layer")
            save_checkpoint(result.model, path)
            Provenance.of_layer("checkpoint", result.model, _made_by(recipe, path)).write(path)
        else:
            export.save(result.model, path, spec, format=each.format,
                        made_by=_made_by(recipe, path))
        result.files += written_files(path, each.format)


def _built(recipe):
    """Return the Layer of a recipe after a forward pass on its calibration data."""
    model = recipe.values.model
    net = build_model(model.build, recipe.folder, model.arguments, model.weights)
    for batch in islice(data_of(recipe, "calibration") or (), 1):
        args, kwargs = engine.forward_arguments(net, batch)
        try:
            with paddle.no_grad():
                net(*args, **kwargs)
        except Exception as error:
            shapes = [list(getattr(each, "shape", ())) for each in (*args, *kwargs.values())]
            message = " ".join(str(error).split())
            raise recipe.error(
                "data.calibration", f"does not fit the model, which fails on its first batch, of "
                f"the shapes {shapes}: {type(error).__name__}: {message[:300]}") from error
    return net


def _by_golden_stick(recipe, net):
    quantize = recipe.values.quantize
    ptq = GoldenStickPTQ(quantize.config, quantize.policies())
    return ptq.convert(ptq.apply(net, datasets=data_of(recipe, "calibration")))


def _by_amct(recipe, net):
    config = recipe.values.quantize.config
    quantize(net, config)
    with paddle.no_grad():
        engine.run_batches(lambda inputs: net(*inputs[0], **inputs[1]), engine.iter_batches(
            net, data_of(recipe, "calibration"), config["batch_num"]))
    convert(net)
    return net


def quantized_by_ptq(recipe, net):
    """Return a quantized, calibrated copy of ``net``."""
    quantize = recipe.values.quantize
    ptq = _ptq(quantize)
    classes = [cls for name, cls in known_classes().items()
               if name not in ("Embedding", "QuantizableFunction")]
    rules = rules_for(classes, _layer_config(ptq))
    names = {name for name, _ in net.named_sublayers(include_self=True)}
    for number, rule in enumerate(quantize.rules or ()):
        config = None if rule.skip else _layer_config(ptq, rule)
        if rule.name is not None:
            if rule.name not in names:
                from .._checks import hint
                raise recipe.error(f"quantize.rules[{number}].name",
                                     f"the model has no layer {rule.name!r}"
                                     f"{hint(rule.name, names)}")
            rules.add_name(rule.name, config)
        elif rule.type is not None:
            rules.add_type(known_classes()[rule.type], config)
        else:
            rules.add_pattern(rule.pattern, config)
    rules.exclude(quantize.skip, net)
    data = data_of(recipe, "calibration")
    net = engine.copy_of(net)
    fuse = None if quantize.fuse is False else lambda: fold_batch_norms(net, None)
    engine.prepare(net, rules, fuse)
    net.eval()
    engine.set_state(net, "calibration")
    engine.calibrate(net, data)
    return net


def _ptq(quantize):
    return PTQ(**_given(quantize, "activation_quantizer", "weight_quantizer"))


def _given(section, *keys):
    """Return the values of a section that are given."""
    return {key: getattr(section, key) for key in keys if getattr(section, key) is not None}


def _layer_config(ptq, rule=None):
    weight = rule and rule.weight_quantizer or ptq.weight_quantizer
    activation = rule and rule.activation_quantizer or ptq.activation_quantizer
    return LayerConfig(weight=weight.weight(), activation=activation.activation())


def sensitivities(recipe):
    """Measure the sensitivity to each layer, or to each operator of a saved model.

    Args:
        recipe: :class:`Recipe` of the method ptq. Its exports are not written.
    """
    model = recipe.values.model
    with _seeded(recipe.values.seed):
        if not model.build:
            folder, name = saved_model(recipe.resolve(model.path))
            return sensitivity_post_static(folder, data_of(recipe, "calibration"),
                                           model_filename=name, **_static_options(recipe))
        quantized = quantized_by_ptq(recipe, _built(recipe))
        return sensitivity(quantized, data_of(recipe, "calibration"))


def write_report(recipe, path):
    """Write the report of the Layer that a recipe of the method ptq quantizes."""
    with _seeded(recipe.values.seed):
        model, data = recipe.values.model, data_of(recipe, "calibration")
        quantized = quantized_by_ptq(recipe, _built(recipe))
        report(quantized, path, data, sensitivities=sensitivity(quantized, data),
               title=model.build)


def _run_on_saved(recipe, result):
    _check_formats(recipe, "a saved model")
    folder, name = saved_model(recipe.resolve(recipe.values.model.path))
    if recipe.values.quantize.method == "dynamic":
        program = _dynamic(recipe, load_program(*find_files(folder, name, None)))
    else:
        program, _ = quantized_program(calibrated_model(
            folder, data_of(recipe, "calibration"), name, **_static_options(recipe)))
    _write_programs(recipe, program, result)


def _static_options(recipe):
    quantize = recipe.values.quantize
    skip = list(quantize.skip or ())
    for number, rule in enumerate(quantize.rules or ()):
        if not (rule.skip and rule.name):
            raise recipe.error(f"quantize.rules[{number}]",
                                 "of a saved model must be a name of a tensor and skip")
        skip.append(rule.name)
    return {"config": _layer_config(_ptq(quantize)), "optimize_model": quantize.fuse is not False,
            "skip_tensor_list": skip}


def _dynamic(recipe, program):
    """Return the program with integer weights."""
    return weights_as_integers(program, **_given(
        recipe.values.quantize, "quantizable_op_type", "weight_bits", "weight_quantize_type"))


def _check_formats(recipe, model):
    """Raise before any computation if a format requires a quantized Layer."""
    for number, each in enumerate(recipe.values.export):
        if each.format not in ("pdmodel", "onnx"):
            raise recipe.error(f"export[{number}].format", f"must be pdmodel or onnx for {model}, "
                                                             f"but is {each.format}")


def _write_programs(recipe, program, result):
    for each in recipe.values.export:
        path = recipe.resolve(each.path)
        record = Provenance.of_program(each.format, program, _made_by(recipe, path))
        if each.format == "onnx":
            require_onnx()
            marked = program.copy()
            write_program(marked, raise_to_markers(marked), path + ".onnx", provenance=record)
        else:
            program.save(path + ".pdmodel", path + ".pdiparams", record)
        result.files += written_files(path, each.format)


def _made_by(recipe, path):
    """Return the recipe and the folder of its paths, relative to an export at ``path``."""
    folder = os.path.dirname(os.path.abspath(path))
    return {"folder": os.path.relpath(recipe.folder, folder).replace(os.sep, "/"),
            "recipe": recipe.plain}


def written_files(path, format):
    """Return the files of an export at the prefix ``path``, with its provenance file."""
    files = export_files(path, format)
    files.append(provenance_path(files[0]))
    _logger.info("wrote %s", ", ".join(files))
    return files


def data_of(recipe, purpose):
    """Return the batches of ``data.calibration`` or ``data.evaluation``, or None."""
    section = getattr(recipe.values.data, purpose)
    return None if section is None else open_data(folder=recipe.folder, **section.model_dump())


def saved_model(path):
    """Return (folder, file name or None) of a saved model from its folder, file or prefix."""
    if os.path.isdir(path):
        return path, None
    folder, name = os.path.split(path)
    for ending in ("", ".pdmodel", ".json"):
        if os.path.isfile(path + ending):
            return folder or ".", name + ending
    return folder or ".", name + ".pdmodel"


def input_specs(sections):
    """Return the InputSpecs of the ``input_spec`` of a recipe or of nested dicts, or None."""
    if sections is None:
        return None
    sections = map(InputSection.model_validate, sections)
    return [paddle.static.InputSpec(each.shape, each.dtype, each.name) for each in sections]


@contextlib.contextmanager
def _seeded(seed):
    """Seed all random generators, and restore their states afterwards."""
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
