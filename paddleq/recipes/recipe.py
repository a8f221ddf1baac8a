"""The format of a recipe, and reading one."""

import copy
import os
import re
from collections import OrderedDict

from .._checks import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_known_keys,
    wrong_type,
    wrong_value,
)
from ..errors import ConfigError, FormatError, PaddleqError, RecipeError
from ..export.provenance_file import FILES
from ..frontends.amct.config import AmctConfig
from ..frontends.golden_stick import PTQ as GoldenStickPTQ
from ..frontends.golden_stick import PTQConfig
from ..frontends.paddleslim.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from ..frontends.paddleslim.saved_models import check_op_types
from ..nn.layer_types import known_classes
from . import yaml_document as document
from .schema import Entries, Section, Value
from .sources import check_function_name

FORMAT_VERSION = 1
METHODS = ("ptq", "dynamic", "golden_stick", "amct")
FORMATS = ("pdmodel", "onnx", "pir", "checkpoint")
RUNTIMES = ("paddle", "openvino", "onnxruntime", "paddlelite")


def _choice(*valid):
    return lambda name, value: check_choice(name, value, valid)


def _int(low, high=None):
    return lambda name, value: check_int(name, value, low, high)


def _float(low, high):
    return lambda name, value: check_float(name, value, low, high)


def _text(name, value):
    if not isinstance(value, str):
        raise wrong_type(name, value, "text")
    if not value.strip():
        raise wrong_value(name, value, "text that is not empty")
    return value


def _texts(name, value):
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise wrong_type(name, value, "text or a list of texts")
    return values


def _pattern(name, value):
    try:
        re.compile(_text(name, value))
    except re.error as error:
        raise wrong_value(name, value, f"a regular expression ({error})") from error
    return value


def _mapping(name, value):
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise wrong_type(name, value, "a mapping")
    return value


def _shape(name, value):
    if not isinstance(value, list):
        raise wrong_type(name, value, "a list such as [null, 3, 224, 224]")
    for size in value:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise wrong_value(name, value, "a list of sizes, null where one is open")
    return value


def _transform(name, value):
    from .sources import image_transform

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


def _quantizer(known):
    """A name, or a mapping with ``name`` and its arguments."""
    def check(name, value):
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or "name" not in given:
            raise wrong_type(name, value, f"one of {', '.join(known)}, or a mapping with a name "
                                          "and arguments")
        check_choice(name, given["name"], known)
        made, arguments = known[given["name"]], {k: v for k, v in given.items() if k != "name"}
        valid = made.__init__.__code__.co_varnames[1:made.__init__.__code__.co_argcount]
        check_known_keys(given["name"], arguments, valid)
        return made(**arguments)
    return check


def _layer_type(name, value):
    return check_choice(name, value, known_classes())


def _op_types(name, value):
    try:
        check_op_types(value)
    except ConfigError as error:
        raise ConfigError(f"{name} {error}") from error
    return value


_INPUT = Section({
    "shape": Value(_shape),
    "dtype": Value(_choice("float32", "float64", "float16", "int32", "int64", "bool"), "float32"),
    "name": Value(_text, None),
})

_MODEL = Section({
    "build": Value(check_function_name, None),
    "path": Value(_text, None),
    "arguments": Value(_mapping, None),
    "weights": Value(_text, None),
    "input_spec": Entries(_INPUT, None),
}, one_of=("build", "path"), together=lambda model: (
    (key, "has an effect with build only; a saved model has it already")
    for key in ("arguments", "weights", "input_spec") if model["path"] and model[key] is not None))


def _data(**more):
    return Section({
        "source": Value(_text),
        "keys": Value(_texts, None),
        "labels": Value(lambda name, value: value if value is True else _text(name, value), None),
        "transform": Value(_transform, None),
        "batch_size": Value(_int(1), 32),
        "batches": Value(_int(1), None),
    }, **more)


def _rule_together(rule):
    said = [key for key in ("weight_quantizer", "activation_quantizer") if rule[key] is not None]
    if rule["skip"] and said:
        yield said[0], "contradicts skip: a layer that is skipped has no quantizer"
    if not rule["skip"] and not said:
        yield "skip", "a rule must say skip, weight_quantizer or activation_quantizer"


_RULE = Section({
    "name": Value(_text, None),
    "type": Value(_layer_type, None),
    "pattern": Value(_pattern, None),
    "skip": Value(check_bool, False),
    "weight_quantizer": Value(_quantizer(WEIGHT_QUANTIZERS), None),
    "activation_quantizer": Value(_quantizer(ACTIVATION_QUANTIZERS), None),
}, one_of=("name", "type", "pattern"), together=_rule_together)

_KEYS = {
    "ptq": ("activation_quantizer", "weight_quantizer", "fuse", "rules"),
    "dynamic": ("weight_bits", "weight_quantize_type", "quantizable_op_type"),
    "golden_stick": ("config", "layer_policies"),
    "amct": ("config",),
}


def _method_together(quantize):
    method = quantize["method"]
    for key in sorted({key for keys in _KEYS.values() for key in keys} - set(_KEYS[method])):
        if quantize[key] is not None:
            yield key, f"has no effect with the method {method}"
    checks = {
        "amct": {"config": lambda: AmctConfig.parse(quantize["config"])},
        "golden_stick": {"config": lambda: PTQConfig.parse(quantize["config"]),
                         "layer_policies": lambda: GoldenStickPTQ(None, policies_of(quantize))},
    }
    for key, check in checks.get(method, {}).items():
        try:
            check()
        except PaddleqError as error:
            yield key, str(error)


def policies_of(quantize):
    """``layer_policies`` as Golden Stick's PTQ takes them: patterns to configurations."""
    given = quantize["layer_policies"]
    return None if given is None else OrderedDict(
        (pattern, None if config is None else PTQConfig.parse(config))
        for pattern, config in given.items())


_QUANTIZE = Section({
    "method": Value(_choice(*METHODS), "ptq"),
    "activation_quantizer": Value(_quantizer(ACTIVATION_QUANTIZERS), None),
    "weight_quantizer": Value(_quantizer(WEIGHT_QUANTIZERS), None),
    "fuse": Value(check_bool, None),
    "rules": Entries(_RULE, None),
    "weight_bits": Value(lambda name, value: check_choice(name, value, (8, 16)), None),
    "weight_quantize_type": Value(_choice("channel_wise_abs_max", "abs_max"), None),
    "quantizable_op_type": Value(_op_types, None),
    "config": Value(_mapping, None),
    "layer_policies": Value(_mapping, None),
}, together=_method_together)

_EXPORT = Section({
    "format": Value(_choice(*FORMATS), "pdmodel"),
    "path": Value(_text),
})

_CHECKS = Section({
    "runtimes": Value(lambda name, value: [check_choice(name, each, RUNTIMES)
                                           for each in _texts(name, value)], None),
    "top1_agreement": Value(_float(0.0, 1.0), 0.99),
    "relative_error": Value(_float(0.0, 10.0), 0.1),
}, default=None)


def _together(recipe):
    calibration = (recipe["data"] or {}).get("calibration")
    evaluation = (recipe["data"] or {}).get("evaluation")
    method = recipe["quantize"]["method"]
    if method != "dynamic" and calibration is None:
        yield "data", f"must have calibration batches for the method {method}"
    if method in ("golden_stick", "amct") and recipe["model"]["path"]:
        yield "quantize", f"the method {method} is for a Layer: say model.build"
    if recipe["checks"] is not None and evaluation is None and calibration is None:
        yield "checks", "need data: say data.evaluation"
    files = [export["path"] + ending for export in recipe["export"]
             for ending in FILES[export["format"]]]
    for path in sorted({path for path in files if files.count(path) > 1}):
        yield "export", f"would write {path!r} twice"


SCHEMA = Section({
    "paddleq": Value(_choice(FORMAT_VERSION)),
    "seed": Value(_int(0, 2**31 - 1), 0),
    "model": _MODEL,
    "data": Section({"calibration": _data(default=None), "evaluation": _data(default=None)},
                    default=None),
    "quantize": _QUANTIZE,
    "export": Entries(_EXPORT, several=True),
    "checks": _CHECKS,
}, together=_together)


class Recipe:
    """A checked recipe.

    Attributes:
        values: what it says, with defaults, as nested dicts.
        plain: what it says, as it was written, as nested dicts.
        folder: what its paths are relative to.
        source: name of the file, for messages.

    Examples:
        >>> from paddleq.recipes import Recipe
        >>> recipe = Recipe.parse('''
        ... paddleq: 1
        ... model: {path: float/net}
        ... data: {calibration: {source: images.npy, batches: 8}}
        ... quantize: {method: ptq, activation_quantizer: KLQuantizer}
        ... export: {path: out/net}
        ... ''')
        >>> recipe.values["export"]
        [{'format': 'pdmodel', 'path': 'out/net'}]
    """

    def __init__(self, plain, values, lines, folder, source):
        self.plain, self.values, self.folder, self.source = plain, values, folder, source
        self._lines = lines

    @classmethod
    def load(cls, path):
        """Read a recipe, or the one in a ``.paddleq.yaml`` that lies beside an export.

        Raises:
            FormatError: there is no such file.
            RecipeError: its mistakes, each with line, key and the nearest valid one.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"cannot read the recipe {path}: {error}") from error
        return cls.parse(text, folder=os.path.dirname(os.path.abspath(path)), source=path)

    @classmethod
    def parse(cls, text, folder=".", source="recipe"):
        """Read the text of a recipe; paths in it are relative to ``folder``."""
        located = document.load(text, source)
        if isinstance(located.value, dict) and "exports" in located.value and (
                "paddleq" not in located.value):  # else it is a recipe's key, misspelt
            located, folder = _in_record(located.value["exports"], folder, source)
        problems = []
        values = SCHEMA.read(located, problems)
        if problems:
            raise RecipeError(problems, source)
        lines = {}
        _collect(located, lines)
        return cls(located.plain(), copy.copy(values), lines, folder, source)

    def resolve(self, path):
        """``path``, relative to the recipe, as one that can be opened."""
        return os.path.normpath(os.path.join(self.folder, path))

    def mistake(self, key, what):
        """A :class:`RecipeError` about a key, found while the recipe runs."""
        return RecipeError([(self._lines.get(key, 1), key, what)], self.source)


def _in_record(exports, folder, source):
    """(recipe, what its paths are relative to) of what lies beside an export."""
    found = [each.value for each in exports.value if isinstance(each.value, dict)
             and "recipe" in each.value] if isinstance(exports.value, list) else []
    if not found:
        raise RecipeError([(exports.line, "exports", "none of them was made by a recipe")], source)
    for other in found[1:]:
        if other["recipe"].plain() != found[0]["recipe"].plain():
            raise RecipeError([(other["recipe"].line, other["recipe"].path,
                                "is another one than that of the first export")], source)
    inside = found[0].get("folder")
    inside = "." if inside is None else _text("folder", inside.plain())
    return found[0]["recipe"], os.path.normpath(os.path.join(folder, inside))


def _collect(located, lines):
    lines[located.path] = located.line
    children = located.value.values() if isinstance(located.value, dict) else (
        located.value if isinstance(located.value, list) else ())
    for child in children:
        _collect(child, lines)
