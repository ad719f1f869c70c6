"""Keras masks: which time steps count. Keras lets them travel as an attribute of tensors, so that
whatever takes a tensor's place has to take its mask along."""

import inspect
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask


def mask_of(tensor: Any) -> tf.Tensor | None:
    """The mask that a tensor carries, or `None`."""
    return get_keras_mask(tensor)


def enter(operation: keras.Operation, tensors: list) -> bool:
    """Whether an operation uses masks that these tensors carry.

    Before Keras 3.16 a graph has such masks among the arguments of the call as well.
    """
    if not isinstance(operation, keras.Layer) or all(mask_of(x) is None for x in tensors):
        return False
    names = inspect.signature(operation.call).parameters
    return any(name == "mask" or name.endswith("_mask") for name in names)


def carry_mask(source: Any, tensor: Any) -> Any:
    """Returns `tensor`, which takes the place of `source`, with the mask of that."""
    mask = mask_of(source)
    if mask is not None and tf.is_tensor(tensor) and tensor is not source:
        set_keras_mask(tensor, mask)
    return tensor


def with_own_mask(tensor: Any) -> Any:
    """A tensor whose mask can be taken off without a change of the given one.

    MultiHeadAttention takes masks off the very tensors that it is called with.
    """
    return tensor if mask_of(tensor) is None else carry_mask(tensor, tf.identity(tensor))


def take_off_alike(tensors: Any, used: Any) -> None:
    """Takes the masks off tensors where a call took them off those used in their place."""
    for tensor, taken in zip(keras.tree.flatten(tensors), keras.tree.flatten(used), strict=True):
        if mask_of(taken) is None and mask_of(tensor) is not None:
            set_keras_mask(tensor, None)


def set_mask(tensor: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns a tensor that carries a mask."""
    set_keras_mask(tensor, mask)
    return tensor


def spread_mask(mask: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """A mask as 0 and 1, in the shape and type of the tensor whose first axes it is for."""
    mask = tf.reshape(mask, [*mask.shape, *[1] * (len(like.shape) - len(mask.shape))])
    return tf.broadcast_to(tf.cast(mask, like.dtype), like.shape)


def level(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor in which steps that are masked are 0 and the others make up for them: its mean
    over the steps is that of those that count."""
    mask = mask_of(tensor)
    if mask is None:
        return tensor
    weights = spread_mask(mask, tensor)
    axes = list(range(1, len(mask.shape)))
    return tensor * tf.math.divide_no_nan(weights, tf.reduce_mean(weights, axes, keepdims=True))


def pass_on(operation: keras.Operation, args: tuple, kwargs: dict, outputs: list) -> None:
    """Gives the outputs of a call the masks that Keras would give them.

    Where a layer was called, Keras has done so; where something else was computed in its place
    (an oracle, statistics of a batch), nobody has.
    """
    if not (isinstance(operation, keras.Layer) and operation.supports_masking):
        return
    if not all(map(tf.is_tensor, outputs)) or not (args or kwargs):
        return
    first = args[0] if args else next(iter(kwargs.values()))
    masks = kwargs.get("mask")
    if masks is None:
        masks = keras.tree.map_structure(mask_of, first)
    if any(mask is not None for mask in keras.tree.flatten(masks)):
        operation._set_mask_metadata(first, outputs, masks)
