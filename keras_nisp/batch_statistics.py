"""The statistics of BatchNormalization, taken over many batches."""

import numpy as np
import tensorflow as tf
from keras import layers


class BatchStatistics:
    """Means and variances of what enters one BatchNormalization.

    Args:
        layer: whose statistics they are.
    """

    def __init__(self, layer: layers.BatchNormalization):
        self.layer = layer
        self.moments = 0.0
        self.samples = 0

    def add(self, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Takes in one more batch, and returns its mean and variance, by channel."""
        axes = [axis for axis in range(len(x.shape)) if axis != self.layer.axis % len(x.shape)]
        moments = tf.nn.moments(tf.cast(x, tf.float32), axes)
        mean, variance = (np.asarray(moment, np.float64) for moment in moments)
        self.moments = self.moments + np.stack([mean, variance + mean**2]) * len(x)
        self.samples += len(x)
        return mean, variance

    def assign(self) -> None:
        """Makes them the layer's moving statistics."""
        mean, square = self.moments / self.samples
        self.layer.moving_mean.assign(mean)
        self.layer.moving_variance.assign(np.maximum(square - mean**2, 0))
