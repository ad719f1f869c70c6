"""`make demo`: each step of the way to a small int8 file, in one table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


def rows_of(text: str) -> dict[str, list[float]]:
    """The numbers of each row of the table: KB, FLOPs, per cent of the latency, accuracy."""
    found = {}
    for line in text.splitlines():
        name, *cells = (cell.strip() for cell in re.split("[│|]", line)[1:-1] or [""])
        if cells:
            found[name.split(",")[0]] = [float(re.sub("[, %]", "", cell)) for cell in cells]
    return found


@pytest.mark.slow
def test_each_step_is_shown(tmp_path):
    environment = {**os.environ, "COLUMNS": "80", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    rows = rows_of(done.stdout)
    assert list(rows) == ["original", "pruned", "repaired", "fine-tuned", "int8"]
    (size, flops, share, right), *others = rows.values()
    assert (share, right > 0.95) == (100, True)
    assert all(row[1] == pytest.approx(flops / 2, rel=0.01) for row in others)
    assert size > others[0][0] > others[-1][0]
    accuracies = {name: row[-1] for name, row in rows.items()}
    assert accuracies["pruned"] < accuracies["repaired"]
    assert min(accuracies["fine-tuned"], accuracies["int8"]) > 0.95
    assert max(len(line) for line in done.stdout.splitlines() if "│" in line) <= 80
    files = {"plan.json", "report.html", "small.keras", "small.tflite", "small_int8.tflite"}
    assert files < {path.name for path in tmp_path.iterdir()}
