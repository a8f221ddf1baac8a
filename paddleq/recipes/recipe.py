"""Reading of recipes: YAML text to checked values, with line numbers for mistakes."""

import os
import re
import typing
from typing import Any, Dict, List, Tuple

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError

from .._checks import hint
from ..errors import FormatError, RecipeError
from .schema import RecipeSections

Location = Tuple[Any, ...]  # keys and indices, such as ("quantize", "rules", 1, "type")
_DOCUMENT = "the document"
_MESSAGES = {
    "missing": "is missing",
    "int_type": "must be an int",
    "float_type": "must be a float",
    "bool_type": "must be a bool",
    "string_type": "must be a text",
    "string_pattern_mismatch": "must be a text that is not empty",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must have an entry, but is empty",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


class Recipe:
    """Checked recipe.

    Attributes:
        values: :class:`~paddleq.recipes.schema.RecipeSections` with defaults.
        plain: nested dicts without defaults, as written.
        folder: folder that paths are relative to.
        source: name of the file for messages.

    Examples:
        >>> from paddleq.recipes import Recipe
        >>> recipe = Recipe.parse('''
        ... paddleq: 1
        ... model: {path: float/net}
        ... data: {calibration: {source: images.npy, batches: 8}}
        ... quantize: {method: ptq, activation_quantizer: KLQuantizer}
        ... export: {path: out/net}
        ... ''')
        >>> recipe.values.export
        [ExportSection(format='pdmodel', path='out/net')]
    """

    def __init__(self, plain: Dict[str, Any], values: RecipeSections, lines: Dict[str, int],
                 folder: str, source: str):
        self.plain, self.values, self.folder, self.source = plain, values, folder, source
        self._lines = lines

    @classmethod
    def load(cls, path) -> "Recipe":
        """Read a recipe, or the one in the ``.paddleq.yaml`` file of an export.

        Raises:
            FormatError: the file cannot be read.
            RecipeError: lists all mistakes with line, key and the nearest valid value.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"cannot read the recipe {path}: {error}") from error
        return cls.parse(text, folder=os.path.dirname(os.path.abspath(path)), source=path)

    @classmethod
    def parse(cls, text: str, folder: str = ".", source: str = "recipe") -> "Recipe":
        """Read the text of a recipe. Paths in it are relative to ``folder``."""
        plain, lines = load_yaml(text, source)
        prefix: Location = ()
        if isinstance(plain, dict) and "exports" in plain and (
                "paddleq" not in plain):  # otherwise a misspelt key of a recipe
            plain, prefix, folder = _recipe_of_export(plain["exports"], lines, folder, source)
        return cls._validated(plain, lines, prefix, folder, source)

    @classmethod
    def from_dict(cls, sections: Dict[str, Any], source: str = "recipe") -> "Recipe":
        """Check a recipe in nested dicts. Paths in it are relative to the working folder."""
        return cls._validated(sections, {(): 1}, (), ".", source)

    @classmethod
    def _validated(cls, plain, lines, prefix, folder, source):
        try:
            values = RecipeSections.model_validate(plain)
        except ValidationError as error:
            raise RecipeError([(_line(lines, prefix + location),
                                _path(prefix + location) or _DOCUMENT, problem)
                               for location, problem in _problems(error, plain)],
                              source) from None
        start = len(_path(prefix)) + 1 if prefix else 0
        return cls(plain, values, {_path(location)[start:]: line
                                   for location, line in lines.items()
                                   if location[:len(prefix)] == prefix}, folder, source)

    def resolve(self, path: str) -> str:
        """Return ``path``, which is relative to the recipe, relative to the working folder."""
        return os.path.normpath(os.path.join(self.folder, path))

    def error(self, key: str, problem: str) -> RecipeError:
        """Return a :class:`RecipeError` for a problem with ``key`` at run time."""
        return RecipeError([(self._lines.get(key, 1), key, problem)], self.source)


def load_yaml(text: str, source: str) -> Tuple[Any, Dict[Location, int]]:
    """Return (plain values, location -> line) of a YAML document. Lines count from 1.

    Args:
        text: document.
        source: name of the document for messages.

    Raises:
        RecipeError: the text is not YAML, has several documents, or repeats a key.
    """
    parser = YAML(typ="rt")
    parser.Constructor = _Constructor
    try:
        document = parser.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError([(mark.line + 1 if mark else 1, _DOCUMENT,
                            f"is no YAML: {problem}")], source) from error
    if document is None:
        raise RecipeError([(1, _DOCUMENT, "is empty")], source)
    lines: Dict[Location, int] = {(): 1}
    problems: List[Tuple[int, str, str]] = []
    duplicates = getattr(parser.constructor, "duplicates", [])
    plain = _plain(document, (), lines, duplicates, problems)
    if problems:
        raise RecipeError(problems, source)
    return plain, lines


class _Constructor(RoundTripConstructor):
    """Constructor that collects repeated keys instead of stopping at the first one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.duplicates = []

    def check_mapping_key(self, node, key_node, mapping, key, value):
        if key in mapping:
            self.duplicates.append((mapping, key, key_node.start_mark.line + 1))
            return False
        return True


def _plain(value, location, lines, duplicates, problems):
    """Return ``value`` in Python's own types. Fill ``lines`` and ``problems``."""
    if isinstance(value, dict):
        for key in value:
            position = value.lc.data.get(key)
            lines[(*location, key)] = position[0] + 1 if position else lines[location]
            if not isinstance(key, str):
                problems.append((lines[(*location, key)], _path((*location, key)),
                                 "a key must be text"))
        for mapping, key, line in duplicates:
            if mapping is value:
                problems.append((line, _path((*location, key)), "stands here a second time; the "
                                 f"first is on line {lines[(*location, key)]}"))
        return {key: _plain(item, (*location, key), lines, duplicates, problems)
                for key, item in value.items()}
    if isinstance(value, list):
        for index in range(len(value)):
            lines[(*location, index)] = value.lc.item(index)[0] + 1
        return [_plain(item, (*location, index), lines, duplicates, problems)
                for index, item in enumerate(value)]
    for plain_type in (bool, int, float, str):
        if isinstance(value, plain_type):
            return plain_type(value)
    return value


def _recipe_of_export(exports, lines, folder, source):
    """Return (recipe, its location, folder of its paths) from the record of an export."""
    found = [index for index, each in enumerate(exports) if isinstance(each, dict)
             and "recipe" in each] if isinstance(exports, list) else []
    if not found:
        raise RecipeError([(lines[("exports",)], "exports", "none of them has a recipe")], source)
    first = exports[found[0]]
    for index in found[1:]:
        if exports[index]["recipe"] != first["recipe"]:
            location = ("exports", index, "recipe")
            raise RecipeError([(lines[location], _path(location),
                                "differs from the recipe of the first export")], source)
    inside = first.get("folder", ".")
    if not isinstance(inside, str):
        location = ("exports", found[0], "folder")
        raise RecipeError([(lines[location], _path(location),
                            f"must be a text, but is {inside!r}")], source)
    return (first["recipe"], ("exports", found[0], "recipe"),
            os.path.normpath(os.path.join(folder, inside)))


def _problems(error: ValidationError, plain):
    """Yield (location, problem) of each mistake that pydantic found."""
    for each in error.errors():
        location, kind, context = each["loc"], each["type"], each.get("ctx", {})
        location = _existing(location, plain)
        if kind == "problems":
            for key, problem in context["problems"]:
                own = (*location, key) if key is not None else location
                yield (own if _contains(plain, own) else location), problem
        elif kind == "extra_forbidden":
            keys = _keys_at(location[:-1])
            yield location, (f"there is no such key{hint(location[-1], keys)}; "
                             f"valid: {', '.join(keys)}")
        elif kind in ("missing", "too_short"):
            yield location, _MESSAGES[kind]
        elif kind == "value_error":
            yield location, str(context["error"])
        else:
            problem = _MESSAGES.get(kind, each["msg"]).format(**context)
            choices = re.findall(r"'([^']*)'", context.get("expected", ""))
            text = repr(each["input"])
            text = text if len(text) <= 80 else text[:77] + "..."
            yield location, f"{problem}, but is {text}{hint(each['input'], choices)}"


def _existing(location, plain):
    """Drop the index of a list that the recipe writes as a single value."""
    result = []
    for part in location:
        if isinstance(part, int) and not isinstance(plain, list):
            continue
        result.append(part)
        try:
            plain = plain[part]
        except (KeyError, IndexError, TypeError):
            plain = None
    return tuple(result)


def _contains(plain, location):
    for part in location:
        try:
            plain = plain[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _keys_at(location):
    """Return the valid keys of the section at ``location``."""
    section: Any = RecipeSections
    for part in location:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_in(annotation):
    """Return the section class in a type such as ``Optional[List[RuleSection]]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, typing.get_args(annotation))), None)


def _line(lines, location):
    """Return the line of ``location``, or of the nearest section that contains it."""
    while location not in lines:
        location = location[:-1]
    return lines[location]


def _path(location):
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text[1:] if text.startswith(".") else text
