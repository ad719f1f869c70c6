"""Ridge regression of what a kernel is to give on what it reads, from sums over batches."""

import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

STRENGTHS = [10.0**power for power in range(-6, 2)]  # of the ridge, over a feature's variance
MOST_TARGETS = 64  # by which a strength is chosen
FOLDS = 2
BLOCK = 256  # of the features, whose products with those before it are not taken twice
LEAST_VARIANCE = 0.01  # of a feature, over the mean: what varies less is shrunk more
CONSTANT = 1e-10  # of a mean square: a smaller variance is the rounding of a constant


class Moments:
    """Sums of products, by fold of the samples: what a regression needs of any number of rows.

    Values are taken from those of the first batch on, so that rounding is that of their
    variances, however far from zero they are.

    Args:
        features: how many there are.
        targets: how many values are predicted.
        products: whether the features are to be fitted, or only the constant behind them.
        folds: how many parts of the samples are kept apart.
        dtype: in which products are taken; they are summed in double precision.
        at_once: how many rows of a fold are waited for before products are taken: a few large
            products cost less than many small ones.
    """

    def __init__(
        self,
        features: int,
        targets: int,
        products: bool = True,
        folds: int = FOLDS,
        dtype: type = np.float64,
        at_once: int = 0,
    ):
        self.count = np.zeros(folds)
        self.origin: tuple[np.ndarray, np.ndarray] | None = None  # of features and targets
        self.sums = np.zeros((folds, features)), np.zeros((folds, targets))
        size = features if products else 0
        self.gram, self.products = np.zeros((folds, size, size)), np.zeros((folds, size, targets))
        self.blocks = [slice(start, start + BLOCK) for start in range(0, size, BLOCK)]
        self.dtype, self.at_once = dtype, at_once
        self.waiting: list[list[tuple[tf.Tensor, tf.Tensor]]] = [[] for _ in range(folds)]

    def add(self, features: tf.Tensor, targets: tf.Tensor, fold: int = 0) -> None:
        """Takes in rows of both."""
        if not len(features):
            return
        rows = [tf.cast(values, self.dtype) for values in (features, targets)]
        if self.origin is None:
            features, targets = (np.asarray(tf.reduce_mean(values, 0)) for values in rows)
            self.origin = features, targets
        features, targets = (
            values - origin for values, origin in zip(rows, self.origin, strict=True)
        )
        self.count[fold] += len(features)
        for sums, values in zip(self.sums, (features, targets), strict=True):
            sums[fold] += tf.reduce_sum(values, 0)
        if self.gram.size:
            self.waiting[fold].append((features, targets))
            if sum(len(rows) for rows, _ in self.waiting[fold]) >= self.at_once:
                self._multiply(fold)

    def _multiply(self, fold: int) -> None:
        """Takes the products of the rows that wait."""
        if not self.waiting[fold]:
            return
        features, targets = (tf.concat(rows, 0) for rows in zip(*self.waiting[fold], strict=True))
        self.waiting[fold] = []
        self.products[fold] += tf.matmul(features, targets, transpose_a=True)
        for block in self.blocks:  # what lies above them is the same
            rest = features[:, block.start :]
            product = tf.matmul(rest, features[:, block], transpose_a=True)
            self.gram[fold, block.start :, block] += np.asarray(product)

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
        change = np.zeros(base.shape)
        if self.origin is None:  # nothing was added
            return change, np.zeros(base.shape[1])
        if self.gram.size:
            gram, products, scale = self.normal_equations(base, constant)
            if ridge is None:
                ridge = self._held_out(gram, products)
            solved = _solve(gram.sum(0), products.sum(0), ridge + self.rounding)
            change = scale[:, None] * np.asarray(solved)
        if not constant:
            return change, np.zeros(base.shape[1])
        means = self.means()
        return change, means[1] - means[0] @ (base + change)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each feature and each target."""
        assert self.origin is not None
        both = zip(self.origin, self.sums, strict=True)
        features, targets = (origin + sums.sum(0) / self.count.sum() for origin, sums in both)
        return features, targets

    @property
    def rounding(self) -> float:
        """Of the products, as a ridge: a fit is no better than that."""
        return self.sums[0].shape[1] * float(np.finfo(self.dtype).eps)

    def normal_equations(
        self, base: np.ndarray, constant: bool, kept: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the change of coefficients solves, of each fold.

        Features are scaled so that all variances are 1 over the folds; constant ones are nothing.
        The sums themselves become that, to save memory: this is for once.

        Args:
            base: the coefficients without data.
            constant: whether there may be a constant.
            kept: boolean per feature: the ones that are there; by default all.

        Returns:
            Products of features `(folds, features, features)`, of features and what `base` leaves
            of the targets `(folds, features, targets)`, and the scale of each feature.
        """
        assert self.origin is not None
        for fold in range(len(self.count)):
            self._multiply(fold)
        gram, products, (x, y) = self.gram, self.products, self.sums
        del self.gram, self.products  # a second time they would be wrong
        for block in self.blocks:
            gram[:, block, block.stop :] = gram[:, block.stop :, block].swapaxes(1, 2)
        origin = [values.astype(np.float64) for values in self.origin]
        if kept is not None and not kept.all():
            gram, products, x = gram[:, kept][:, :, kept], products[:, kept], x[:, kept]
            origin[0] = origin[0][kept]
        middle = [sums.sum(0) / self.count.sum() for sums in (x, y)]
        centre, target = middle if constant else (-origin[0], -origin[1])
        for fold, n in enumerate(self.count):
            left = np.stack([n * centre - x[fold], -centre], 1)
            gram[fold] += np.asarray(tf.matmul(left, [centre, x[fold]]))
            products[fold] += tf.matmul(left, [target, y[fold]])
            # In the precision of the products: in double precision it takes as long as they.
            products[fold] -= np.asarray(
                tf.matmul(*(tf.cast(a, self.dtype) for a in (gram[fold], base)))
            )
        variance = np.einsum("fii->i", gram)
        square = self.count.sum() * (origin[0] + middle[0]) ** 2
        varies = variance > CONSTANT * (variance + square)
        # A feature that hardly varies here may vary elsewhere: it must not be made much of.
        least = LEAST_VARIANCE * variance.mean()
        scale = np.where(varies, np.where(varies, variance + least, 1) ** -0.5, 0)
        products *= scale[:, None]
        gram *= np.outer(scale, scale)
        return gram, products, scale

    def _held_out(self, gram: np.ndarray, products: np.ndarray) -> float:
        """The strength with which one fold predicts some targets of the other best."""
        if not self.count.all():
            return STRENGTHS[len(STRENGTHS) // 2]  # of one sample nothing can be held out
        some = products[:, :, :: math.ceil(products.shape[2] / MOST_TARGETS)]
        share = self.count[0] / self.count.sum()
        gram, some = (tf.constant(values.astype(self.dtype)) for values in (gram, some))
        # Far below the rounding, all strengths are the same.
        least = max(int(np.searchsorted(STRENGTHS[:-1], self.rounding)) - 1, 0)

        @functools.cache
        def error(index: int) -> float:
            if not least <= index < len(STRENGTHS):
                return math.inf
            change = _solve(gram[0], some[0], share * STRENGTHS[index] + self.rounding)
            return float(tf.reduce_sum(change * (tf.matmul(gram[1], change) - 2 * some[1])))

        # The error has one valley: from the middle, down.
        best = max(len(STRENGTHS) // 2, least)
        step = 1 if error(best + 1) < error(best) else -1
        while error(best + step) < error(best):
            best += step
        return STRENGTHS[best]


def _solve(gram: Any, products: Any, strength: float) -> tf.Tensor:
    ridged = tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) + tf.cast(strength, gram.dtype))
    return tf.linalg.cholesky_solve(tf.linalg.cholesky(ridged), products)
