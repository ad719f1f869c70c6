"""The statistics of layers that normalize by them, taken over many batches."""

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.rule import Normalisation
from keras_nisp.keras_graph.masks import mask_of
from keras_nisp.kernels.patches import positions_first
from keras_nisp.recovery.assigning import assign_finite
from keras_nisp.recovery.pair import Pair

LEAST_SPREAD = 1e-3  # of a variance by which a layer normalizes


class BatchStatistics:
    """Means and variances of what enters one layer that normalizes by them.

    Masked time steps do not count, as in training.

    Args:
        layer: whose statistics they are.
        normalisation: how it normalizes, by its rule.
        most: how many positions of a sample are looked at; they are drawn, the same ones for
            another layer on the same samples. By default all of them are.
    """

    def __init__(self, layer: keras.Layer, normalisation: Normalisation, most: int | None = None):
        self.layer, self.normalisation, self.most = layer, normalisation, most
        self.rng = np.random.default_rng(0)
        self.moments = np.zeros(())  # then two for each channel
        self.count = np.zeros(())
        self.dtype = tf.float64 if layer.compute_dtype == "float64" else tf.float32

    def add(self, inputs: tf.Tensor, training=None, mask=None) -> tuple[np.ndarray, np.ndarray]:
        """Takes in one more batch, and returns its mean and variance, by channel.

        Args:
            inputs, training, mask: as of the layer's call.
        """
        x, rank = tf.cast(inputs, self.dtype), len(inputs.shape)
        channels = self.normalisation.axis % rank
        mask = mask_of(inputs) if mask is None else mask
        if mask is None:
            rows, count = positions_first(x, channels), np.asarray(len(x), np.float64)
            if self.most is not None and self.most < rows.shape[1]:
                chosen = self.rng.choice(rows.shape[1], self.most, replace=False)
                rows = tf.gather(rows, np.sort(chosen), axis=1)
            mean = _mean(rows)
            moments = mean, _mean(tf.math.squared_difference(rows, mean))
        else:
            axes = [axis for axis in range(rank) if axis != channels]
            weights = tf.cast(tf.broadcast_to(tf.expand_dims(mask, -1), x.shape), x.dtype)
            total = tf.reduce_sum(weights, axes)
            mean = tf.math.divide_no_nan(tf.reduce_sum(x * weights, axes), total)
            at = [-1 if axis not in axes else 1 for axis in range(rank)]
            squares = (x - tf.reshape(mean, at)) ** 2
            variance = tf.math.divide_no_nan(tf.reduce_sum(squares * weights, axes), total)
            moments, count = (mean, variance), np.asarray(total, np.float64)
        mean, variance = (np.asarray(moment, np.float64) for moment in moments)
        self.moments = self.moments + np.stack([mean, variance + mean**2]) * count
        self.count = self.count + count
        return mean, variance

    def normalised(self, inputs: tf.Tensor, training=None, mask=None) -> tf.Tensor:
        """Takes in one more batch, and gives what the layer gives of it while training."""
        mean, variance = self.add(inputs, training, mask)
        offset, scale = (
            None if vector is None else tf.cast(tf.convert_to_tensor(vector), self.dtype)
            for vector in (self.normalisation.offset, self.normalisation.scale)
        )
        y = keras.ops.batch_normalization(
            tf.cast(inputs, self.dtype),
            tf.constant(mean, self.dtype),
            tf.constant(variance, self.dtype),
            axis=self.normalisation.axis,
            offset=offset,
            scale=scale,
            epsilon=self.normalisation.epsilon,
        )
        return tf.cast(y, self.layer.compute_dtype)

    @property
    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of everything that was added."""
        mean, square = self.moments / self.count
        return mean, np.maximum(square - mean**2, 0)

    def assign(self) -> None:
        """Makes them the layer's moving statistics, if anything counted."""
        if not np.all(self.count):
            return
        mean, variance = self.result
        assign_finite(self.normalisation.mean, mean, self.layer.name)
        assign_finite(self.normalisation.variance, variance, self.layer.name)


def _mean(rows: tf.Tensor) -> tf.Tensor:
    """Over samples and positions: by products, which are faster than sums and more exact."""
    count = rows.shape[1]
    return tf.reduce_mean(
        tf.matmul(tf.fill((1, count), tf.cast(1 / count, rows.dtype)), rows), (0, 1)
    )


def keep_ratio(large: BatchStatistics, small: BatchStatistics, pair: Pair) -> None:
    """Changes moving statistics as those of the same samples changed from one model to the other.

    What the samples have in common cancels out: that they are few, or that a layer deliberately
    normalizes by something else than what it takes in.

    Args:
        large, small: of the original and of the smaller model, on the same samples.
        pair: the two models.
    """
    if not (np.all(large.count) and np.all(small.count)):
        return

    def kept(values):
        if np.ndim(values) == 0 or binding is None:
            return values
        return np.asarray(pair.unit_map.own(tf.constant(values), 0, binding.axes[0]))

    known, binding = large.normalisation, pair.large.bindings.get(id(large.normalisation.mean))
    stored = (kept(np.asarray(v, np.float64)) for v in (known.mean, known.variance))
    (mean, variance), (before, spread), (after, made) = (
        stored,
        map(kept, large.result),
        small.result,
    )
    least = LEAST_SPREAD * (variance + known.epsilon)  # of a channel that the samples do not reach
    ratio = np.sqrt((made + least) / (spread + least))
    changed = ratio**2 * (variance + known.epsilon) - known.epsilon
    assign_finite(small.normalisation.mean, after - ratio * (before - mean), small.layer.name)
    assign_finite(small.normalisation.variance, np.maximum(changed, 0), small.layer.name)
