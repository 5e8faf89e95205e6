"""Plain-text tables."""

from collections.abc import Iterable, Sequence


def format_table(rows: Iterable[Sequence[str]], *, num_left: int = 1) -> str:
    """Align cells in columns, the first `num_left` to the left and the others to the right."""
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
