"""Keeps results as JSON, with the command, versions, machine and date."""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import keras
import numpy
import tensorflow

PATHS = ("data_dir", "weights", "weights_dir", "out", "rows")  # say nothing on another machine
FOLDER = Path(__file__).parent / "results"


def save_results(name: str, results: dict, args: argparse.Namespace | None = None) -> Path:
    """Writes `results/<name>.json`.

    Args:
        name: of the benchmark, which is that of its script.
        results: figures.
        args: the command's arguments; paths are left out.
    """
    arguments = {k: v for k, v in vars(args).items() if k not in PATHS} if args else {}
    record = {
        "benchmark": name,
        "arguments": arguments,
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": _versions(),
        **results,
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def load_rows(name: str) -> list[dict]:
    """The rows of `results/<name>.json`; none if there is no such file."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def rows_by_task(experiment: str, tasks: Iterable[str]) -> dict[str, list[dict]]:
    """The rows of an experiment, by task, for those of the tasks on which it was run."""
    found = {task: load_rows(f"{experiment}_{task}") for task in tasks}
    return {task: rows for task, rows in found.items() if rows}


def measure_apart(name: str, script: str, models: Iterable[str]) -> None:
    """Measures models in processes of their own, and keeps their rows in `results/<name>.json`.

    Args:
        name: of the benchmark.
        script: `script --one MODEL` prints the row of a model, as JSON, in its last line.
        models: their names.
    """
    rows = {row["model"]: row for row in load_rows(name)}
    for model in models:
        command = [sys.executable, script, "--one", model]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows[model] = json.loads(done.stdout.splitlines()[-1])
        print(rows[model], flush=True)
        save_results(name, {"rows": list(rows.values())})


class Rows:
    """The rows of one result file; what is there already is not computed again.

    Args:
        name: of the file, without its ending.
        args: the command's arguments, kept with the rows.
    """

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args, self.rows = name, args, load_rows(name)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)

    def once(self, key: dict, compute: Callable[..., dict], *args) -> dict:
        """The row with this key: from the file, or `compute(*args)`, which is put there."""
        for row in self.rows:
            if key.items() <= row.items():
                return row
        started = time.perf_counter()
        row = {**key, **compute(*args)}
        row["seconds"] = round(time.perf_counter() - started)
        self.rows = [*load_rows(self.name), row]  # another command may have added some
        save_results(self.name, {"rows": self.rows}, self.args)
        print(row, flush=True)
        return row


def _versions() -> dict[str, str]:
    modules = {module.__name__: module.__version__ for module in (keras, tensorflow, numpy)}
    return {**modules, "keras-nisp": version("keras-nisp")}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
