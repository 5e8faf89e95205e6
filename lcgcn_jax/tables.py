"""Plain-text tables."""

from collections.abc import Iterable, Sequence


def format_table(rows: Iterable[Sequence[str]], *, num_left: int = 1) -> str:
    """Align the cells of a table in columns that are separated by two spaces.

    Args:
      rows: cells of each row, with as many cells in each; the first row can be a header.
      num_left: number of left-aligned columns; the columns after them are right-aligned.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
