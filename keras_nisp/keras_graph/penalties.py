"""Regularizers and constraints that users wrote: which may take tensors of one size alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.keras_graph.keras_layers import is_of_keras

Penalty = Callable[[tf.Tensor], Any]


def of_outputs(layer: keras.Operation) -> Iterator[Penalty]:
    """The regularizer of what a layer gives, if a user wrote it."""
    yield from _written_by_users(getattr(layer, "activity_regularizer", None))


def of_weight(variable: Any) -> Iterator[Penalty]:
    """The regularizer and the constraint of a weight that a user wrote."""
    for name in ("regularizer", "constraint"):
        yield from _written_by_users(getattr(variable, name, None))


def takes_fewer(penalty: Penalty, shape: Sequence[int], axis: int, dtype: str) -> bool:
    """Whether it takes a tensor with fewer positions along an axis as it does the whole."""
    with tf.init_scope():
        value = tf.cast(tf.random.stateless_normal(shape, (0, 0)), dtype)
        fewer = tf.gather(value, range(shape[axis] - 1), axis=axis)
        return not _runs(penalty, value) or _runs(penalty, fewer)


def _written_by_users(penalty: Any) -> Iterator[Penalty]:
    module = type(penalty).__module__
    if callable(penalty) and not is_of_keras(type(penalty)) and not module.startswith("keras_nisp"):
        yield penalty


def _runs(penalty: Penalty, value: tf.Tensor) -> bool:
    try:
        penalty(value)
    except Exception:  # whatever a user's code raises says that it does not take this
        return False
    return True
