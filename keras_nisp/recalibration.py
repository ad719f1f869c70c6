"""Repairs a pruned model on calibration data, without labels and without training."""

from collections import defaultdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels import ChannelMap
from keras_nisp.data import Samples, collect
from keras_nisp.importance.base import run, spatial_axes
from keras_nisp.plan import Plan
from keras_nisp.tracing import trace
from keras_nisp.unit_map import DROPPED


def recalibrate(
    model: keras.Model,
    calibration: Any,
    original: keras.Model | None = None,
    plan: Plan | None = None,
    max_samples: int = 4096,
    batch_size: int = 256,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Re-estimates BatchNormalization statistics of a pruned model, in place.

    A pruned channel leaves the sums that later layers were normalised for. New means and
    variances over a few thousand samples recover much of the accuracy. Where no
    BatchNormalization follows, such as in the classifier, the mean of what is missing
    can be put into the bias: give `original` and `plan` for that.

    Args:
        model: the pruned model. Its moving means and variances are replaced, once all of
            them are known; biases too if `original` is given; nothing else changes.
        calibration: samples, as for `NISP`.
        original: the model it was pruned from. It is not changed.
        plan: the plan that it was pruned by.
        max_samples: how many samples are used.
        batch_size: each batch is normalised by its own statistics on its way through.
        seed: for sampling calibration data.
        verbose: 1 shows a progress bar while data are read.

    Returns:
        The model itself.

    Raises:
        ValueError: calibration data are empty, do not fit or are not finite, or only one
            of `original` and `plan` is given.
        PlanMismatchError: `plan` is not for `original`, or `model` is not its result.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    >>> x = np.random.default_rng(0).normal(3.0, 1.0, size=(512, 4))
    >>> _ = recalibrate(model, x)
    >>> np.allclose(model.layers[0].moving_mean, x.mean(0), atol=1e-4)
    True
    """
    if (original is None) != (plan is None):
        raise ValueError(
            "Expected `original` and `plan` together: the model before pruning, and what was "
            "removed from it. Received only one of them."
        )
    samples = collect(calibration, model, max_samples, seed=seed, verbose=verbose)
    channel_map = trace(model) if plan is None else plan.trace(model)
    if original is not None:
        _fold_means(channel_map, plan.trace(original), plan, samples, batch_size)
    _renew_statistics(channel_map, samples, batch_size)
    return model


def _renew_statistics(channel_map: ChannelMap, samples: Samples, batch_size: int) -> None:
    sums: dict[int, tuple] = {}

    def visit(call, args, kwargs):
        if not isinstance(call.layer, keras.layers.BatchNormalization):
            return call.infer(*args, **kwargs)
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


def _fold_means(small: ChannelMap, large: ChannelMap, plan: Plan, samples, batch_size) -> None:
    """Adds to each bias the mean that removed channels contributed in the original.

    Padding is left out of account. A layer whose kernel does not read its input directly
    (separable and grouped convolutions, recurrent layers, attention) is passed over.
    """
    removed = plan.unit_map(large).into == DROPPED
    plan.check_result(small)
    folded = {}
    for call, twin in zip(large.calls, small.calls, strict=True):
        kernel = _plain_kernel(large, call)
        if kernel is not None and removed[call.inputs[0].names].any():
            folded[call.layer] = (kernel, twin.layer.bias)
    sums, counts = defaultdict(float), defaultdict(int)

    def on_read(call, index, tensor):
        if call.layer in folded:
            names = call.inputs[index].names
            mean = tf.reduce_mean(tf.cast(tensor, tf.float32), spatial_axes(names))
            sums[call.layer] += np.asarray(tf.reduce_sum(mean, 0), np.float64).ravel()
            counts[call.layer] += len(tensor)
        return tensor

    for inputs, _ in samples.batches(batch_size):
        run(large, inputs, on_read)
    for layer, (kernel, bias) in folded.items():
        (read,), (create,) = kernel.read, kernel.create
        weights = np.moveaxis(np.asarray(kernel.variable, np.float64), (read, create), (0, 1))
        weights = weights.reshape(*weights.shape[:2], -1).sum(-1)
        missing = np.where(removed[kernel.axes[read]], sums[layer] / counts[layer], 0)
        kept = ~removed[kernel.axes[create]]
        bias.assign_add((missing @ weights)[kept])


def _plain_kernel(channel_map: ChannelMap, call):
    """The binding of the one kernel of a biased layer, if it reads the layer's input."""
    if not call.reads or getattr(call.layer, "bias", None) is None:
        return None
    bindings = [channel_map.bindings.get(id(weight)) for weight in call.layer.weights]
    kernels = [binding for binding in bindings if binding is not None and binding.positions]
    if len(kernels) != 1 or len(kernels[0].read) != 1 or len(kernels[0].create) != 1:
        return None
    if len(kernels[0].variable.shape) > 2 and not hasattr(call.layer, "kernel_size"):
        return None  # an EinsumDense that reads several axes
    (read,) = kernels[0].read
    same = np.array_equal(kernels[0].axes[read], call.inputs[0].names.ravel())
    return kernels[0] if same else None
