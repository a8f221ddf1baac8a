"""MkDocs: links that leave docs/ (to the demo, the README) become their text."""

import re

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown, **_):
    return _OUTSIDE.sub(r"\1", markdown)
