"""What a recipe may say: a tree of checks that is laid over a document.

All mistakes are found in one go. Each is told with its line, its key and the nearest valid one.
"""

from .._checks import hint
from ..errors import PaddleqError

REQUIRED = object()


class Value:
    """A plain value.

    Args:
        check: called as ``check(name, value)``, returns the value or raises a typed error.
        default: what it is where it is not said; ``REQUIRED``: it must be said.
    """

    def __init__(self, check, default=REQUIRED):
        self.check, self.default = check, default

    def read(self, located, problems):
        try:
            return self.check(located.path, located.plain())
        except PaddleqError as error:
            problems.append((located.line, located.path, _without_name(error, located.path)))
            return None


class Entries:
    """A list.

    Args:
        item: what each of its items is.
        default: see :class:`Value`.
        several: whether it may stand without a list, as one item.
    """

    def __init__(self, item, default=REQUIRED, several=False):
        self.item, self.default, self._several = item, default, several

    def read(self, located, problems):
        if not isinstance(located.value, list):
            if self._several:
                return [self.item.read(located, problems)]
            problems.append((located.line, located.path,
                             f"must be a list, but is {_shown(located)}"))
            return []
        if not located.value:
            problems.append((located.line, located.path, "must have an entry, but is empty"))
        return [self.item.read(item, problems) for item in located.value]


class Section:
    """A mapping.

    Args:
        fields: key -> :class:`Value`, :class:`Entries` or :class:`Section`.
        default: see :class:`Value`.
        one_of: keys of which exactly one must be there.
        together: called as ``together(values)`` where no field is wrong; yields
            (key, what is wrong) of values that contradict each other.
    """

    def __init__(self, fields, default=REQUIRED, one_of=(), together=None):
        self.fields, self.default = fields, default
        self._one_of, self._together = one_of, together

    def read(self, located, problems):
        if not isinstance(located.value, dict):
            problems.append((located.line, located.path or "the document",
                             f"must be a mapping with the keys {', '.join(self.fields)}, but is "
                             f"{_shown(located)}"))
            return None
        before = len(problems)
        for key, item in located.value.items():
            if key not in self.fields:
                problems.append((item.line, item.path, f"there is no such key"
                                 f"{hint(key, self.fields)}; valid: {', '.join(self.fields)}"))
        self._check_choice(located, problems)
        values = {}
        for key, field in self.fields.items():
            if key in located.value:
                values[key] = field.read(located.value[key], problems)
            elif field.default is REQUIRED:
                where = f"{located.path}.{key}" if located.path else key
                problems.append((located.line, where, "is missing"))
            else:
                values[key] = field.default
        if self._together is not None and len(problems) == before:
            for key, what in self._together(values):
                item = located.value.get(key, located)
                problems.append((item.line, item.path, what))
        return values

    def _check_choice(self, located, problems):
        there = [key for key in self._one_of if key in located.value]
        if self._one_of and len(there) != 1:
            problems.append((located.line, located.path,
                             f"must have one of {', '.join(self._one_of)}, but has "
                             f"{' and '.join(there) or 'none of them'}"))


def _shown(located):
    text = repr(located.plain())
    return text if len(text) <= 80 else text[:77] + "..."


def _without_name(error, name):
    text = str(error)
    return text[len(name) + 1:] if text.startswith(name + " ") else text
