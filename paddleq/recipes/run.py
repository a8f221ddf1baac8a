"""Execution of recipes."""

import logging
import os
from dataclasses import dataclass, field
from typing import List, Optional

import paddle

from .. import export, post_training
from ..algorithms.distillation import seeded
from ..analysis import AccuracyReport, report, sensitivity
from ..checkpoint import save_checkpoint
from ..deploy import Report, verify
from ..export.formats import FORMATS
from ..export.paddle.lower import save_for
from ..export.paddle.markers_from_program import raise_to_markers
from ..export.provenance_file import Provenance, export_files, provenance_path
from ..post_training.saved_models import operator_sensitivities, quantized_program
from ..saved_model import SavedModel
from .methods import METHODS, data_of, model_and_rules, ptq_plan
from .recipe import Recipe

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
        method, program = METHODS[values.quantize.method](), None
        quantized = method.run(recipe, result)
        if ("path" if values.model.path else "build") in method.in_memory:
            result.model = quantized
        else:
            program, _ = quantized_program(quantized)
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


def sensitivities(recipe, report_path=None):
    """Measure the sensitivity to each layer, or to each operator of a saved model.

    The recipe is of the method ptq. For a Layer, a report is written to ``report_path``.
    """
    data = data_of(recipe, "calibration")
    with seeded(recipe.values.seed):
        plan = ptq_plan(recipe)
        model, rules = model_and_rules(recipe, plan)
        if isinstance(model, SavedModel):
            return operator_sensitivities(model, rules, plan, data)
        post_training.run(model, rules, plan, data)
        found = sensitivity(model, data)
        if report_path is not None:
            report(model, report_path, data, sensitivities=found, title=recipe.values.model.build)
        return found


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
