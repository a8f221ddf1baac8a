"""Tables of text, as they are printed and logged."""

import io


def table(rows):
    """Rows of texts with their columns aligned, a line below the first row.

    Args:
        rows: sequences of texts, all of one length; the first holds the titles.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = io.StringIO()
    for number, row in enumerate(rows):
        out.write(" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n")
        if number == 0:
            out.write("-+-".join("-" * width for width in widths) + "\n")
    return out.getvalue().rstrip("\n")
