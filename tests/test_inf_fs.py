"""Inf-FS against a direct evaluation of its series and by its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import keras_nisp as kn


def series(responses, alpha=0.5, terms=400):
    """The definition, term by term; all features vary."""
    deviation = responses.std(0)
    sigma = (deviation - deviation.min()) / np.ptp(deviation)
    rho = spearmanr(responses).statistic
    matrix = alpha * np.maximum.outer(sigma, sigma) + (1 - alpha) * (1 - np.abs(rho))
    matrix *= 0.9 / np.abs(np.linalg.eigvals(matrix)).max()
    total, power = np.zeros_like(matrix), np.eye(len(matrix))
    for _ in range(terms):
        power = power @ matrix
        total += power
    return total.sum(1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_equals_the_series(alpha, kind, rng):
    x = rng.normal(size=(200, 30)) @ rng.normal(size=(30, 30))
    x = np.maximum(x, 0) if kind == "relu" else x  # ReLU gives many ties
    np.testing.assert_allclose(kn.inf_fs(x, alpha), series(x, alpha), rtol=1e-6)


def test_two_features_by_hand():
    # Ranks 1 2 3 4 and 1 2 4 3: Spearman 0.8. Deviations are equal, so both count 1:
    # A = [[.5 + 0, .5 + .5 * .2], ...] = [[.5, .6], [.6, .5]], spectral radius 1.1, and the
    # row sums of sum (0.9 A / 1.1)^l are 0.9 / (1 - 0.9) = 9.
    x = np.array([[1.0, 1], [2, 2], [3, 4], [4, 3]])
    np.testing.assert_allclose(kn.inf_fs(x), [9, 9], rtol=1e-12)


def test_constant_features_score_zero_and_change_nothing_else(rng):
    x = rng.normal(size=(50, 6))
    x[:, 0] *= 0.5
    with_dead = np.insert(x, 3, 7.0, axis=1)
    scores = kn.inf_fs(with_dead)
    assert scores[3] == 0
    assert (np.delete(scores, 3) > 0).all()
    assert (kn.inf_fs(np.ones((5, 3))) == 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(3, 40))
def test_permuting_features_permutes_scores(seed, features, samples):
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(samples, features)), 0)
    order = rng.permutation(features)
    scores = kn.inf_fs(x)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_allclose(kn.inf_fs(x[:, order]), scores[order], rtol=1e-7, atol=1e-12)


def test_a_copied_feature_loses(rng):
    """By correlation alone, redundant features score below independent ones."""
    x = rng.normal(size=(500, 8))
    x[:, 1] = x[:, 0]
    scores = kn.inf_fs(x, alpha=0.0)
    assert scores[0] < np.delete(scores, [0, 1]).min()


@pytest.mark.parametrize(
    ("responses", "alpha", "message"),
    [
        (np.ones(4), 0.5, "samples, features"),
        (np.ones((1, 4)), 0.5, "at least 2 samples"),
        (np.ones((4, 0)), 0.5, "1 feature"),
        (np.array([[1.0, np.nan], [2, 3]]), 0.5, "NaN"),
        (np.ones((4, 2)), 1.5, "alpha"),
    ],
)
def test_bad_input(responses, alpha, message):
    with pytest.raises(ValueError, match=message):
        kn.inf_fs(responses, alpha)
