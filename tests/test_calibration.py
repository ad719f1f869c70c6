"""Calibration data are given once: an importance takes them from the function that uses it."""

import keras
import numpy as np
import pytest

import keras_nisp as kn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 6)).astype("float32")
Y = RNG.integers(0, 3, 96)
UNLABELLED = kn.NISP, kn.LayerByLayer, kn.LRP, kn.OptimalBrainSurgeon


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def model():
    return network()


class Once:
    """Batches that can be read once only."""

    def __init__(self):
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        assert self.reads == 1
        return iter(np.split(X, 8))


def same(first, second):
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("importance", [*(kind() for kind in UNLABELLED), kn.NISP(X), None])
def test_one_argument_for_one_thing(model, importance):
    expected_by = kn.NISP(X) if importance is None else type(importance)(X)
    expected = kn.prune(model, expected_by, ratio=0.5, calibration=X, verbose=0)
    data = Once()
    same(kn.prune(model, importance, ratio=0.5, calibration=data, verbose=0), expected)
    assert data.reads == 1
    plan = kn.plan_pruning(model, importance, ratio=0.5, calibration=Once())
    assert plan == kn.plan_pruning(model, expected_by, ratio=0.5)
    assert "kn.NISP(calibration=calibration)" in plan.recipe.code or importance is not None


def test_an_importance_stays_without_data(model):
    importance = kn.NISP(alpha=0.3)
    kn.prune(model, importance, ratio=0.5, calibration=X, verbose=0)
    with pytest.raises(ValueError, match="Received none: give them to it"):
        kn.prune(model, importance, ratio=0.5, verbose=0)


def test_its_own_data_are_preferred(model):
    plan = kn.plan_pruning(model, kn.NISP(X), ratio=0.5, calibration=5 * X[:7])
    assert plan == kn.plan_pruning(model, kn.NISP(X), ratio=0.5)


def test_few_samples_are_taken_from_all():
    """Data may be sorted by class."""
    seen = []

    class Watched(kn.NISP):
        def rank(self, channel_map):
            seen.append(self.calibration.samples(channel_map.model).inputs[0])
            return super().rank(channel_map)

    steps = np.linspace(0, 1, 2048, dtype="float32")[:, None] * np.ones((1, 6), "float32")
    kn.prune(network(), Watched(max_samples=64), ratio=0.5, calibration=steps, verbose=0)
    assert len(seen[0]) == 64
    assert np.ptp(seen[0][:, 0]) > 0.9


def test_more_samples_are_read_if_the_importance_asks(model, capsys):
    many = np.tile(X, (30, 1))
    kn.prune(model, kn.NISP(max_samples=2500), ratio=0.5, calibration=many)
    assert "repaired on 2,500 samples" in capsys.readouterr().out
    kn.prune(model, kn.NISP(X, max_samples=2500), ratio=0.5, calibration=many)
    assert "repaired on 2,048 samples" in capsys.readouterr().out


def test_labels_go_along(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plan = kn.plan_pruning(model, kn.Taylor(loss=loss), ratio=0.5, calibration=(X, Y))
    assert plan == kn.plan_pruning(model, kn.Taylor((X, Y), loss=loss), ratio=0.5)
    with pytest.raises(TypeError, match="with labels"):
        kn.prune(model, kn.Taylor(loss=loss), ratio=0.5, calibration=X)


def test_sensitivity(model):
    data = Once()
    result = kn.sensitivity(model, kn.NISP(), (X, Y), ratios=[0.5], calibration=data)
    assert result == kn.sensitivity(model, kn.NISP(X), (X, Y), ratios=[0.5], calibration=X)


def test_pruner_gives_its_calibration_to_an_importance_without():
    def run(pruner):
        model = network()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks=[pruner])
        return pruner.pruned_model

    limits = {"ratio": 0.5, "verbose": 0}
    expected = run(kn.NISPPruner(importance=kn.NISP(X, alpha=0.3), **limits))
    same(run(kn.NISPPruner(Once(), importance=kn.NISP(alpha=0.3), **limits)), expected)
    with pytest.raises(ValueError, match="NISP takes no more"):
        kn.NISPPruner(X, importance=kn.NISP(X), **limits)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model: kn.prune(model, ratio=0.5),
        lambda model: kn.prune(model, kn.LayerByLayer(), ratio=0.5),
        lambda model: kn.plan_pruning(model, kn.Taylor(), ratio=0.5),
        lambda model: kn.sensitivity(model, kn.NISP(), (X, Y)),
        lambda model: kn.NISPPruner(importance=kn.NISP(), ratio=0.5),
        lambda model: kn.NISP()(kn.trace(model)),
    ],
)
def test_without_any_data_the_error_says_both_ways(model, attempt):
    with pytest.raises(ValueError, match=r"`NISP\(calibration\)`, or .* calibration=calibration"):
        attempt(model)


def test_what_needs_no_data_takes_none(model):
    plan = kn.plan_pruning(model, kn.NISPMag(), ratio=0.5, calibration=iter([]))
    assert plan == kn.plan_pruning(model, kn.NISPMag(), ratio=0.5)
