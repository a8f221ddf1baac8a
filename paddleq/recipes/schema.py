"""Pydantic models of a recipe."""

from collections import OrderedDict
from typing import Any, Dict, List, Optional, Union

from paddle.static import InputSpec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Annotated, Literal

from .._checks import (
    check_arguments,
    check_choice,
    check_known_keys,
    wrong_type,
    wrong_value,
)
from ..algorithms.bias_correction import parse_bias_correction
from ..algorithms.reconstruction.settings import NEAREST, ROUND_TYPES, parse_round_type
from ..analysis.accuracy import accuracy_search
from ..config import Scope
from ..deploy.runtimes import RUNTIMES
from ..errors import PaddleqError
from ..export import FORMATS
from ..export.provenance_file import export_files
from ..frontends.golden_stick import PTQConfig
from ..frontends.paddleslim.quantizers import make_quantizer
from ..nn.layer_types import known_classes
from ..post_training.saved_models import check_op_types
from ..saved_model.full_scope import SCOPES
from .methods import METHODS
from .sources import image_transform


def _checked(check):
    """Return a validator that calls ``check(value)`` and reports its error."""
    def validate(value):
        try:
            return check(value)
        except PaddleqError as error:
            raise _problems([(str(error).strip(),)]) from error
    return AfterValidator(validate)


def _problems(found):
    return PydanticCustomError("problems", "problems", {"problems": found})


def _choice(choices):
    """Return a check against ``choices()``, which are computed when a recipe is read."""
    return _checked(lambda value: check_choice("", value, choices()))


def _expected(text, annotation):
    """Return ``annotation`` with one message for all values that do not fit it."""
    def validate(value, check):
        try:
            return check(value)
        except ValidationError as error:
            raise _problems([(str(wrong_value("", value, text)).strip(),)]) from error
    return Annotated[annotation, WrapValidator(validate)]


def _transform(steps):
    names = [step if isinstance(step, str) else next(iter(step)) for step in steps]
    image_transform([step for name, step in zip(names, steps) if ":" not in name])
    return steps


def _quantizer(side):
    def make(value):
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise wrong_type("", value, "a name, or a mapping with a name and arguments")
        arguments = {key: value for key, value in given.items() if key != "name"}
        return make_quantizer("", given["name"], side, arguments)
    return Annotated[Any, _checked(make)]


def _round_type(value):
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise wrong_type("", value, "a name, or a mapping with a name and arguments")
    arguments = {key: value for key, value in given.items() if key != "name"}
    if parse_round_type("", given["name"]) is None:
        check_known_keys("round", arguments, ())
        return NEAREST
    cls = ROUND_TYPES[given["name"]]
    check_arguments(given["name"], cls, arguments)
    return cls(**arguments)


def _bias_correction(value):
    parse_bias_correction(value)
    return value


def _op_types(value):
    check_op_types(value)
    return value


def _accuracy(value):
    metric = value.get("metric")
    function = isinstance(metric, str) and ":" in metric  # it is looked up when the recipe runs
    accuracy_search({**value, "metric": len} if function else value, ())
    return value


def _as_list(value):
    return value if isinstance(value, list) else [value]


Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[List[str], BeforeValidator(_as_list)]
Positive = Annotated[int, Field(ge=1)]
_FunctionName = _expected("'module:function' or 'file.py:function'",
                          Annotated[str, Field(pattern=r"^.+:[^\W\d]\w*$")])
_Shape = _expected("a list of sizes such as [null, 3, 224, 224], null where one is open",
                   List[Optional[Positive]])
_Labels = _expected("true or a text", Union[Literal[True], str])
_Step = Union[str, Annotated[Dict[str, Any], Field(min_length=1, max_length=1)]]
_Steps = _expected("a list of names or of {name: arguments}, such as [{Resize: {size: 256}}]",
                   List[_Step])
_WeightQuantizer = _quantizer("weight")
_ActivationQuantizer = _quantizer("activation")


class Section(BaseModel):
    """Section of a recipe: a mapping with known keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def problems(self):
        """Yield (problem, *keys to the value) of values that contradict each other."""
        return ()

    @model_validator(mode="after")
    def _check_together(self):
        found = list(self.problems())
        if found:
            raise _problems(found)
        return self

    def _one_of(self, *keys):
        given = [key for key in keys if getattr(self, key) is not None]
        if len(given) != 1:
            yield (f"must have one of {', '.join(keys)}, but has "
                   f"{' and '.join(given) or 'none of them'}"),


class InputSection(Section):
    """Input of a Layer."""

    shape: _Shape
    dtype: Literal["float32", "float64", "float16", "int32", "int64", "bool"] = "float32"
    name: Optional[Text] = None


class ModelSection(Section):
    """Float model: a function that builds a Layer, or a saved model."""

    build: Optional[_FunctionName] = None
    path: Optional[Text] = None
    arguments: Optional[Dict[str, Any]] = None
    weights: Optional[Text] = None
    input_spec: Optional[Annotated[List[InputSection], Field(min_length=1)]] = None

    def input_specs(self):
        """Return ``input_spec`` for Paddle, None for the inputs of the last call."""
        return self.input_spec and [InputSpec(each.shape, each.dtype, each.name)
                                    for each in self.input_spec]

    def problems(self):
        yield from self._one_of("build", "path")
        for key in ("arguments", "weights", "input_spec"):
            if self.path and getattr(self, key) is not None:
                yield "has an effect with build only; a saved model has it already", key


class DataSection(Section):
    """Batches for calibration or evaluation."""

    source: Text
    keys: Optional[Texts] = None
    labels: Optional[_Labels] = None
    transform: Optional[Annotated[_Steps, _checked(_transform)]] = None
    batch_size: Positive = 32
    batches: Optional[Positive] = None


class RuleSection(Section):
    """Quantizers of the layers that a name, type or pattern selects."""

    name: Optional[Text] = None
    type: Annotated[Optional[str], _choice(known_classes)] = None
    pattern: Annotated[Optional[str], _checked(
        lambda value: Scope(patterns=[value]).patterns[0])] = None
    skip: bool = False
    weight_quantizer: _WeightQuantizer = None
    activation_quantizer: _ActivationQuantizer = None

    def scope(self):
        """Return the layers of this rule. A name or pattern that matches none is an error."""
        if self.type is not None:
            return Scope(types=[known_classes()[self.type]], contents=False, required=False)
        return Scope(patterns=[self.pattern]) if self.name is None else Scope(names=[self.name])

    def problems(self):
        yield from self._one_of("name", "type", "pattern")
        given = [key for key in ("weight_quantizer", "activation_quantizer")
                 if getattr(self, key) is not None]
        if self.skip and given:
            yield "contradicts skip: a layer that is skipped has no quantizer", given[0]
        if not self.skip and not given:
            yield "a rule must have skip, weight_quantizer or activation_quantizer", "skip"


_MethodName: Any = Literal[tuple(METHODS)]


class QuantizeSection(Section):
    """Method of quantization with its arguments."""

    method: _MethodName = "ptq"
    activation_quantizer: _ActivationQuantizer = None
    weight_quantizer: _WeightQuantizer = None
    fuse: Optional[bool] = None
    rules: Optional[Annotated[List[RuleSection], Field(min_length=1)]] = None
    skip: Optional[Texts] = None
    scope: Annotated[Optional[str], _choice(lambda: SCOPES)] = None
    round_type: Annotated[Any, _checked(_round_type)] = None
    bias_correction: Annotated[Optional[Union[bool, str]], _checked(_bias_correction)] = None
    equalize: Optional[bool] = None
    accuracy: Optional[Annotated[Dict[str, Any], _checked(_accuracy)]] = None
    weight_bits: Optional[Literal[8, 16]] = None
    weight_quantize_type: Optional[Literal["channel_wise_abs_max", "abs_max", "channel_wise_mse",
                                           "mse"]] = None
    quantizable_op_type: Annotated[Any, _checked(_op_types)] = None
    config: Optional[Dict[str, Any]] = None
    layer_policies: Optional[Dict[str, Any]] = None
    losses: Optional[List[Dict[str, Any]]] = None
    train: Optional[Dict[str, Any]] = None
    teacher: Optional[Text] = None

    def problems(self):
        method = METHODS[self.method]()
        others = {key for each in METHODS.values() for key in each.keys}
        for key in sorted(others - set(method.keys)):
            if getattr(self, key) is not None:
                yield f"has no effect with the method {self.method}", key
        for key, check in method.checks(self).items():
            try:
                check()
            except PaddleqError as error:
                yield str(error), key

    def policies(self):
        """Return ``layer_policies`` as patterns -> configurations of Golden Stick's PTQ."""
        if self.layer_policies is None:
            return None
        return OrderedDict((pattern, None if config is None else PTQConfig.parse(config))
                           for pattern, config in self.layer_policies.items())


class ExportSection(Section):
    """File format and path of an export."""

    format: Annotated[str, _choice(lambda: [*FORMATS, "checkpoint"])] = "pdmodel"
    path: Text


class ChecksSection(Section):
    """Verification of the exports in runtimes."""

    runtimes: Annotated[Any, _checked(lambda value: [
        check_choice("", each, RUNTIMES) for each in _as_list(value)])] = None
    top1_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99
    relative_error: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1


class DataSections(Section):
    """Data of a recipe by its purpose."""

    calibration: Optional[DataSection] = None
    training: Optional[DataSection] = None
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
        method, saved = self.quantize.method, self.model.path
        traits, kind = METHODS[method], "path" if saved else "build"
        if traits.needs_data and self.data.calibration is None:
            yield f"must have calibration batches for the method {method}", "data"
        if not traits.trains and self.data.training is not None:
            yield f"has no effect with the method {method}", "data", "training"
        if kind not in traits.takes:
            yield f"the method {method} is for a Layer: use model.build", "quantize"
        if self.quantize.scope == "full" and not saved:
            yield "full is for a saved model: use model.path", "quantize", "scope"
        if self.checks is not None and not (self.data.evaluation or self.data.calibration):
            yield "need data: use data.evaluation", "checks"
        for number, rule in enumerate(self.quantize.rules or ()):
            if saved and not (rule.skip and rule.name):
                yield ("of a saved model must be a name of a tensor and skip",
                       "quantize", "rules", number)
        for number, each in enumerate(self.export):
            if (saved or kind not in traits.in_memory) and (
                    each.format == "checkpoint" or FORMATS[each.format].read is not None):
                yield (f"must be pdmodel, onnx or openvino for "
                       f"{'a saved model' if saved else f'the method {method}'}, "
                       f"but is {each.format}", "export", number, "format")
            elif each.format == "checkpoint" and not traits.checkpoint:
                names = [name for name in METHODS if METHODS[name].checkpoint]
                yield (f"checkpoint is for the methods {', '.join(names)}", "export", number,
                       "format")
        files = [path for export in self.export
                 for path in export_files(export.path, export.format)]
        for path in sorted({path for path in files if files.count(path) > 1}):
            yield f"would write {path!r} twice", "export"
