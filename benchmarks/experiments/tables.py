"""What the experiments' tables have in common."""

from collections.abc import Callable, Iterable

import numpy as np


def mean_and_deviation(values: Iterable[float]) -> str:
    """As in 0.9121 ± 0.0010; one value has no deviation, none is an empty cell."""
    values = list(values)
    if not values:
        return ""
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"


def by_task(results: dict[str, list[dict]], table: Callable[[list[dict]], str]) -> str:
    """A heading and a table for each task."""
    return "\n\n".join(f"### {task}\n\n{table(rows)}" for task, rows in results.items())


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
