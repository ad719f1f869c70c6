"""Importances that use only weights, and the random baseline."""

import numbers

import numpy as np

from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.registry import rule_of
from keras_nisp.errors import check_count, check_number
from keras_nisp.importance.base import Importance, check_setting, scored_where


class _Kernels(Importance):
    """Sums a score of each filter over the layers that create a unit."""

    def filters(self, filters: np.ndarray) -> np.ndarray:
        """Scores of filters, given as the rows of a float64 array."""
        raise NotImplementedError

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        total, seen = np.zeros(channel_map.count), []
        for binding in channel_map.bindings.values():
            for axis in binding.create:
                units = binding.axes[axis]
                total += channel_map.accumulate(units, self.filters(_rows(binding, axis)))
                seen.append(units)
        return scored_where(channel_map, total, seen)


def _rows(binding: Binding, axis: int) -> np.ndarray:
    kernel = np.asarray(binding.value, np.float64)
    return np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)


class Magnitude(_Kernels):
    """The Lp norm of each filter, summed over coupled layers.

    Args:
        p: 1 for the L1 norm, 2 for the Euclidean one.

    Raises:
        TypeError: `p` is not a number.
        ValueError: `p` is not above 0.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan_pruning(model, Magnitude(p=2), ratio=0.5).creators[0].kept
    4

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p=1).
    """

    def __init__(self, p: float = 1) -> None:
        check_setting("p", p, numbers.Real, "a number")
        check_number("p", p, "above 0", lambda p: p > 0)
        self.p = p

    def filters(self, filters: np.ndarray) -> np.ndarray:
        return np.linalg.norm(filters, self.p, axis=1)


class GeometricMedian(_Kernels):
    """The sum of a filter's distances to the others of its layer: a filter that is near all of
    them can be replaced by them.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan_pruning(model, GeometricMedian(), ratio=0.5).creators[0].kept
    4

    Source: He et al., "Filter Pruning via Geometric Median", CVPR 2019.
    """

    def filters(self, filters: np.ndarray) -> np.ndarray:
        square = (filters**2).sum(1)
        distances = square[:, None] + square - 2 * filters @ filters.T
        return np.sqrt(np.maximum(distances, 0)).sum(1)


class BNScale(Importance):
    """|gamma| of the BatchNormalization after each channel; no score where there is none.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8),
    ...     keras.layers.BatchNormalization(),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan_pruning(model, BNScale(), ratio=0.5).creators[0].kept
    4

    Source: Liu et al., "Network Slimming", ICCV 2017.
    """

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        total, seen = np.zeros(channel_map.count), []
        for layer in {id(call.layer): call.layer for call in channel_map.calls}.values():
            normalisation = rule_of(layer).normalisation(layer)
            binding = channel_map.bindings.get(id(normalisation and normalisation.scale))
            if binding is not None:
                (units,) = binding.axes.values()
                total += channel_map.accumulate(units, np.abs(np.asarray(binding.variable)))
                seen.append(units)
        scores = scored_where(channel_map, total, seen)
        if np.isnan(scores[channel_map.free]).all():
            raise ValueError(
                "Expected BatchNormalization with a scale behind channels that may be removed, for "
                f"BNScale. Model '{channel_map.model.name}' has none: use another importance, such "
                "as Magnitude()."
            )
        return scores


class Random(Importance):
    """Random scores: the baseline that a method has to beat.

    Args:
        seed: seed of the random scores.

    Raises:
        TypeError: `seed` is not an integer.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan = plan_pruning(model, Random(seed=1), ratio=0.5)
    >>> plan == plan_pruning(model, Random(seed=1), ratio=0.5)
    True
    """

    def __init__(self, seed: int = 0) -> None:
        check_setting("seed", seed, numbers.Integral, "an integer")
        check_count("seed", seed, 0)
        self.seed = seed

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        return np.random.default_rng(self.seed).random(channel_map.count)
