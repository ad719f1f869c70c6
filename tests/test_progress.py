"""`verbose` means the same everywhere: 0 is silent, 1 counts real work once it takes a second.

Bars are for terminals and notebooks; in a pipe or a file there is none.
"""

import io
import re
import sys

import keras
import numpy as np
import pytest

import keras_nisp as kn
from keras_nisp.data.collecting import collect
from keras_nisp.io import progress

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 6)).astype("float32")
Y = RNG.integers(0, 3, 150)
HALF = {"ratio": 0.5}


@pytest.fixture(scope="module")
def model():
    units = [keras.layers.Dense(8, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((6,)), *units, keras.layers.Dense(3)])


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "is_watched", lambda: True)


def batches():
    return iter(np.split(X, 3))


def verify(model, verbose):
    plan = kn.plan_pruning(model, kn.Magnitude(), **HALF)
    kn.verify(kn.rebuild(model, plan), model, plan, verbose=verbose)


def prune(model, verbose):
    kn.prune(model, calibration=batches(), verbose=verbose, **HALF)


def sensitivity(model, verbose):
    kn.sensitivity(model, kn.Magnitude(), (X, Y), ratios=[0.3, 0.6], verbose=verbose)


WORK = {
    "reading": (lambda model, verbose: collect(batches(), model, verbose=verbose), ["150/2048"]),
    "plan_pruning": (
        lambda model, verbose: kn.plan_pruning(model, calibration=X, verbose=verbose, **HALF),
        ["150/150"],
    ),
    "LayerByLayer": (
        lambda model, verbose: kn.LayerByLayer(X, verbose=verbose)(kn.trace(model)),
        ["150/150"],
    ),
    "Taylor": (
        lambda model, verbose: kn.Taylor((X, X[:, :3]), "mse", verbose=verbose)(kn.trace(model)),
        ["150/150"],
    ),
    "plan_merging": (
        lambda model, verbose: kn.plan_merging(
            model, clustering="activations", calibration=X, verbose=verbose, **HALF
        ),
        ["150/150", "3/3"],
    ),
    "sensitivity": (sensitivity, ["6/6"]),
    "verify": (verify, ["4/4"]),
    "prune": (prune, ["150/2048", "150/150", "4/4"]),
    "benchmark": (
        lambda model, verbose: kn.benchmark(model, rounds=5, repeats=1, verbose=verbose),
        ["5/5"],
    ),
}


@pytest.mark.parametrize("work", WORK)
def test_bars_count_all_work(model, work, impatient, capsys):
    run, totals = WORK[work]
    capsys.readouterr()
    run(model, 0)
    assert capsys.readouterr().out == ""
    run(model, 1)
    shown = capsys.readouterr().out
    for total in totals:
        assert re.search(rf"m *{total}\x1b", shown), shown


def test_what_is_quick_shows_no_bar(model, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 1e9)
    capsys.readouterr()
    collect(batches(), model, verbose=1)
    kn.plan_merging(model, verbose=1, **HALF)
    assert capsys.readouterr().out == ""


def test_a_pipe_gets_no_bar(model, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    kn.prune(model, calibration=X, verbose=1, **HALF)
    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line
    assert line.startswith(f"{model.name}: parameters 227 -> ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_bars_that_say_what_is_done(model, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stdout", Terminal())
    kn.prune(model, calibration=X, verbose=1, flops_reduction=0.5)
    lines = sys.stdout.getvalue().splitlines()
    said = [line for line in lines if line and "\x1b" not in line and "\r" not in line]
    assert said[:-1] == [
        "Scoring channels",
        "Looking at what kernels read",
        "Choosing widths",
        "Verifying layers",
        "Refitting kernels",
    ]
    assert said[-1].endswith("Next: fine-tune, and compare accuracies")


def test_the_outcome_has_costs_and_what_labels_say(model, capsys):
    kn.prune(model, calibration=(X, Y), **HALF)
    line = capsys.readouterr().out
    outcome = (
        r": parameters 227 -> \d+ \(-\d\d\.\d %\), FLOPs 200 -> 68 \(-66\.0 %\); surgery verified: "
        r"outputs .*; repaired on 150 samples, accuracy on these 0\.\d{4} -> 0\.\d{4}\. Next: "
    )
    assert re.search(outcome, line), line
    kn.prune(model, calibration=(X, X), **HALF)  # no labels of a classifier
    assert "its accuracy was not measured" in capsys.readouterr().out


def test_latencies_of_layers_are_counted(model, impatient, capsys):
    table, traced = kn.LatencyTable(cache=False, verbose=1), kn.trace(model)
    table.model(traced)
    assert "Timing layers" in capsys.readouterr().out
    table.model(traced)  # all are known
    assert capsys.readouterr().out == ""


def test_bars_change_nothing(model, impatient):
    plans = [kn.plan_pruning(model, kn.NISP(X, verbose=verbose), **HALF) for verbose in (0, 1)]
    assert plans[0] == plans[1]
