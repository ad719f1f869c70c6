"""Infinite Feature Selection (Roffo et al., ICCV 2015)."""

import numpy as np

from keras_nisp.errors import check_number

ROUNDING = 1e-6  # of the largest response: units that vary by less are constant


def inf_fs(responses: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Ranks features by the energy of all paths that go through them.

    Features are the nodes of a full graph with the edges
    `A[i, j] = alpha * max(s_i, s_j) + (1 - alpha) * (1 - |rho_ij|)`, where `s` is the
    standard deviation, min-max scaled over the features, and `rho` Spearman's rank
    correlation with average ties. The score of a feature is its row sum in
    `sum_{l >= 1} (r A)^l = (I - r A)^-1 - I` with `r = 0.9 / spectral radius of A`. One linear
    solve gives all scores.

    Args:
        responses: array of shape `(samples, features)`.
        alpha: weight of the deviations against the correlations, in [0, 1].

    Returns:
        Float64 array of shape `(features,)`; larger is more important. A constant
        feature (a dead unit) has score 0.

    Raises:
        ValueError: the array is not two-dimensional, has fewer than two samples, no
            feature or values that are not finite, or `alpha` is outside [0, 1].

    Example:

    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> x[:, 2] = 1.0
    >>> inf_fs(x)[2]
    np.float64(0.0)

    Source: Roffo et al., "Infinite Feature Selection", ICCV 2015, equations 1 to 8, in
    the paper's convention; NISP takes its scores of the final responses from it.
    """
    responses = np.asarray(responses)
    if responses.ndim != 2 or responses.shape[0] < 2 or responses.shape[1] < 1:
        raise ValueError(
            "Expected `responses` of shape (samples, features) with at least 2 samples and "
            f"1 feature. Received: shape {responses.shape}"
        )
    if not np.isfinite(responses).all():
        raise ValueError("Expected `responses` to be finite. Received: NaN or infinity in it.")
    check_number("alpha", alpha, "in [0, 1]", lambda weight: 0 <= weight <= 1)

    scores = np.zeros(responses.shape[1])
    alive = np.ptp(responses, axis=0) > ROUNDING * np.abs(responses).max(axis=0)
    if alive.any():
        scores[alive] = _path_energy(_adjacency(responses, alive, alpha))
    return scores


def _adjacency(responses: np.ndarray, alive: np.ndarray, alpha: float) -> np.ndarray:
    """The matrix A over the features that vary."""
    deviation = responses.std(axis=0, dtype=np.float64)
    spread = np.ptp(deviation)
    # Features of one and the same deviation: none stands out, all count in full.
    scaled = (deviation - deviation.min()) / spread if spread > 0 else np.ones_like(deviation)
    scaled = scaled[alive]
    adjacency = spearman(responses[:, alive])
    np.abs(adjacency, out=adjacency)
    adjacency *= -(1 - alpha)
    adjacency += 1 - alpha
    adjacency += alpha * np.maximum.outer(scaled, scaled)
    return adjacency


def spearman(responses: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of the columns, with average ties.

    Args:
        responses: array of shape `(samples, features)` without constant columns.

    Returns:
        Float64 array of shape `(features, features)`.
    """
    from scipy.stats import rankdata

    ranks = rankdata(responses.T, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    return ranks @ ranks.T


def _path_energy(adjacency: np.ndarray) -> np.ndarray:
    """Row sums of (I - r A)^-1 - I."""
    from scipy.linalg import solve
    from scipy.sparse.linalg import eigsh

    n = len(adjacency)
    if n == 1:
        radius = abs(adjacency[0, 0])
    else:
        start = adjacency.sum(axis=1)
        radius = eigsh(adjacency, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    if radius <= 0:
        return np.zeros(n)
    system = adjacency * (-0.9 / radius)
    system.flat[:: n + 1] += 1
    # I - r A is symmetric with eigenvalues of at least 0.1.
    return solve(system, np.ones(n), assume_a="pos", overwrite_a=True, check_finite=False) - 1
