"""How far outputs may be apart that should be the same, and how far rounding moves them."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.keras_graph import calling, keras_models

TOLERANCE = 1e-4
# However much a network amplifies rounding errors, more than this is an error.
LARGEST_TOLERANCE = 0.05


def default_tolerance(model: keras.Model) -> float:
    """How far, over their scale, outputs may be apart that should be the same."""
    return LARGEST_TOLERANCE if keras_models.is_half(model) else TOLERANCE


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference of two arrays, and the largest value of the first."""

    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference over the scale."""
        return self.absolute / self.scale if self.scale else self.absolute


def difference(expected: Any, received: Any) -> Difference:
    """How far two arrays are apart: infinitely, where shapes or texts differ, or one alone is not
    a number."""
    want, got = np.asarray(expected), np.asarray(received)
    if want.shape != got.shape:
        return Difference(np.inf, 1.0)
    if want.dtype.kind in "SUO":
        return Difference(0.0 if (want == got).all() else np.inf, 1.0)
    want, got = want.astype(np.float64), got.astype(np.float64)
    apart = (want != got) & ~(np.isnan(want) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        distance = np.abs(want[apart] - got[apart])
    scale = np.abs(want[np.isfinite(want)]).max(initial=0)
    return Difference(float(np.nan_to_num(distance, nan=np.inf).max(initial=0)), float(scale))


def largest_difference(expected: Any, received: Any) -> Difference:
    """The difference of the output that differs most over its scale."""
    pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(received), strict=True)
    found = (difference(*pair) for pair in pairs)
    return max(found, key=lambda each: each.relative, default=Difference(0.0, 1.0))


def relative_difference(expected: Any, received: Any) -> float:
    """The largest difference of any output over the scale of that output; NaN where one that is
    expected is."""
    if any(np.isnan(np.asarray(x, np.float64)).any() for x in keras.tree.flatten(expected)):
        return np.nan
    return largest_difference(expected, received).relative


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
            return calling.answer(model, values)

    return relative_difference(outputs(0.0), outputs(change))
