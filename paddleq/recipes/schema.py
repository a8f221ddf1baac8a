"""Pydantic models of a recipe."""

import re
from collections import OrderedDict
from typing import Any, Dict, List, Optional

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Annotated, Literal

from .._checks import check_choice, wrong_type, wrong_value
from ..deploy.runtimes import RUNTIMES
from ..errors import PaddleqError
from ..export import FORMATS
from ..export.provenance_file import export_files
from ..frontends.amct.config import AmctConfig
from ..frontends.golden_stick import PTQ as GoldenStickPTQ
from ..frontends.golden_stick import PTQConfig
from ..frontends.paddleslim.quantizers import make_quantizer
from ..frontends.paddleslim.saved_models import check_op_types
from ..nn.layer_types import known_classes
from .sources import check_function_name, image_transform


def _checked(check):
    """Return a validator that calls ``check(name, value)``."""
    def validate(value):
        try:
            return check("", value)
        except PaddleqError as error:
            raise ValueError(str(error).strip()) from error
    return BeforeValidator(validate)


def _pattern(name, value):
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise wrong_value(name, value, f"a regular expression ({error})") from error
    return value


def _shape(name, value):
    if not isinstance(value, list):
        raise wrong_type(name, value, "a list such as [null, 3, 224, 224]")
    for size in value:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise wrong_value(name, value, "a list of sizes, null where one is open")
    return value


def _transform(name, value):
    if not isinstance(value, list):
        raise wrong_type(name, value, "a list of transforms, such as [{Resize: {size: 256}}]")
    for step in value:
        if isinstance(step, dict) and len(step) == 1 and isinstance(next(iter(step)), str):
            continue
        if not isinstance(step, str):
            raise wrong_value(name, value, "a list of names or of {name: arguments}")
    image_transform([step for step in value if ":" not in next(iter(
        [step] if isinstance(step, str) else step))])
    return value


def _quantizer(side):
    def check(name, value):
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise wrong_type(name, value, "a name, or a mapping with a name and arguments")
        arguments = {key: value for key, value in given.items() if key != "name"}
        return make_quantizer(name, given["name"], side, arguments)
    return check


def _op_types(_name, value):
    check_op_types(value)
    return value


def _choice_of(choices):
    """Return a check against ``choices()``, which are computed when a recipe is read."""
    return lambda name, value: check_choice(name, value, choices())


def _as_list(value):
    return value if isinstance(value, list) else [value]


def _labels(name, value):
    if value is not True and not isinstance(value, str):
        raise wrong_type(name, value, "true or a text")
    return value


DTYPES = ("float32", "float64", "float16", "int32", "int64", "bool")
Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[List[str], BeforeValidator(_as_list)]
Positive = Annotated[int, Field(ge=1)]
_WeightQuantizer = Annotated[Any, _checked(_quantizer("weight"))]
_ActivationQuantizer = Annotated[Any, _checked(_quantizer("activation"))]


class Section(BaseModel):
    """Section of a recipe: a mapping with known keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def problems(self):
        """Yield (key or None, problem) of values that contradict each other."""
        return ()

    @model_validator(mode="after")
    def _check_together(self):
        found = list(self.problems())
        if found:
            raise PydanticCustomError("problems", "contradictions", {"problems": found})
        return self

    def _one_of(self, *keys):
        given = [key for key in keys if key in self.model_fields_set]
        if len(given) != 1:
            yield None, (f"must have one of {', '.join(keys)}, but has "
                         f"{' and '.join(given) or 'none of them'}")


class InputSection(Section):
    """Input of a Layer."""

    shape: Annotated[list, _checked(_shape)]
    dtype: Literal[DTYPES] = "float32"  # type: ignore[valid-type]
    name: Optional[Text] = None


class ModelSection(Section):
    """Float model: a function that builds a Layer, or a saved model."""

    build: Optional[Annotated[str, _checked(check_function_name)]] = None
    path: Optional[Text] = None
    arguments: Optional[Dict[str, Any]] = None
    weights: Optional[Text] = None
    input_spec: Optional[Annotated[List[InputSection], Field(min_length=1)]] = None

    def problems(self):
        yield from self._one_of("build", "path")
        for key in ("arguments", "weights", "input_spec"):
            if self.path and getattr(self, key) is not None:
                yield key, "has an effect with build only; a saved model has it already"


class DataSection(Section):
    """Batches for calibration or evaluation."""

    source: Text
    keys: Optional[Texts] = None
    labels: Annotated[Any, _checked(_labels)] = None
    transform: Optional[Annotated[list, _checked(_transform)]] = None
    batch_size: Positive = 32
    batches: Optional[Positive] = None


class RuleSection(Section):
    """Quantizers of the layers that a name, type or pattern selects."""

    name: Optional[Text] = None
    type: Optional[Annotated[str, _checked(_choice_of(known_classes))]] = None
    pattern: Optional[Annotated[str, _checked(_pattern)]] = None
    skip: bool = False
    weight_quantizer: _WeightQuantizer = None
    activation_quantizer: _ActivationQuantizer = None

    def problems(self):
        yield from self._one_of("name", "type", "pattern")
        given = [key for key in ("weight_quantizer", "activation_quantizer")
                 if getattr(self, key) is not None]
        if self.skip and given:
            yield given[0], "contradicts skip: a layer that is skipped has no quantizer"
        if not self.skip and not given:
            yield "skip", "a rule must have skip, weight_quantizer or activation_quantizer"


_METHOD_KEYS = {
    "ptq": ("activation_quantizer", "weight_quantizer", "fuse", "rules", "skip"),
    "dynamic": ("weight_bits", "weight_quantize_type", "quantizable_op_type"),
    "golden_stick": ("config", "layer_policies"),
    "amct": ("config",),
}


class QuantizeSection(Section):
    """Method of quantization with its arguments."""

    method: Literal["ptq", "dynamic", "golden_stick", "amct"] = "ptq"
    activation_quantizer: _ActivationQuantizer = None
    weight_quantizer: _WeightQuantizer = None
    fuse: Optional[bool] = None
    rules: Optional[Annotated[List[RuleSection], Field(min_length=1)]] = None
    skip: Optional[Texts] = None
    weight_bits: Optional[Literal[8, 16]] = None
    weight_quantize_type: Optional[Literal["channel_wise_abs_max", "abs_max"]] = None
    quantizable_op_type: Annotated[Any, _checked(_op_types)] = None
    config: Optional[Dict[str, Any]] = None
    layer_policies: Optional[Dict[str, Any]] = None

    def problems(self):
        others = {key for keys in _METHOD_KEYS.values() for key in keys}
        for key in sorted(others - set(_METHOD_KEYS[self.method])):
            if getattr(self, key) is not None:
                yield key, f"has no effect with the method {self.method}"
        checks = {
            "amct": {"config": lambda: AmctConfig.parse(self.config)},
            "golden_stick": {"config": lambda: PTQConfig.parse(self.config),
                             "layer_policies": lambda: GoldenStickPTQ(None, self.policies())},
        }
        for key, check in checks.get(self.method, {}).items():
            try:
                check()
            except PaddleqError as error:
                yield key, str(error)

    def policies(self):
        """Return ``layer_policies`` as patterns -> configurations of Golden Stick's PTQ."""
        if self.layer_policies is None:
            return None
        return OrderedDict((pattern, None if config is None else PTQConfig.parse(config))
                           for pattern, config in self.layer_policies.items())


class ExportSection(Section):
    """File format and path of an export."""

    format: Annotated[str, _checked(_choice_of(lambda: [*FORMATS, "checkpoint"]))] = "pdmodel"
    path: Text


class ChecksSection(Section):
    """Verification of the exports in runtimes."""

    runtimes: Annotated[Any, _checked(lambda name, value: [
        check_choice(name, each, RUNTIMES) for each in _as_list(value)])] = None
    top1_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99
    relative_error: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1


class DataSections(Section):
    """Data of a recipe by its purpose."""

    calibration: Optional[DataSection] = None
    evaluation: Optional[DataSection] = None


class RecipeSections(Section):
    """Complete recipe."""

    paddleq: Literal[1]
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    model: ModelSection
    data: DataSections = DataSections()
    quantize: QuantizeSection
    export: Annotated[List[ExportSection], BeforeValidator(_as_list), Field(min_length=1)]
    checks: Optional[ChecksSection] = None

    def problems(self):
        method = self.quantize.method
        if method != "dynamic" and self.data.calibration is None:
            yield "data", f"must have calibration batches for the method {method}"
        if method in ("golden_stick", "amct") and self.model.path:
            yield "quantize", f"the method {method} is for a Layer: use model.build"
        if self.checks is not None and not (self.data.evaluation or self.data.calibration):
            yield "checks", "need data: use data.evaluation"
        files = [path for export in self.export
                 for path in export_files(export.path, export.format)]
        for path in sorted({path for path in files if files.count(path) > 1}):
            yield "export", f"would write {path!r} twice"
