"""`tf.distribute` on real replicas, in processes of their own: devices are split at the start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from marked import slow

pytestmark = pytest.mark.training
ROOT = Path(__file__).parents[1]


def run(*command) -> str:
    """What a script prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_CONFIG", None)
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "cases",
    [
        ("NISPPruner, NISP", "CentripetalSGD"),
        slow(("NISPPruner, EMA", "Centripetal", "prune, Taylor")),
    ],
    ids=["two", "more"],
)
def test_two_replicas_give_what_one_device_gives(cases):
    script = ROOT / "benchmarks" / "distribution.py"
    refusing = "NISPPruner, accumulation"
    output = run(script, "--replicas", "2", "--cases", *cases, refusing)
    *compared, refused = json.loads(output.splitlines()[-1])
    assert len(compared) == len(cases)
    assert max(row["difference"] for row in compared) <= 1e-5
    assert "NISPPruner cannot work with gradient_accumulation_steps=2" in refused["error"]


@pytest.mark.parametrize(("method", "steps"), [slow("pruning", 200), slow("centripetal", 200)])
def test_two_workers_build_the_same_model(method, steps, tmp_path):
    script = ROOT / "examples" / "two_workers.py"
    run(script, "--method", method, "--steps", steps, "--out", tmp_path)
    first, second = (keras.models.load_model(tmp_path / f"worker{i}.keras") for i in (0, 1))
    assert first.get_layer("first").filters == first.get_layer("second").filters == 8
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
