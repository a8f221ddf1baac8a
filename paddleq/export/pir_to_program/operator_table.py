"""The operator table, which ``operator_table.txt`` holds: PIR operation -> legacy operator."""

import re
from pathlib import Path

from .row_syntax import row


def _families():
    """Read the table: name of a family of operators -> its rows."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    families = {}
    for line in re.sub(r"\n +", " ", text).splitlines():
        if line.startswith("["):
            rows = families[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            names, *columns = line.split(" | ")
            columns = dict(column.split(" ", 1) for column in columns)
            for name in names.split():
                pir, _, legacy = name.partition(":")
                rows.append(row(pir, legacy or pir, **columns))
    return families


FAMILIES = _families()
ROWS = {each.pir: each for rows in FAMILIES.values() for each in rows}
