"""Writes the table of operators into pdmodel_from_pir.md: python docs/operator_table.py"""

from pathlib import Path

from paddleq.export.program_desc.specials import SPECIALS
from paddleq.export.program_desc.table import FAMILIES, ROWS

PAGE = Path(__file__).resolve().parent / "pdmodel_from_pir.md"
START, END = "<!-- operators: start -->\n", "<!-- operators: end -->\n"


def table():
    """The table, from the one that the converter uses."""
    rows = [f"{len(ROWS)} operators by a row of the table, {len(SPECIALS)} by code.", "",
            "| family | number | operators in PIR → in the `.pdmodel`, where the name differs |",
            "|---|---|---|"]
    for family, members in FAMILIES.items():
        names = ", ".join(f"`{each.pir}`" if each.pir == each.legacy
                          else f"`{each.pir}` → `{each.legacy}`" for each in members)
        rows.append(f"| {family} | {len(members)} | {names} |")
    rows.append(f"| By code | {len(SPECIALS)} | "
                f"{', '.join(f'`{name}`' for name in SPECIALS)} |")
    return "\n".join(rows) + "\n"


def updated(page):
    """The text of the page with the table as it has to be."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
