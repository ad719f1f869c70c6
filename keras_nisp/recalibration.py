"""Re-estimates BatchNormalization statistics after a removal."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels import trace
from keras_nisp.data import collect


def recalibrate(
    model: keras.Model,
    calibration: Any,
    max_samples: int = 4096,
    batch_size: int = 256,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Re-estimates the moving statistics of every BatchNormalization, in place.

    A pruned channel leaves the sums that later layers were normalised for. New means and
    variances over a few thousand samples recover much of the accuracy, without
    labels and without training.

    Args:
        model: the pruned model. Its moving means and variances are replaced, once all of
            them are known; nothing else changes.
        calibration: samples, as for `NISP`.
        max_samples: how many samples are used.
        batch_size: each batch is normalised by its own statistics on its way through.
        seed: for sampling calibration data.
        verbose: 1 shows a progress bar while data are read.

    Returns:
        The model itself.

    Raises:
        ValueError: calibration data are empty, do not fit or are not finite.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    >>> x = np.random.default_rng(0).normal(3.0, 1.0, size=(512, 4))
    >>> _ = recalibrate(model, x)
    >>> np.allclose(model.layers[0].moving_mean, x.mean(0), atol=1e-4)
    True
    """
    channel_map = trace(model)
    samples = collect(calibration, model, max_samples, seed=seed, verbose=verbose)
    sums: dict[int, tuple] = {}

    def visit(call, args, kwargs):
        if not isinstance(call.layer, keras.layers.BatchNormalization):
            return call.layer(*args, **kwargs)
        x, layer = args[0], call.layer
        axes = [axis for axis in range(len(x.shape)) if axis != layer.axis % len(x.shape)]
        mean, variance = tf.nn.moments(tf.cast(x, tf.float32), axes)
        weight = len(x)
        moments = np.stack([mean, variance + mean**2]).astype(np.float64) * weight
        known, count, _ = sums.get(id(layer), (0.0, 0, layer))
        sums[id(layer)] = (known + moments, count + weight, layer)
        y = keras.ops.batch_normalization(
            tf.cast(x, tf.float32),
            mean,
            variance,
            axis=layer.axis,
            offset=layer.beta,
            scale=layer.gamma,
            epsilon=layer.epsilon,
        )
        return tf.cast(y, layer.compute_dtype)

    for inputs, _ in samples.batches(batch_size):
        channel_map.walk(inputs, visit)
    for total, count, layer in sums.values():
        mean, square = total / count
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(square - mean**2, 0))
    return model
