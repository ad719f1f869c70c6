"""Which channels are to become identical: ways to cluster them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap, Group
from keras_nisp.data.calibration import Calibration
from keras_nisp.importance.base import per_unit, run
from keras_nisp.keras_graph.masks import level

METHODS = ("kmeans", "activations", "even", "imbalanced")
OWNERS = ("all", "pacesetter")


def even(count: int, clusters: int) -> np.ndarray:
    """Labels of neighbors; the first clusters get one more if they cannot be equal."""
    return np.repeat(np.arange(clusters), [len(p) for p in np.array_split(range(count), clusters)])


def imbalanced(count: int, clusters: int) -> np.ndarray:
    """Labels with one large cluster and singletons: the paper's counter-example."""
    return np.maximum(np.arange(count) - (count - clusters), 0)


def kmeans(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Labels by k-means on the rows; every cluster has a member.

    Args:
        features: array `(channels, features)`.
        clusters: their number.
        seed: of the starting points.
    """
    if clusters == len(features):
        return np.arange(clusters)
    if features.shape[1] > len(features):
        # Turned into as many dimensions as there are rows: all distances stay.
        rotated, scale, _ = np.linalg.svd(features, full_matrices=False)
        features = rotated * scale
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        starts = max(1, 256 // len(features))  # few rows may start badly, many take long
        labels = KMeans(clusters, n_init=starts, random_state=seed % 2**32).fit(features).labels_
    return _without_empty(labels, clusters)


def _without_empty(labels: np.ndarray, clusters: int) -> np.ndarray:
    """Moves members of the largest clusters into empty ones."""
    labels = labels.copy()
    for empty in np.setdiff1d(np.arange(clusters), labels):
        largest = np.bincount(labels).argmax()
        labels[np.flatnonzero(labels == largest)[-1]] = empty
    return labels


def kernel_features(channel_map: ChannelMap, units: np.ndarray, layers: set | None) -> np.ndarray:
    """The filters of channels: one row for each unit, kernels of all layers side by side.

    Each kernel is brought to unit variance, so that a layer before a BatchNormalization, whose
    scale means nothing, counts as much as the others.

    Args:
        channel_map: the traced model.
        units: of one block, ascending.
        layers: paths of the layers whose kernels count; all by default.
    """
    parts = []
    for binding in channel_map.bindings.values():
        for axis in binding.create:
            if layers is not None and binding.layer not in layers:
                continue
            at = np.flatnonzero(np.isin(binding.axes[axis], units))
            if len(at):
                # One row after another of each unit: all lie here equally often.
                at = at[np.argsort(binding.axes[axis][at], kind="stable")]
                rows = np.moveaxis(np.asarray(binding.value, np.float32), axis, 0)[at]
                part = rows.reshape(len(units), -1)
                parts.append(part / (part.std() or 1.0) / np.sqrt(part.shape[1]))
    return np.concatenate(parts, 1)


def activation_features(channel_map: ChannelMap, calibration: Calibration) -> np.ndarray:
    """Standardised responses of all units: one row for each.

    Responses are taken where kernels read them, summed over positions, and summed over
    the layers that read a unit.
    """
    samples = calibration.samples(channel_map.model)
    columns = []
    for inputs, _ in samples.batches(verbose=calibration.verbose, text="Clustering channels"):
        total = np.zeros((channel_map.count, len(inputs[0])), np.float32)

        def on_read(call, index, tensor):
            units, values = per_unit(level(tensor), call.inputs[index].names)
            # Positions that were moved into the batch axis belong to their sample.
            values = values.reshape(total.shape[1], -1, len(units)).sum(1)  # noqa: B023
            deviation = values.std() or 1.0
            total[units] += values.T / deviation  # noqa: B023
            return tensor

        run(channel_map, inputs, on_read)
        columns.append(total)
    return np.concatenate(columns, 1)


class Clustering:
    """Puts the units of a block into a number of clusters.

    Args:
        channel_map: the traced model.
        method: one of `METHODS`, or `f(features, clusters) -> labels` on the rows of
            `kernel_features`.
        owners: one of `OWNERS`: whose kernels count in a coupled group.
        calibration: samples, for "activations".
        seed: for k-means, and for sampling calibration data.
    """

    def __init__(
        self,
        channel_map: ChannelMap,
        method: str | Callable = "kmeans",
        owners: str = "all",
        calibration: Any = None,
        seed: int = 0,
    ):
        if not callable(method) and method not in METHODS:
            raise ValueError(
                f"Expected `clustering` to be one of {METHODS} or a callable. Received: {method!r}"
            )
        if owners not in OWNERS:
            raise ValueError(f"Expected `owners` to be one of {OWNERS}. Received: {owners!r}")
        if method == "activations" and calibration is None:
            raise ValueError("Expected `calibration` samples with `clustering='activations'`.")
        self.channel_map = channel_map
        self.method = method
        self.owners = owners
        self.seed = seed
        self.responses = None
        if method == "activations":
            data = calibration
            if not isinstance(data, Calibration):
                data = Calibration(calibration, limit=1024, seed=seed)
            self.responses = activation_features(channel_map, data)

    def __call__(self, group: Group, units: np.ndarray, clusters: int) -> np.ndarray:
        """A label in 0...clusters-1 for each unit."""
        if self.method == "even":
            return even(len(units), clusters)
        if self.method == "imbalanced":
            return imbalanced(len(units), clusters)
        if self.responses is not None:
            return kmeans(self.responses[units], clusters, self.seed)
        features = kernel_features(self.channel_map, units, self._layers(group, units))
        if callable(self.method):
            labels = self.method(features, clusters)
            name = getattr(self.method, "__name__", type(self.method).__name__)
            return _checked_labels(labels, len(units), clusters, name)
        return kmeans(features, clusters, self.seed)

    def _layers(self, group: Group, units: np.ndarray) -> set[str] | None:
        """The pacesetter: the first layer of the walk that creates the units."""
        if self.owners == "all":
            return None
        for index in group.creators:
            creator = self.channel_map.creators[index]
            if np.isin(units, creator.units).all():
                return {creator.layer}
        return None


def _checked_labels(labels: Any, count: int, clusters: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,) or set(labels.tolist()) != set(range(clusters)):
        raise ValueError(
            f"Expected clustering '{name}' to give each of {count} channels a label from 0 to "
            f"{clusters - 1}, and to use all of them. Received: {labels!r}"
        )
    return labels
