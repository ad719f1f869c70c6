"""The accuracy experiments: on digits, resumed after an interruption, and their tables."""

import argparse
import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import experiments
import results
import training
from experiments import claims, curves, verdicts
from experiments.tables import mean_and_deviation

import keras_nisp as kn

TASK = {"depth": "plain2_fashion"}
FIGURES = {  # of a row, which the table must show
    "importances": ("accuracy", "one_shot", "recalibrated", "compensated"),
    "depth": ("ware", "ware_compensated", "base"),
    "propagation": ("one_shot", "recalibrated", "same_channels"),
    "centripetal": ("accuracy", "trained_on"),
    "headline": ("one_shot", "compensated", "merged"),
    "combinations": ("accuracy",),
    "curves": ("accuracy",),
    "collapse": ("accuracy",),
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    args = argparse.Namespace(data_dir=None, weights_dir=None, out=str(tmp_path))
    vars(args).update(levels=[0.5], epochs=[0, 1], importances=["NISP"], arms=curves.DEFAULT)
    args.methods = None
    return training.Lab("digits", args)


@pytest.fixture
def small_lab(lab):
    """A network of two layers instead of a residual one."""
    lab.task = dataclasses.replace(
        lab.task, epochs=6, network=lambda input_shape: training.plain_cnn(2, input_shape)
    )
    return lab


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


@pytest.mark.training
@pytest.mark.parametrize("distilled", [False, True])
def test_training_goes_on_where_it_was_interrupted(small_lab, distilled):
    lab = small_lab
    lab.data = tuple((x[:256], y[:256]) for x, y in lab.data)

    def network():
        keras.utils.set_random_seed(0)
        return lab.task.build(lab.data[0][0].shape[1:], None)

    teacher = network()
    wrap = (lambda student: kn.distiller(student, teacher)) if distilled else None
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


@pytest.mark.training
def test_base_networks_are_trained_once(small_lab):
    lab = small_lab
    first = lab.base(0)
    again = training.Lab("digits", lab.args).base(0)
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lab.accuracy(first) > 0.9


def test_rows_are_not_computed_again(lab):
    def measure(accuracy):
        return {"accuracy": accuracy}

    rows = results.Rows("trial", lab.args)
    assert rows.once({"seed": 0, "method": "a"}, measure, 0.5)["accuracy"] == 0.5
    again = results.Rows("trial", lab.args)
    row = again.once({"seed": 0, "method": "a"}, pytest.fail, "computed again")
    assert row["accuracy"] == 0.5
    again.once({"seed": 1, "method": "a"}, measure, 0.25)
    assert [row["seed"] for row in results.Rows("trial", lab.args)] == [0, 1]


def test_trials_on_other_tasks_are_no_results(lab):
    for task in ("digits", "vgg_fashion", "lenet_mnist"):
        results.Rows(f"importances_{task}", lab.args).once({"task": task}, dict)
    found = experiments.results("importances")
    assert list(found) == ["lenet_mnist", "vgg_fashion"]  # in the order of TASKS
    assert found["vgg_fashion"][0]["task"] == "vgg_fashion"


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.NAMES)
def test_experiments_run(lab, name):
    """Each experiment on digits: all rows, a table of them, and nothing to do the second time."""
    experiment = experiments.load(name)
    if name == "depth":
        shape = lab.data[0][0].shape[1:]
        lab.base = lambda seed: training.plain_cnn(2, shape)
    if name == "headline":
        lab.args.epochs = [0]  # those of the task: in one epoch of digits no cluster collapses
    rows = results.Rows(f"{name}_digits", lab.args)
    experiment.run(lab, rows, 0)
    kept = list(rows)
    assert kept
    experiment.run(lab, results.Rows(f"{name}_digits", lab.args), 0)
    assert list(results.Rows(f"{name}_digits", lab.args)) == kept
    text = experiment.tables({TASK.get(name, "digits"): kept})
    shown = set(re.findall(r"\d\.\d{4}", text))
    figures = [row[figure] for row in kept for figure in FIGURES[name] if figure in row]
    assert {f"{figure:.4f}" for figure in figures} <= shown


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
    assert claims.holds(ahead[:4], "one_shot", 0.5) is None  # layer-by-layer is still to come


def test_verdicts():
    """Rivals, merges, headlines and combinations, by hand; what was not run says nothing."""
    accuracies = {"NISP": 0.8, "Taylor": 0.81}
    rows = {
        "importances": {
            "task": [
                {"importance": name, "seed": 0, "ratio": ratio, "recalibrated": value - ratio}
                | {"compensated": value}
                for name, value in accuracies.items()
                for ratio in (0.25, 0.5)
            ]
        },
        "headline": {
            "task": [
                {"method": "baseline", "curve": [0.9]},
                {"method": "C-SGD", "curve": [0.5, 0.85], "merged": 0.851, "flops_removed": 0.6},
            ]
        },
        "propagation": {
            "task": [
                {"seed": 0, "variant": "one pass", "ratio": 0.25, "recalibrated": 0.82},
                {"seed": 0, "variant": "repeated", "ratio": 0.25, "recalibrated": 0.8},
                {"seed": 0, "variant": "repeated", "ratio": 0.5, "recalibrated": 0.5},
            ]
        },
        "curves": {
            "task": [
                {"seed": 0, "arm": arm, "importance": "NISP", "accuracy": accuracy}
                | {"level": level, "epochs": 0}
                for arm, accuracy in (("uniform", 0.7), ("allocated", 0.75))
                for level in (0.5, 0.6)
            ],
            "other": [
                {"seed": seed, "arm": arm, "importance": "NISP", "accuracy": accuracy}
                | {"level": 0.75, "epochs": 2}
                for arm, accuracy in (("allocated", 0.8), ("taught", 0.79))
                for seed in (0, 1)
            ],
        },
        "combinations": {
            "task": [
                {"arm": "baseline", "curve": [0.9]},
                {"arm": "baseline, trained on", "curve": [0.91, 0.92]},
                {"arm": "L1", "curve": [0.8], "accuracy": 0.8, "flops_removed": 0.5},
                {"arm": "NISP", "curve": [0.8, 0.895], "accuracy": 0.895, "flops_removed": 0.5},
            ]
        },
    }
    table = verdicts.table(lambda name: rows.get(name, {}), [{"within": True}, {"within": False}])
    assert "| 1 of 2 rows within 0.5 points |" in table
    assert "| 1 merges, at most 0.10 points |" in table
    assert "| 0.9000 -> 0.8510 in 2 epochs: -4.90 points |" in table
    assert "| NISP, 2 epochs: 0.9000 -> 0.8950, -0.50 points (the baseline" in table
    assert "trained on for 2 epochs: 0.9200) |" in table
    assert "| points: +2.0 task: one seed |" in table
    ahead = "Widths by damage are ahead of one ratio: NISP, half of the FLOPs, without labels"
    assert f"| {ahead} | points: +5.0 task: one seed |" in table
    assert "three quarters of the FLOPs, after 2 epochs | points: -1.0 other |" in table
    assert (
        "| NISP is ahead of Taylor, which needs labels: compensated, a quarter removed | " in table
    )
    assert table.count("| points: -1.0 task: one seed |") == 2  # recalibrated, compensated
    assert "NISPMag" not in table
    assert "NISP leads" not in table  # no rival that this claim is about
    assert len(table.splitlines()) == 13


def test_mean_and_deviation():
    assert mean_and_deviation([]) == ""
    assert mean_and_deviation([0.5]) == "0.5000"
    assert mean_and_deviation([0.5, 0.7]) == "0.6000 ± 0.1414"


def test_the_page_is_up_to_date():
    """docs/results.md says what is in benchmarks/results."""
    path = Path(__file__).parents[1] / "docs" / "results.py"
    spec = importlib.util.spec_from_file_location("results_page", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.PAGE.read_text() == page.page(), "run `python docs/results.py`"


def luminance(colour: str) -> float:
    """Of `#rrggbb`, relative to white, as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117", "#1e2129"])
def test_figures_can_be_read_on_white_and_on_dark_pages(page):
    import plots

    for colour in (plots.INK, *plots.COLOURS):
        dark, light = sorted(luminance(c) + 0.05 for c in (colour, page))
        assert light / dark >= 3, (colour, page)


def test_figures_have_no_background():
    import matplotlib.image
    import plots

    for path in plots.FIGURES.glob("*.png"):
        assert matplotlib.image.imread(path)[0, 0, 3] == 0, path.name
