"""Whether samples are in the range that a model was trained on: 0 to 255, or 0 to 1?"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.data import Samples
from keras_nisp.tracing import trace_quietly

LARGEST_RATIO = 8.0  # other data of the same kind differ by less, another range by 255
CHECKED = 64


def starts_with_rescaling(model: keras.Model) -> bool:
    """Whether the first layer that changes values is `Rescaling` or `Normalization`."""
    for call in trace_quietly(model).calls:
        if isinstance(call.layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            return True
        if call.weights:
            return False
    return False


def check_range(model: keras.Model, samples: Samples) -> str | None:
    """What is odd about the range of samples, in a sentence; `None` if nothing is.

    The statistics of the first BatchNormalization tell what entered it in training. A model
    without one says nothing, unless data look like pixels from 0 to 255 and nothing rescales them.

    Args:
        model: a functional or Sequential model.
        samples: from `keras_nisp.data.collect`.
    """
    low = min(float(array[:CHECKED].min(initial=np.inf)) for array in samples.inputs)
    high = max(float(array[:CHECKED].max(initial=-np.inf)) for array in samples.inputs)
    found = f"values from {low:g} to {high:g}"
    ratio = _first_ratio(model, samples)
    if ratio is not None:
        if ratio > LARGEST_RATIO or ratio < 1 / LARGEST_RATIO:
            return (
                f"{found} seem to be in another range than the model was trained on: what enters "
                f"its first BatchNormalization is {ratio:.3g} times as large as in training."
            )
        return None
    pixels = low >= 0 and 100 < high <= 255
    if pixels and not starts_with_rescaling(model):
        return f"{found} look like pixels, but nothing in the model rescales them. Is it right?"
    return None


class _Found(Exception):  # noqa: N818
    """Ends a walk."""


def _first_ratio(model: keras.Model, samples: Samples) -> float | None:
    """Root mean square of what enters the first BatchNormalization, over that in training."""
    channel_map, ratios = trace_quietly(model), []
    inputs = [tf.convert_to_tensor(array[:CHECKED]) for array in samples.inputs]

    def visit(call, args, kwargs):
        layer = call.layer
        if isinstance(layer, keras.layers.BatchNormalization):
            mean, variance = (
                np.asarray(v, np.float64) for v in (layer.moving_mean, layer.moving_variance)
            )
            if not (np.all(mean == 0) and np.all(variance == 1)):  # it was trained
                value = np.moveaxis(np.asarray(args[0], np.float64), layer.axis, -1)
                measured = (value.reshape(-1, value.shape[-1]) ** 2).mean(0)
                expected = np.maximum(mean**2 + variance, 1e-12)
                ratios.append(float(np.sqrt(np.median(measured / expected))))
            raise _Found
        return call.infer(*args, **kwargs)

    with contextlib.suppress(_Found):
        channel_map.walk(inputs, visit)
    return ratios[0] if ratios else None
