"""Keeps results as JSON, with the command, versions, machine and date."""

import argparse
import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

PATHS = ("data_dir", "weights", "weights_dir", "out")  # say nothing on another machine
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
        "versions": {p: version(p) for p in ("keras", "tensorflow", "numpy", "keras-nisp")},
        **results,
    }
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
