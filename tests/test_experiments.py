"""The accuracy experiments: on digits, resumed after an interruption, and their tables."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import results
import training
from accuracy import EXPERIMENTS
from experiments import claims, verdicts
from experiments.tables import mean_and_deviation

import keras_nisp as kn

TASK = {"depth": "plain2_fashion"}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    args = argparse.Namespace(data_dir=None, weights_dir=None, out=str(tmp_path))
    return training.Lab("digits", args)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


class Steps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(int(self.model.optimizer.iterations))


@pytest.mark.parametrize("distilled", [False, True])
def test_training_goes_on_where_it_was_interrupted(lab, distilled):
    def network():
        keras.utils.set_random_seed(0)
        return lab.task.build(lab.data[0][0].shape[1:], None)

    teacher = network()
    wrap = (lambda student: kn.distiller(teacher, student)) if distilled else None
    with pytest.raises(KeyboardInterrupt):
        lab.fit(network(), 4, 0.05, "trial", [Interrupt()], wrap)
    kept = json.loads((lab.out / "running" / "trial" / "curve.json").read_text())
    assert len(kept) == 2
    model, steps = network(), Steps()
    curve = lab.fit(model, 4, 0.05, "trial", [steps], wrap)
    assert curve[:2] == kept
    assert len(curve) == 4
    assert steps.seen == [3 * lab.steps, 4 * lab.steps]  # the schedule went on, too
    assert not (lab.out / "running" / "trial").exists()


def test_base_networks_are_trained_once(lab):
    first = lab.base(0)
    again = training.Lab("digits", lab.args).base(0)
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lab.accuracy(first) > 0.9


def test_rows_are_not_computed_again(lab):
    rows = training.Rows("trial", lab.args)
    assert rows.once(lambda: {"accuracy": 0.5}, seed=0, method="a")["accuracy"] == 0.5
    again = training.Rows("trial", lab.args)
    row = again.once(lambda: pytest.fail("computed again"), seed=0, method="a")
    assert row["accuracy"] == 0.5
    again.once(lambda: {"accuracy": 0.25}, seed=1, method="a")
    assert [row["seed"] for row in training.Rows("trial", lab.args)] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run(lab, name):
    """Each experiment on digits: all rows, a table, and nothing to do the second time."""
    experiment = importlib.import_module(f"experiments.{name}")
    if name == "depth":
        shape = lab.data[0][0].shape[1:]
        lab.base = lambda seed: training.plain_cnn(2, shape)
    rows = training.Rows(f"{name}_digits", lab.args)
    experiment.run(lab, rows, 0)
    kept = list(rows)
    assert kept
    experiment.run(lab, training.Rows(f"{name}_digits", lab.args), 0)
    assert list(training.Rows(f"{name}_digits", lab.args)) == kept
    text = experiment.tables({TASK.get(name, "digits"): kept})
    assert text.count("|") > 20


def test_claims():
    """Means, standard errors, and what holds, by hand."""
    rows = [
        {"importance": name, "seed": seed, "ratio": 0.5, "one_shot": value, "curve": [value]}
        for name, values in {
            "NISP": (0.5, 0.6),
            "L1": (0.4, 0.4),
            "LayerByLayer": (0.3, 0.7),
            "Random": (0.7, 0.9),
        }.items()
        for seed, value in enumerate(values)
    ]
    np.testing.assert_allclose(claims.differences(rows, "L1", 0.5, "one_shot"), [0.1, 0.2])
    np.testing.assert_allclose(claims.differences(rows, "L1", 0.5, "epoch 1"), [0.1, 0.2])
    assert claims.verdict(claims.differences(rows, "L1", 0.5, "one_shot")) == "+15.0 ± 5.0"
    level = claims.verdict(claims.differences(rows, "LayerByLayer", 0.5, "one_shot"))
    assert level == "+5.0 ± 15.0, level"
    assert "| does not hold |" in claims.table({"task": rows}, "one_shot", 0.5)
    ahead = [row for row in rows if row["importance"] in ("NISP", "L1")]
    ahead += [{**row, "importance": rival} for row in ahead[2:] for rival in claims.RIVALS[1:]]
    assert "| holds |" in claims.table({"task": ahead}, "one_shot", 0.5)


def test_verdicts():
    """Merges, headlines and combinations, by hand; experiments that were not run say nothing."""
    rows = {
        "headline": {
            "task": [
                {"method": "baseline", "curve": [0.9]},
                {"method": "C-SGD", "curve": [0.5, 0.85], "merged": 0.851, "flops_removed": 0.6},
            ]
        },
        "combinations": {
            "task": [
                {"arm": "baseline", "curve": [0.9]},
                {"arm": "L1", "curve": [0.8], "accuracy": 0.8, "flops_removed": 0.5},
                {"arm": "NISP", "curve": [0.8, 0.895], "accuracy": 0.895, "flops_removed": 0.5},
            ]
        },
    }
    table = verdicts.table(lambda name: rows.get(name, {}), [{"within": True}, {"within": False}])
    assert "| 1 of 2 rows within 0.5 points |" in table
    assert "| 1 merges, at most 0.10 points |" in table
    assert "| 0.9000 -> 0.8510 in 2 epochs: -4.90 points |" in table
    assert "| NISP, 2 epochs: 0.9000 -> 0.8950, -0.50 points |" in table
    assert len(table.splitlines()) == 6


def test_mean_and_deviation():
    assert mean_and_deviation([]) == ""
    assert mean_and_deviation([0.5]) == "0.5000"
    assert mean_and_deviation([0.5, 0.7]) == "0.6000 ± 0.1414"
