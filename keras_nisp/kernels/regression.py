"""Ridge regression of what a kernel is to give on what it reads, from sums over batches."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

STRENGTHS = [10.0**power for power in range(-6, 2)]  # of the ridge, over a feature's variance
MOST_TARGETS = 64  # by which a strength is chosen
FOLDS = 2


class Moments:
    """Sums of products, by fold of the samples: what a regression needs of any number of rows.

    Args:
        features: how many there are.
        targets: how many values are predicted.
    """

    def __init__(self, features: int, targets: int):
        self.count = np.zeros(FOLDS)
        self.sums = np.zeros((FOLDS, features + targets))
        self.gram = np.zeros((FOLDS, features, features))
        self.products = np.zeros((FOLDS, features, targets))

    def add(self, fold: int, features: tf.Tensor, targets: tf.Tensor) -> None:
        """Takes in rows of both."""
        features, targets = tf.cast(features, tf.float64), tf.cast(targets, tf.float64)
        self.count[fold] += len(features)
        both = [tf.reduce_sum(rows, 0) for rows in (features, targets)]
        self.sums[fold] += np.concatenate(both)
        self.gram[fold] += tf.matmul(features, features, transpose_a=True)
        self.products[fold] += tf.matmul(features, targets, transpose_a=True)

    def fit(
        self, base: np.ndarray, constant: bool, ridge: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The change of coefficients `(features, targets)` and the constant `(targets,)`.

        Args:
            base: the coefficients without data, towards which the ridge draws.
            constant: whether there may be a constant.
            ridge: what is added to the variance of each feature, over this variance; by default
                what predicts one half of the samples best from the other.
        """
        total, width = self.count.sum(), self.gram.shape[1]
        x, y = self.sums[:, :width], self.sums[:, width:] - self.sums[:, :width] @ base
        centre, target = (sums.sum(0) / (total if constant else np.inf) for sums in (x, y))
        n = self.count[:, None, None]
        gram = self.gram - _outer(x, centre) - _outer(centre, x) + n * _outer(centre, centre)
        products = self.products - self.gram @ base
        products = products - _outer(x, target) - _outer(centre, y) + n * _outer(centre, target)
        if not width:
            return np.zeros_like(base), target
        variance = np.diagonal(gram.sum(0)) / total
        scale = (
            np.where(variance > 1e-12 * variance.max(), np.maximum(variance, 1e-300), 1.0) ** -0.5
        )
        gram, products = gram * np.outer(scale, scale), products * scale[:, None]
        if ridge is None:
            ridge = self._held_out(gram, products)
        change = scale[:, None] * _solve(gram.sum(0), products.sum(0), total * ridge)
        return change, target - centre @ change

    def _held_out(self, gram, products) -> float:
        """The strength with which one fold predicts some targets of the other best."""
        if not self.count.all():
            return STRENGTHS[len(STRENGTHS) // 2]  # of one sample nothing can be held out
        some = products[:, :, :: math.ceil(products.shape[2] / MOST_TARGETS)]
        errors: dict[int, float] = {}

        def error(index: int) -> float:
            if index not in errors:
                change = _solve(gram[0], some[0], self.count[0] * STRENGTHS[index])
                fit = np.vdot(change, gram[1] @ change)
                errors[index] = fit - 2 * np.vdot(change, some[1])
            return errors[index]

        # The error has one valley: from the middle, down.
        best = len(STRENGTHS) // 2
        while (lower := _neighbour(best, error)) != best:
            best = lower
        return STRENGTHS[best]


def _neighbour(index: int, error: Callable[[int], float]) -> int:
    """Which of a strength and those beside it has the least error."""
    return min(range(max(index - 1, 0), min(index + 2, len(STRENGTHS))), key=error)


def _solve(gram: np.ndarray, products: np.ndarray, strength: float) -> np.ndarray:
    factor = tf.linalg.cholesky(gram + strength * np.eye(len(gram)))
    return np.asarray(tf.linalg.cholesky_solve(factor, products))


def _outer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Outer products of vectors, one for each fold where there are several."""
    return first[..., :, None] * second[..., None, :]
