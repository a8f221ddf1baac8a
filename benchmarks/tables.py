"""Tables of text."""

import sys


def table(rows):
    """Print rows of cells; the first row is the head, the first column is text."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[0] = row[0].ljust(widths[0])
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def markdown(rows):
    """Print rows of cells as a table of Markdown; the first row is the head."""
    first, *others = [[str(cell) for cell in row] for row in rows]
    for row in (first, ["---"] + ["---:"] * (len(first) - 1), *others):
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()
