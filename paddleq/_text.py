"""Text tables for printing and logging."""

import io


def table(rows):
    """Format rows of texts as a table with aligned columns; the first row holds the titles."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = io.StringIO()
    for number, row in enumerate(rows):
        out.write(" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n")
        if number == 0:
            out.write("-+-".join("-" * width for width in widths) + "\n")
    return out.getvalue().rstrip("\n")
