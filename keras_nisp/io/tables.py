"""Text tables, by rich, that fit the terminal."""

import dataclasses
import io
import shutil
from collections.abc import Callable, Sequence

SHORTEST = 16  # characters of a name that is shortened
SEPARATION = 3  # spaces between two columns
WIDE = 10_000


@dataclasses.dataclass(frozen=True)
class Column:
    """A column's title, whether it holds numbers, and whether a narrow table does without it."""

    title: str
    number: bool = False
    optional: bool = False


def render_table(title: str, columns: Sequence[Column], rows, footer=(), wide: bool = False) -> str:
    """A table as plain text, no wider than the terminal (80 characters where there is none).

    What is too wide loses its optional columns, then the middles of its names.

    Args:
        title: stands above it.
        columns: its columns.
        rows: cells of each row; integers get thousands separators.
        footer: rows below a line.
        wide: leave everything, whatever the terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    lines = [list(map(_cell, row)) for row in (*rows, *footer)]
    if not wide:
        columns, lines = _fitted(columns, lines, shutil.get_terminal_size().columns)
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.number else "left", overflow="fold"
        )
    body = len(lines) - len(footer)
    for index, line in enumerate(lines):
        if index == body:
            table.add_section()
        table.add_row(*line)
    # Text wherever it is shown: no escape codes on a terminal, no HTML in a notebook.
    text = io.StringIO()
    console = Console(
        width=WIDE,
        file=text,
        highlight=False,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
    )
    console.print(table, markup=False)
    # A title of the table itself would be wrapped at its width.
    return "\n".join([title, *(line.rstrip() for line in text.getvalue().splitlines())])


def _fitted(columns: Sequence[Column], lines: list[list[str]], width: int):
    """Columns and cells that are no wider than that, if it can be."""

    def widths():
        cells = ([column.title, *(line[i] for line in lines)] for i, column in enumerate(columns))
        return [max(map(len, column)) for column in cells]

    def excess():
        return sum(widths()) + SEPARATION * (len(columns) - 1) + 2 * 2 - width

    columns = list(columns)
    for index in reversed(range(len(columns))):
        if columns[index].optional and excess() > 0:
            del columns[index]
            lines = [line[:index] + line[index + 1 :] for line in lines]
    names = [index for index, column in enumerate(columns) if not column.number]
    for index in sorted(names, key=lambda i: -widths()[i]):
        limit = max(widths()[index] - max(excess(), 0), SHORTEST)
        lines = [[*x[:index], shortened(x[index], limit), *x[index + 1 :]] for x in lines]
    return columns, lines


def shortened(name: str, limit: int) -> str:
    """A name of no more characters than that, without its middle."""
    if len(name) <= limit:
        return name
    end = (limit - 1) // 2
    return f"{name[: limit - 1 - end]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - end :]}"


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def brief(count: int) -> str:
    """A number with four digits and a unit from a million on: `1.806 M`."""
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count:,}"


def change(before: int | None, after: int | None, exact: bool = True) -> str:
    """`8 -> 4`, or one number that stayed."""
    show = "{:,}".format if exact else brief
    texts = ["-" if value is None else show(value) for value in (before, after)]
    return texts[0] if before == after else " -> ".join(texts)


def percent(before: float, after: float) -> str:
    """A change as a percentage, `-50.0 %`."""
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def folded(rows: Sequence, main: Callable, unchanged: Callable) -> tuple[list, dict[str, list]]:
    """Rows of layers that are worth a line, and the others by what they have in common, in words.

    Args:
        rows: each with the path of its `layer`.
        main: whether a row has more than parameters: BatchNormalization has not.
        unchanged: whether a row is as it was.
    """
    shown: list = []
    plain: list = []
    same: list = []
    for row in rows:
        (same if unchanged(row) else shown if main(row) else plain).append(row)
    others = {}
    for found, what in ((plain, "without FLOPs"), (same, "unchanged")):
        if found:
            others[f"{len(found)} {what}"] = found
    return shown, others
