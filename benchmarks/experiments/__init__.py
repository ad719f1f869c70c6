"""The experiments: each module has `TASKS`, `run(lab, rows, seed)` and `tables(results)`."""

import importlib
from types import ModuleType

from results import rows_by_task

NAMES = (
    *("importances", "depth", "propagation", "centripetal", "headline", "combinations"),
    *("curves", "collapse"),
)


def load(name: str) -> ModuleType:
    """The module of an experiment."""
    return importlib.import_module(f"experiments.{name}")


def results(name: str) -> dict[str, list[dict]]:
    """What an experiment gave on the tasks it is meant for; trials on others are left out."""
    return rows_by_task(name, load(name).TASKS)
