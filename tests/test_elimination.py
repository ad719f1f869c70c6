"""Regressions from which features are taken: against least squares of those that are left."""

import numpy as np
import pytest

from keras_nisp.kernels import regression
from keras_nisp.kernels.elimination import Elimination
from keras_nisp.kernels.regression import LEAST_VARIANCE, STRENGTHS, Moments

RIDGE = 1e-3


def rows(seed: int, features: int = 8, targets: int = 3, count: int = 400):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, features)) @ rng.normal(size=(features, features)) + 5
    x[:, 2] = 7  # constant
    x[:, 4] *= 1e-3
    return x, x @ rng.normal(size=(features, targets)) + rng.normal(size=(count, targets)) - 2


def moments(x, y) -> Moments:
    result = Moments(x.shape[1], y.shape[1], folds=1)
    for start in range(0, len(x), 100):
        result.add(x[start : start + 100], y[start : start + 100])
    return result


def least_squares(x, y, base, constant, kept, first):
    """By an augmented system: rows of the ridge, which draws to `base`."""
    result = np.zeros(base.shape)
    centre = (x.mean(0), y.mean(0)) if constant else (0, 0)
    z = (x - centre[0])[:, kept]
    y = y - centre[1] - z @ base[kept]
    energy, least = (z**2).sum(0), LEAST_VARIANCE * ((x - centre[0]) ** 2).sum(0)[first].mean()
    varies = energy > 1e-9
    ridge = np.sqrt((RIDGE + 8 * 2.2e-16) * (energy + least))
    augmented = np.concatenate([z, np.diag(np.where(varies, ridge, 1))])
    change, *_ = np.linalg.lstsq(augmented, np.concatenate([y, np.zeros((z.shape[1], 3))]))
    result[kept] = base[kept] + np.where(varies[:, None], change, 0)
    constants = centre[1] - centre[0] @ result if constant else np.zeros(3)
    return result, constants


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("first", [[], [1], [2, 5]])
@pytest.mark.parametrize("then", [[], [0], [2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_the_others_are_fitted_as_if_those_had_never_been(constant, first, then):
    x, y = rows(len(first))
    base = np.random.default_rng(9).normal(size=(8, 3))
    kept = np.ones(8, bool)
    kept[first] = False
    fit = Elimination(moments(x, y), base, constant, RIDGE, kept)
    there, kept = kept, kept.copy()
    kept[then] = False
    expected = least_squares(x, y, base, constant, kept, there)
    for ours, theirs in zip(fit.without(kept), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_weights_that_follow():
    x, y = rows(3)
    base, weights = np.zeros((8, 3)), np.random.default_rng(1).normal(size=(3, 5))
    kept = np.ones(8, bool)
    through, plain = (Elimination(moments(x, y), base, True, RIDGE, kept) for _ in range(2))
    through.through(weights)
    kept = kept.copy()
    kept[[1, 6]] = False
    for ours, theirs in zip(through.without(kept), plain.without(kept), strict=True):
        np.testing.assert_allclose(ours, theirs @ weights)


def test_nothing_was_seen():
    kept = np.array([True, False])
    coefficients, constant = Elimination(Moments(2, 1), np.ones((2, 1)), True, RIDGE, kept).without(
        kept
    )
    np.testing.assert_array_equal(coefficients, [[1], [0]])
    np.testing.assert_array_equal(constant, [0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_in_blocks_with_the_best_strength(dtype, monkeypatch):
    """Half of the second moments is taken; the strength is that of all with the least error."""
    monkeypatch.setattr(regression, "BLOCK", 3)
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(60, 20)) @ rng.normal(size=(20, 20)) + 5).astype(dtype)
    y = (x @ rng.normal(size=(20, 2)) + 20 * rng.normal(size=(60, 2))).astype(dtype)
    moments = Moments(20, 2, dtype=dtype)
    for fold in (0, 1):
        moments.add(x[fold::2], y[fold::2], fold)
    change, constant = moments.fit(np.zeros((20, 2)), True, None)
    z, wanted = (values - values.mean(0) for values in (x.astype(float), y.astype(float)))
    energy = (z**2).sum(0)
    scale = (energy + LEAST_VARIANCE * energy.mean()) ** -0.5

    def solved(part, share, strength):
        scaled = z[part] * scale
        matrix = scaled.T @ scaled + (share * strength + moments.rounding) * np.eye(20)
        return scale[:, None] * np.linalg.solve(matrix, scaled.T @ wanted[part])

    halves, whole = (slice(0, None, 2), slice(1, None, 2)), slice(None)
    errors = [
        ((wanted[halves[1]] - z[halves[1]] @ solved(halves[0], 0.5, strength)) ** 2).sum()
        for strength in STRENGTHS
    ]
    best = STRENGTHS[int(np.argmin(errors))]
    assert best not in (STRENGTHS[0], STRENGTHS[-1])
    np.testing.assert_allclose(change, solved(whole, 1, best), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(constant, y.mean(0) - x.mean(0) @ change, rtol=1e-3, atol=1e-3)
