"""Text tables, by rich."""

import dataclasses
import io
import shutil
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Column:
    """A column's title, and whether it holds numbers."""

    title: str
    number: bool = False


def render_table(title: str, columns: Sequence[Column], rows, footer=()) -> str:
    """A table as plain text.

    Args:
        title: stands above it.
        columns: its columns.
        rows: cells of each row; integers get thousands separators.
        footer: rows below a line.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.number else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    if footer:
        table.add_section()
    for row in footer:
        table.add_row(*map(_cell, row))
    width = max(shutil.get_terminal_size().columns, 160)  # wrapped numbers cannot be read
    # Text wherever it is shown: no escape codes on a terminal, no HTML in a notebook.
    text = io.StringIO()
    console = Console(
        width=width,
        file=text,
        highlight=False,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
    )
    console.print(table, markup=False)
    # A title of the table itself would be wrapped at its width.
    return "\n".join([title, *(line.rstrip() for line in text.getvalue().splitlines())])


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(before: float, after: float) -> str:
    """A change as a percentage, `-50.0 %`."""
    return f"{100 * (after / before - 1):+.1f} %" if before else ""
