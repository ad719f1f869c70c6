"""How far outputs may be apart that should be the same, and how far rounding moves them."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp import graph

TOLERANCE = 1e-4
# However much a network amplifies rounding errors, more than this is an error.
LARGEST_TOLERANCE = 0.05


def default_tolerance(model: keras.Model) -> float:
    """How far, over their scale, outputs may be apart that should be the same."""
    return LARGEST_TOLERANCE if graph.is_half(model) else TOLERANCE


def relative_difference(expected: Any, received: Any) -> float:
    """The largest difference of any output over the scale of that output."""
    worst = 0.0
    pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(received), strict=True)
    for want, got in pairs:
        want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
        if want.shape != got.shape:
            return np.inf
        difference = np.abs(want - got).max(initial=0) / (np.abs(want).max(initial=0) or 1.0)
        worst = np.maximum(worst, difference)  # keeps NaN
    return float(worst)


def allowed(model: keras.Model, inputs: list, least: float) -> float:
    """The tolerance for a network that may amplify rounding errors; never less than `least`."""
    return max(least, min(10 * amplification(model, inputs), LARGEST_TOLERANCE))


def amplification(model: keras.Model, inputs: list, change: float = 1e-6) -> float:
    """What a small relative change of the inputs does to the outputs, over their scale.

    Indices and words cannot change a little. Where there is nothing else, weights change.
    """
    rng = np.random.default_rng(0)
    floats = any(x.dtype.is_floating for x in inputs)

    def moved(x, change):
        if not x.dtype.is_floating:
            return x
        return x * tf.constant(1 + change * rng.choice([-1.0, 1.0], x.shape), x.dtype)

    def outputs(change):
        values = [moved(x, change) for x in inputs]
        weights = [] if floats else model.weights
        changed = [(w, moved(tf.convert_to_tensor(w), change)) for w in weights]
        with keras.StatelessScope(state_mapping=changed):
            return graph.answer(model, values)

    return relative_difference(outputs(0.0), outputs(change))
