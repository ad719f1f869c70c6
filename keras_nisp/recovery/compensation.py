"""The remaining channels make up for the removed ones: by their mean, or linearly."""

import math
from collections import Counter, defaultdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap, Traced
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.unit_map import DROPPED, UnitMap
from keras_nisp.data.samples import Samples
from keras_nisp.importance.base import run, spatial_axes
from keras_nisp.keras_graph.masks import mask_of, spread_mask
from keras_nisp.keras_graph.recording import recorded
from keras_nisp.recovery.assigning import assign_finite, check_finite
from keras_nisp.recovery.batch_statistics import BatchStatistics
from keras_nisp.recovery.carrier import Carrier, memory
from keras_nisp.recovery.pair import Pair, Reader
from keras_nisp.recovery.untrained import untrained

COMPENSATIONS = ("auto", "linear", "mean", None)
MOST_FEATURES = 4096  # solving for more takes too long
MOST_SAMPLES = 1024
MOST_MEMORY = 2 << 30  # bytes of activations that the walk carries along
MOST_VALUES = 1 << 25  # positions that a regression looks at, times features
STRENGTHS = np.logspace(-4, 2, 13)  # of the ridge, over the mean variance of a feature


def check_compensation(compensate: Any, possible: bool, needed: str) -> None:
    """Raises unless `compensate` names a way to make up for what was removed that is possible.

    Args:
        compensate: the user's argument.
        possible: whether there is all that it takes.
        needed: what it takes, for the error.
    """
    if compensate not in COMPENSATIONS:
        raise ValueError(
            "Expected `compensate` to be 'auto', 'linear', 'mean' or None. "
            f"Received: compensate={compensate!r}"
        )
    if compensate in ("linear", "mean") and not possible:
        raise ValueError(
            f"Expected {needed} for compensate={compensate!r}. Received none: pass them, or leave "
            "`compensate` out."
        )


# Means ------------------------------------------------------------------------------


def fold_means(pair: Pair, samples: Samples, batch_size: int) -> None:
    """Adds to each bias the mean that removed channels contributed in the original.

    Args:
        pair: the original and the pruned model.
        samples: on which means are taken.
        batch_size: how many of them at a time.
    """
    with untrained(pair):
        _fold(pair, pair.readers, samples, batch_size)


def _fold(pair: Pair, readers: list[Reader], samples: Samples, batch_size: int) -> None:
    removed = pair.unit_map.into == DROPPED
    folded = {r.call.layer: r for r in readers if r.bias is not None and removed[r.units].any()}
    if not folded:
        return
    sums: dict[keras.Layer, Any] = defaultdict(float)  # then an array: one for each input
    counts: dict[keras.Layer, float] = defaultdict(float)

    def on_read(call, index, tensor):
        if call.layer in folded:
            names = call.inputs[index].names
            axes, mask = spatial_axes(names), mask_of(tensor)
            tensor = tf.cast(tensor, tf.float32)
            weights = None if mask is None else spread_mask(mask, tensor)
            mean = tf.reduce_mean(tensor if weights is None else tensor * weights, axes)
            sums[call.layer] += np.asarray(tf.reduce_sum(mean, 0), np.float64).ravel()
            share = 1 if weights is None else float(tf.reduce_mean(weights))
            counts[call.layer] += share * len(tensor)
        return tensor

    for inputs, _ in samples.batches(batch_size):
        run(pair.large, inputs, on_read)
    for layer, reader in folded.items():
        missing = np.where(removed[reader.units], sums[layer] / (counts[layer] or 1), 0)
        (create,) = reader.kernel.create
        bias = np.asarray(reader.bias, np.float64) + missing @ reader.tap_sums()
        made = pair.unit_map.own(tf.constant(bias), 0, reader.kernel.axes[create])
        assign_finite(reader.made.bias, made, reader.call.path)


# Linear maps ------------------------------------------------------------------------


def compensate_linearly(pair: Pair, samples: Samples, batch_size: int, ridge: float | None) -> None:
    """Gives kernels the weights with which the kept channels make up for all.

    Both networks run side by side, layer by layer. What a layer of the original takes in is
    regressed on what its twin takes in, which the layers before, repaired by then, made of the
    same samples. So errors do not add up.

    A layer that is called several times has no one place in that order: the means of what it
    misses go into its bias.

    Args:
        pair, samples, batch_size: as for `fold_means`.
        ridge: strength of the regularisation over the mean variance of a feature; by default
            chosen for each layer.
    """
    if not pair.unit_map.keep.all():
        with untrained(pair):
            _compensate(pair, samples, batch_size, ridge)


def _compensate(pair: Pair, samples: Samples, batch_size: int, ridge: float | None) -> None:
    large, unit_map = pair.large, pair.unit_map
    calls = Counter(call.layer for call in large.calls)
    shared = [reader for reader in pair.readers if calls[reader.call.layer] > 1]
    _fold(pair, shared, samples, batch_size)
    single = {reader.call: reader for reader in pair.readers if calls[reader.call.layer] == 1}
    normalised = _normalised(large)

    widths = np.ones_like(unit_map.keep), unit_map.keep
    samples = _some(samples, sum(memory(large, keep, samples) for keep in widths))
    counts = [len(call.outputs) for call in large.calls]
    original = Carrier(recorded(large.model, counts), samples, batch_size)
    twin = Carrier(pair.twins, samples, batch_size)
    for call, other in zip(large.calls, pair.twins, strict=True):
        if reader := single.get(call):
            constant = reader.bias is not None or call.outputs[0] in normalised
            x, z = original.inputs(), twin.inputs()
            _repair(reader, unit_map, *_regress(reader, unit_map, x, z, constant, ridge))
        layer = other.operation
        if normalisation := rule_of(layer).normalisation(layer):
            _renew(BatchStatistics(layer, normalisation), twin)
        original.step()
        twin.step()


def _normalised(channel_map: ChannelMap) -> set[Traced]:
    """Tensors whose missing constant the next normalisation absorbs."""
    linear = {
        tensor
        for call in channel_map.calls
        if getattr(call.layer, "activation", None) in (None, keras.activations.linear)
        for tensor in call.outputs
    }
    normalised = {
        tensor
        for call in channel_map.calls
        if rule_of(call.layer).normalisation(call.layer)
        for tensor in call.inputs
    }
    return linear & normalised


def _some(samples: Samples, memory: int) -> Samples:
    """As many samples as a walk may carry, evenly spaced: data may be sorted by class.

    Args:
        samples: all.
        memory: bytes that the walk takes for a sample.
    """
    count = max(1, min(MOST_SAMPLES, MOST_MEMORY // memory))
    step = math.ceil(len(samples) / count)
    return samples.every(step)


def _renew(statistics: BatchStatistics, carrier: Carrier) -> None:
    """Sets moving statistics to those of what the call that comes next is given."""
    for args, kwargs in carrier.arguments():
        statistics.add(*args, **kwargs)
    statistics.assign()


def _regress(
    reader: Reader, unit_map: UnitMap, given: list, taken: list, constant: bool, ridge: float | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Ridge regression of the original's features on the kept ones.

    Without data the kept features would stand for themselves alone, as after the surgery: the
    ridge draws towards that, so what is regressed is what this leaves over.

    Args:
        reader: the layer.
        unit_map: what became of the units.
        given, taken: batches of what enters the layer and its twin.
        constant: whether a constant can be added after the kernel.
        ridge: as for `compensate_linearly`.

    Returns:
        The map `(kept features, features)`, `None` if there are too many, and a constant for
        each feature of the original.
    """
    axes = [axis for axis, size in enumerate(reader.call.inputs[0].names.shape, 1) if size > 1]
    x, z = _rows(given, taken, axes[0] if axes else None)
    for rows in (x, z):
        check_finite(rows, f"What enters layer '{reader.call.path}' is")
    labels = unit_map.labels(reader.units)
    residual = x - np.where(labels == DROPPED, 0, z[:, labels])
    mean_residual, mean_z = residual.mean(0), z.mean(0)
    if not constant:
        mean_residual, mean_z = np.zeros_like(mean_residual), np.zeros_like(mean_z)
    if z.shape[1] > MOST_FEATURES:
        return None, mean_residual
    change = _ridge(residual - mean_residual, z - mean_z, ridge)
    return change, mean_residual - mean_z @ change


def _ridge(residual: np.ndarray, z: np.ndarray, ridge: float | None) -> np.ndarray:
    """Coefficients `(features of z, features of residual)`, without an intercept.

    A Dense layer behind Flatten may have more features than there are samples, and a convolution
    far fewer than positions: by default generalised cross-validation chooses the strength.
    """
    variances, directions = np.linalg.eigh(z.T @ z / len(z))
    variances = np.maximum(variances, 0)
    scale = variances.mean()
    if scale == 0:
        return np.zeros((z.shape[1], residual.shape[1]))  # what is constant tells nothing
    along = directions.T @ (z.T @ residual) / len(z)
    total, parts = (residual**2).sum() / len(z), (along**2).sum(1)

    def expected_error(strength):
        shrunk = variances + strength
        left = total - (parts * (shrunk + strength) / shrunk**2).sum()
        return left / (1 - (variances / shrunk).sum() / len(z)) ** 2

    strengths = scale * (STRENGTHS if ridge is None else np.array([ridge]))
    best = min(strengths, key=expected_error)
    return directions @ (along / (variances + best)[:, None])


def _rows(x: list, z: list, axis: int | None) -> list[np.ndarray]:
    """Values along an axis at the same positions of both, some of all: `(positions, features)`.

    Without an axis there is one feature.
    """
    rng = np.random.default_rng(0)
    features = 1 if axis is None else x[0].shape[axis]
    share = MOST_VALUES // (features * len(x)) + 1
    rows: tuple[list, list] = ([], [])
    for pair in zip(x, z, strict=True):
        flat, mask = [_positions_first(tensor, axis) for tensor in pair], mask_of(pair[0])
        if mask is not None:  # what is masked does not count later either
            counts = _positions_first(spread_mask(mask, pair[0]), axis)[:, 0] > 0
            flat = [tf.boolean_mask(values, counts) for values in flat]
        if len(flat[0]) > share:
            chosen = np.sort(rng.choice(len(flat[0]), share, replace=False))
            flat = [tf.gather(values, chosen) for values in flat]
        for collected, values in zip(rows, flat, strict=True):
            collected.append(np.asarray(values, np.float64))
    return [np.concatenate(collected) for collected in rows]


def _positions_first(tensor: tf.Tensor, axis: int | None) -> tf.Tensor:
    if axis is None:
        return tf.reshape(tensor, (-1, 1))
    rank = len(tensor.shape)
    if axis != rank - 1:
        tensor = tf.transpose(tensor, [i for i in range(rank) if i != axis] + [axis])
    return tf.reshape(tensor, (-1, tensor.shape[-1]))


def _repair(reader: Reader, unit_map: UnitMap, change: np.ndarray | None, constant) -> None:
    """Writes the twin's kernel and bias, made of the original's."""
    (read,), (create,) = reader.kernel.read, reader.kernel.create
    outputs, made = reader.kernel.axes[create], reader.made
    weights = np.asarray(reader.kernel.variable, np.float64)
    kernel = unit_map.read(tf.constant(weights), read, reader.units)
    if change is not None:
        kernel += np.moveaxis(np.tensordot(change, weights, (1, read)), 0, read)
    assign_finite(made.kernel, unit_map.own(kernel, create, outputs), reader.call.path)
    if reader.bias is not None:
        bias = np.asarray(reader.bias, np.float64) + constant @ reader.tap_sums()
        assign_finite(made.bias, unit_map.own(tf.constant(bias), 0, outputs), reader.call.path)
