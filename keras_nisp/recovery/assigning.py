"""Changes weights of a model: with finite values, and all of them or none."""

import contextlib
from typing import Any

import keras
import tensorflow as tf


def assign_finite(variable: keras.Variable, value: Any, layer: str) -> None:
    """Assigns a value, unless something in it is not finite.

    Args:
        variable: what gets the value.
        value: an array of its shape; it is cast.
        layer: name of the layer, for the error.
    """
    value = tf.cast(value, variable.dtype)
    check_finite(value, f"'{variable.name}' of layer '{layer}' would be")
    variable.assign(value)


def check_finite(array: Any, what: str) -> None:
    """Raises unless all values are finite."""
    if not bool(tf.reduce_all(tf.math.is_finite(array))):
        raise ValueError(
            f"{what} NaN or infinite: a weight is, or activations overflow on the calibration "
            "data. Expected a model with finite weights, and data in the range of its training. "
            "Nothing was changed."
        )


@contextlib.contextmanager
def all_or_nothing(model: keras.Model):
    """Gives a model the weights back that it had, if something fails."""
    before = [weight.numpy() for weight in model.weights]
    try:
        yield
    except BaseException:
        for weight, value in zip(model.weights, before, strict=True):
            weight.assign(value)
        raise
