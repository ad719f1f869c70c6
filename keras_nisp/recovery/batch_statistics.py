"""The statistics of layers that normalise by them, taken over many batches."""

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.rule import Normalisation
from keras_nisp.keras_graph.masks import mask_of
from keras_nisp.recovery.assigning import assign_finite


class BatchStatistics:
    """Means and variances of what enters one layer that normalises by them.

    Masked time steps do not count, as in training.

    Args:
        layer: whose statistics they are.
        normalisation: how it normalises, by its rule.
    """

    def __init__(self, layer: keras.Layer, normalisation: Normalisation):
        self.layer, self.normalisation = layer, normalisation
        self.moments = np.zeros(())  # then two for each channel
        self.count = np.zeros(())
        self.dtype = tf.float64 if layer.compute_dtype == "float64" else tf.float32

    def add(self, inputs: tf.Tensor, training=None, mask=None) -> tuple[np.ndarray, np.ndarray]:
        """Takes in one more batch, and returns its mean and variance, by channel.

        Args:
            inputs, training, mask: as of the layer's call.
        """
        x, rank = tf.cast(inputs, self.dtype), len(inputs.shape)
        axes = [axis for axis in range(rank) if axis != self.normalisation.axis % rank]
        mask = mask_of(inputs) if mask is None else mask
        if mask is None:
            moments, count = tf.nn.moments(x, axes), np.asarray(len(x), np.float64)
        else:
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

    def assign(self) -> None:
        """Makes them the layer's moving statistics, if anything counted."""
        if not np.all(self.count):
            return
        mean, square = self.moments / self.count
        variance = np.maximum(square - mean**2, 0)
        assign_finite(self.normalisation.mean, mean, self.layer.name)
        assign_finite(self.normalisation.variance, variance, self.layer.name)
