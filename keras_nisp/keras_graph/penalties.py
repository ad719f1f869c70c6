"""Regularizers, constraints and initializers: which may be for tensors of one size alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.errors import reason_of
from keras_nisp.keras_graph.keras_layers import is_of_keras

Penalty = Callable[[tf.Tensor], Any]


def of_outputs(layer: keras.Operation) -> Iterator[Penalty]:
    """The regularizer of what a layer gives, if a user wrote it."""
    yield from _written_by_users(getattr(layer, "activity_regularizer", None))


def of_weight(variable: Any) -> Iterator[Penalty]:
    """The regularizer and the constraint of a weight that a user wrote."""
    for name in ("regularizer", "constraint"):
        yield from _written_by_users(getattr(variable, name, None))


def refusal(penalty: Penalty, shape: Sequence[int], axis: int, dtype: str) -> str | None:
    """Why it does not take a tensor of another size along an axis, as it does one of this size;
    `None` if it does. One more is tried as well as one fewer: one alone would broadcast."""
    with tf.init_scope():
        value = tf.cast(tf.random.stateless_normal(shape, (0, 0)), dtype)
        if _fault(penalty, value) is not None:
            return None
        size = shape[axis]
        others = [[*range(size), 0], [*range(size - 1)]][: min(size, 2)]
        faults = (_fault(penalty, tf.gather(value, other, axis=axis)) for other in others)
        return next((fault for fault in faults if fault is not None), None)


def initializers_of_one_size(layer: keras.Layer, config: dict) -> list[str]:
    """Which settings are initializers that give weights of the layer's own size alone: an array
    of known vectors, say, or a function that returns one."""
    found = []
    for name in (name for name in config if name.endswith("initializer")):
        given = getattr(layer, name, None)
        if not callable(given) or (is_of_keras(type(given)) and not hasattr(given, "value")):
            continue
        shapes = {(tuple(weight.shape), weight.dtype) for weight in layer.weights}
        fits = [_initializes(given, shape, dtype) for shape, dtype in shapes]
        grows = [_initializes(given, [n + 1 for n in shape], dtype) for shape, dtype in shapes]
        if any(fits) and not any(grows):
            found.append(name)
    return found


def _initializes(initializer: Callable, shape: Sequence[int], dtype: str) -> bool:
    try:
        return tuple(initializer(tuple(shape), dtype=dtype).shape) == tuple(shape)
    except Exception:  # whatever a user's code raises, and TensorFlow of sizes
        return False


def _written_by_users(penalty: Any) -> Iterator[Penalty]:
    module = type(penalty).__module__
    if callable(penalty) and not is_of_keras(type(penalty)) and not module.startswith("keras_nisp"):
        yield penalty


def _fault(penalty: Penalty, value: tf.Tensor) -> str | None:
    """What a penalty says of a tensor that it does not take."""
    try:
        result = penalty(value)
    except Exception as error:  # whatever a user's code raises
        return reason_of(error)
    shape = getattr(result, "shape", ())
    return None if tuple(shape) in ((), tuple(value.shape)) else f"it gives {tuple(shape)}"
