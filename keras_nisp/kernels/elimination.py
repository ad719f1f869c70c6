"""A regression from which features can be taken, so that the others make up for them."""

import numpy as np
import scipy.linalg

from keras_nisp.kernels.regression import Moments


class Elimination:
    """The least squares of all features, and from them those of any fewer.

    With H the second moments (and the ridge) and W the coefficients, what is left without the
    features q is best with

        W - H^-1[:, q] (H^-1[q, q])^-1 W[q]

    so that one inverse serves for every choice of q.

    Args:
        moments: of features and targets; needed no longer afterwards.
        base: the coefficients without data `(features, targets)`.
        constant: whether there may be a constant.
        ridge: what is added to the variance of each feature, over this variance.
        kept: boolean per feature: the ones that are there.

    Source: Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain
    Surgeon", NeurIPS 1992, for several weights at once.
    """

    def __init__(
        self, moments: Moments, base: np.ndarray, constant: bool, ridge: float, kept: np.ndarray
    ):
        self.kept, self.constant, self.dtype = kept, constant, moments.dtype
        self.solved: np.ndarray = np.where(kept[:, None], base, 0).astype(self.dtype)
        self.inverse: np.ndarray | None = None  # of the second moments of the scaled features
        self.scale = np.zeros(np.count_nonzero(kept))
        self.means = None if moments.origin is None else moments.means()
        if moments.origin is None or not moments.gram.size or not kept.any():
            return
        gram, products, self.scale = moments.normal_equations(base[kept], constant, kept)
        second = gram.sum(0) + (ridge + moments.rounding) * np.eye(len(self.scale))
        self.inverse = _inverse(second)
        self.solved[kept] += (self.scale[:, None] * (self.inverse @ products.sum(0))).astype(
            self.dtype
        )

    def through(self, weights: np.ndarray) -> None:
        """Lets weights `(targets, outputs)` follow: the outputs are what is predicted from now."""
        self.solved = self.solved @ weights.astype(self.dtype)
        if self.means is not None:
            self.means = self.means[0], self.means[1] @ weights

    def without(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of the features, zeros for those that are gone, and the constant.

        Args:
            kept: boolean per feature: some of those that are there.
        """
        result = self.solved.copy()
        gone = np.flatnonzero(~kept[self.kept])
        if len(gone) and self.inverse is not None:
            scale, removed = self.scale[gone, None], self.solved[self.kept][gone]
            removed = np.divide(removed, scale, out=np.zeros_like(removed), where=scale > 0)
            block = self.inverse[np.ix_(gone, gone)]
            shares = scipy.linalg.solve(block, removed, assume_a="pos")
            columns = self.scale[:, None] * self.inverse[:, gone]
            # The product is the long part; in single precision it is as exact as kernels are.
            result[self.kept] -= columns.astype(self.dtype) @ shares.astype(self.dtype)
        result[~kept] = 0
        if not self.constant or self.means is None:
            return result, np.zeros(result.shape[1])
        return result, self.means[1] - self.means[0] @ result


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive definite matrix."""
    factor = scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("Expected a positive definite matrix.")
    return np.tril(inverse) + np.tril(inverse, -1).T
