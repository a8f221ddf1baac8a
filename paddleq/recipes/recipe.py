"""Reading of recipes: YAML text to checked values, with line numbers for mistakes."""

import collections
import contextlib
import os
import re
import typing
from dataclasses import dataclass
from typing import Any, Dict, Tuple

import yaml
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from .._checks import check_path, hint, is_path, wrong_value
from ..errors import FormatError, RecipeError
from ..export.provenance_file import yaml_events
from .schema import RecipeSections

Location = Tuple[Any, ...]  # keys and indices, such as ("quantize", "rules", 1, "type")
_DOCUMENT = "the document"
_LARGEST = 1 << 24  # characters of a recipe
_MOST_VALUES = 100_000  # of a recipe, with each of those that references repeat
_MESSAGES = {"missing": "is missing", "too_short": "must have an entry, but is empty"}
_EXPECTED = {
    "int_type": "an int",
    "float_type": "a float",
    "bool_type": "a bool",
    "string_type": "a text",
    "string_pattern_mismatch": "a text that is not empty",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}


@dataclass(frozen=True)
class Recipe:
    """Checked recipe.

    Attributes:
        values: :class:`~paddleq.recipes.schema.RecipeSections` with defaults.
        plain: nested dicts without defaults, as written.
        lines: key or index path in ``plain`` -> line.
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

    values: RecipeSections
    plain: Dict[str, Any]
    lines: Dict[Location, int]
    folder: str
    source: str

    @classmethod
    def load(cls, path) -> "Recipe":
        """Read a recipe, or the one in the ``.paddleq.yaml`` file of an export.

        Raises:
            FormatError: the file cannot be read.
            RecipeError: lists all mistakes with line, key and the nearest valid value.
        """
        return cls._read(*load_yaml_file(path), os.path.dirname(os.path.abspath(path)), path)

    @classmethod
    def parse(cls, text: str, folder: str = ".", source: str = "recipe") -> "Recipe":
        """Read the text of a recipe. Paths in it are relative to ``folder``."""
        return cls._read(*load_yaml(text, source), folder, source)

    @classmethod
    def _read(cls, plain, lines, folder, source):
        prefix: Location = ()
        if isinstance(plain, dict) and "exports" in plain and (
                "paddleq" not in plain):  # otherwise a misspelt key of a recipe
            plain, prefix, inside = _recipe_of_export(plain["exports"], lines, source)
            folder = os.path.normpath(os.path.join(folder, inside))
        return cls._validated(plain, lines, prefix, folder, source)

    @classmethod
    def from_dict(cls, sections: Dict[str, Any], source: str = "recipe") -> "Recipe":
        """Check a recipe in nested dicts. Paths in it are relative to the working folder."""
        return cls._validated(sections, dict.fromkeys(_locations(sections), 1), (), ".", source)

    @classmethod
    def _validated(cls, plain, lines, prefix, folder, source):
        try:
            values = RecipeSections.model_validate(plain)
        except ValidationError as error:
            raise RecipeError([_problem(lines, location, text)
                               for location, text in _mistakes(error, lines, prefix)],
                              source) from None
        return cls(values, plain, {location[len(prefix):]: line for location, line in lines.items()
                                   if location[:len(prefix)] == prefix}, folder, source)

    def resolve(self, path: str) -> str:
        """Return ``path``, which is relative to the recipe, relative to the working folder."""
        return os.path.normpath(os.path.join(self.folder, path))

    def error(self, location: Location, problem: str) -> RecipeError:
        """Return a :class:`RecipeError` for a problem at run time."""
        return RecipeError([_problem(self.lines, location, problem)], self.source)


def load_yaml_file(path) -> Tuple[Any, Dict[Location, int]]:
    """Return :func:`load_yaml` of a file."""
    path = check_path("path", path, "the path of a recipe")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read {path}: {error}") from error
    if len(text) > _LARGEST:
        raise FormatError(f"cannot read {path}: it has more than {_LARGEST} characters")
    return load_yaml(text, path)


def load_yaml(text: str, source: str) -> Tuple[Any, Dict[Location, int]]:
    """Return (plain values, location -> line) of a YAML document. Lines count from 1."""
    parser = YAML(typ="safe", pure=True)
    lines: Dict[Location, int] = {(): 1}
    problems = []

    def plain(node, location):
        lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, SequenceNode):
            return [plain(item, (*location, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, MappingNode):
            value = parser.constructor.construct_object(node, deep=True)
            if isinstance(value, str) and not is_path(value):
                problems.append((lines[location], _path(location) or _DOCUMENT,
                                 "has NUL or a character that cannot be encoded"))
            return value
        parser.constructor.flatten_mapping(node)  # of the merge key "<<"
        merged, result = getattr(node, "merge", None) or [], {}
        for pair in [*node.value[len(merged):], *merged]:
            key, line = parser.constructor.construct_object(pair[0]), pair[0].start_mark.line + 1
            here = (*location, key)
            if not isinstance(key, str):
                problems.append((line, _path(here), "a key must be text"))
            elif key not in result:
                lines[here] = line
                result[key] = plain(pair[1], here)
            elif pair not in merged:
                problems.append((line, _path(here), "stands here a second time; the first is on "
                                                    f"line {lines[here]}"))
        return result

    try:
        # The parser below needs minutes for deep nesting; it reports mistakes.
        with contextlib.suppress(yaml.YAMLError):
            collections.deque(yaml_events(text), maxlen=0)
        document = parser.compose(text)
        _check_count(document)
        values = None if document is None else plain(document, ())
    except (RecursionError, ValueError) as error:
        raise RecipeError([(1, _DOCUMENT, f"cannot be read as YAML: {error}")], source) from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError([(mark.line + 1 if mark else 1, _DOCUMENT,
                            f"is no YAML: {problem}")], source) from error
    if document is None:
        problems.append((1, _DOCUMENT, "is empty"))
    if problems:
        raise RecipeError(problems, source)
    return values, lines


def _check_count(document):
    """Raise ValueError for more values than a recipe has, counted where references repeat them."""
    counts = {}  # id of a node -> values in it, None while they are being counted

    def count(node):
        children = node.value if isinstance(node, (MappingNode, SequenceNode)) else ()
        if id(node) not in counts:
            counts[id(node)] = None
            counts[id(node)] = 1 + sum(count(part) for child in children for part in (
                child if isinstance(child, tuple) else (child,)))
        found = counts[id(node)]
        if found is None:
            raise ValueError("a value refers to itself")
        if found > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values")
        return found

    if document is not None:
        count(document)


def _recipe_of_export(exports, lines, source):
    """Return (recipe, its location, folder of its paths) from the record of an export."""
    def fail(location, problem):
        raise RecipeError([_problem(lines, location, problem)], source)

    found = [index for index, each in enumerate(exports) if isinstance(each, dict)
             and "recipe" in each] if isinstance(exports, list) else []
    if not found:
        fail(("exports",), "none of them has a recipe")
    first = exports[found[0]]
    for index in found[1:]:
        if exports[index]["recipe"] != first["recipe"]:
            fail(("exports", index, "recipe"), "differs from the recipe of the first export")
    inside = first.get("folder", ".")
    if not isinstance(inside, str):
        fail(("exports", found[0], "folder"), f"must be a text, but is {inside!r}")
    return first["recipe"], ("exports", found[0], "recipe"), inside


def _mistakes(error: ValidationError, lines, prefix):
    """Yield (location, problem) of each mistake that pydantic found."""
    for each in error.errors():
        kind, context = each["type"], each.get("ctx", {})
        location = _extended(prefix, each["loc"], lines)
        if kind == "problems":
            for problem, *keys in context["problems"]:
                own = _extended(location, keys, lines)
                yield own if own in lines else location, problem
        elif kind == "extra_forbidden":
            keys = _keys_at(location[len(prefix):-1])
            yield location, (f"there is no such key{hint(location[-1], keys)}; "
                             f"valid: {', '.join(keys)}")
        elif kind in _EXPECTED:
            expected = _EXPECTED[kind].format(**context)
            choices = re.findall(r"'([^']*)'", context.get("expected", ""))
            yield location, (str(wrong_value("", each["input"], expected)).strip()
                             + hint(each["input"], choices))
        else:
            yield location, _MESSAGES.get(kind, each["msg"])


def _extended(location, parts, lines):
    """Append ``parts``, without the index in a list that is written as its only entry."""
    for part in parts:
        if isinstance(part, str) or (*location, part) in lines:
            location = (*location, part)
    return location


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


def _problem(lines, location, text):
    """Return (line, key, text) with the line of ``location`` or of the nearest section."""
    key = _path(location) or _DOCUMENT
    while location not in lines:
        location = location[:-1]
    return lines[location], key, text


def _locations(value, location=()):
    """Yield the locations in nested dicts and lists."""
    yield location
    for key, child in (value.items() if isinstance(value, dict) else
                       enumerate(value) if isinstance(value, list) else ()):
        yield from _locations(child, (*location, key))


def _path(location):
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text[1:] if text.startswith(".") else text
