"""A YAML document whose values know on which line they stand."""

import yaml

from ..errors import RecipeError


class Located:
    """A value of a document.

    Attributes:
        value: dict of text to :class:`Located`, list of :class:`Located`, or a plain value.
        line: counted from 1. Of an entry of a mapping, the line of its key.
        path: where it stands, such as "quantize.rules[1].type".
    """

    def __init__(self, value, line, path):
        self.value, self.line, self.path = value, line, path

    def plain(self):
        """The value without its positions."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


def load(text, source):
    """The :class:`Located` of a YAML text.

    Args:
        text: the document.
        source: what to call it in messages, a file's name say.

    Raises:
        RecipeError: it is no YAML, has several documents, or a key twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError([(1, "the document", "is empty")], source)
        found, problems = _Builder(loader), []
        located = found.build(node, "", node.start_mark.line + 1, problems)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise RecipeError([(mark.line + 1 if mark else 1, "the document",
                            f"is no YAML: {what}")], source) from error
    finally:
        loader.dispose()
    if problems:
        raise RecipeError(problems, source)
    return located


class _Builder:
    def __init__(self, loader):
        self._loader = loader

    def build(self, node, path, line, problems):
        if isinstance(node, yaml.MappingNode):
            entries = {}
            for key_node, value_node in node.value:
                key = self._loader.construct_object(key_node, deep=True)
                at = key_node.start_mark.line + 1
                where = f"{path}.{key}" if path else str(key)
                if not isinstance(key, str):
                    problems.append((at, where, "a key must be text"))
                elif key in entries:
                    problems.append((at, where, f"stands here a second time; the first is on "
                                                f"line {entries[key].line}"))
                else:
                    entries[key] = self.build(value_node, where, at, problems)
            return Located(entries, line, path)
        if isinstance(node, yaml.SequenceNode):
            items = [self.build(item, f"{path}[{number}]", item.start_mark.line + 1, problems)
                     for number, item in enumerate(node.value)]
            return Located(items, line, path)
        return Located(self._loader.construct_object(node, deep=True), line, path)
