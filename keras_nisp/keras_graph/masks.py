"""Masks: which time steps count. Keras lets them travel as an attribute of tensors, so that
whatever takes a tensor's place has to take its mask along.

A mask may also be an input of the model, which the graph itself uses where it likes. What looks at
data (scores, regressions, distances) should not look at padding then either: such masks travel
beside those of Keras, as an attribute that no layer knows (`counts_of`).
"""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

COUNTS = "_keras_nisp_counts"


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
    """Returns `tensor`, which takes the place of `source`, with the masks of that."""
    if tf.is_tensor(tensor) and tensor is not source:
        if (mask := mask_of(source)) is not None:
            set_keras_mask(tensor, mask)
        if (counts := getattr(source, COUNTS, None)) is not None:
            setattr(tensor, COUNTS, counts)
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
    """A tensor in which steps that do not count are 0 and the others make up for them: its mean
    over the steps is that of those that count."""
    mask = counts_of(tensor)
    return tensor if mask is None else tensor * step_weights(mask, tensor)


def step_weights(mask: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """0 for each step that does not count, and for the others what makes the mean of a sample 1;
    in the shape and type of a tensor whose first axes the mask is for."""
    weights = spread_mask(mask, like)
    axes = list(range(1, len(mask.shape)))
    return tf.math.divide_no_nan(weights, tf.reduce_mean(weights, axes, keepdims=True))


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


# Masks that are inputs ---------------------------------------------------------------


def counts_of(tensor: Any) -> tf.Tensor | None:
    """Which steps of a tensor count: by the mask that it carries, or by one that is an input of
    the model; `None` if all do."""
    mask = mask_of(tensor)
    if mask is None and (len(tensor.shape) > 2 or not tensor.dtype.is_floating):
        mask = getattr(tensor, COUNTS, None)  # of a row of features, no step is masked
    fits = mask is not None and tensor.shape[: len(mask.shape)] == mask.shape
    return mask if fits else None  # a layer may hand on what is for other axes


def mark_inputs(names: Sequence[str], values: Sequence[Any]) -> None:
    """Notes at inputs whose steps another input masks, which steps count.

    A mask is a whole or boolean number for each step, in an input whose name ends in "mask". Of
    several, that with the name most like an input's is the one for it. What has more axes than
    steps and their features, such as an image, has a mask only where that says its name: rows may
    be as many as the steps of something else.

    Args:
        names: of the model's inputs.
        values: theirs; nothing is done where these are no tensors.
    """
    if not all(map(tf.is_tensor, values)):
        return
    masks = {name: x for name, x in zip(names, values, strict=True) if _is_mask(name, x)}
    for name, value in zip(names, values, strict=True):
        fitting = [
            mask
            for mask in masks
            if _is_for(masks[mask], value) and (len(value.shape) < 4 or _says(mask, name))
        ]
        if name not in masks and fitting and mask_of(value) is None:
            (nearest,) = difflib.get_close_matches(name, fitting, n=1, cutoff=0)
            setattr(value, COUNTS, tf.cast(masks[nearest], tf.bool))


def pass_on_counts(args: tuple, kwargs: dict, outputs: list) -> None:
    """Notes at the outputs of a call which of their steps count, where that is known of an input:
    what has an axis more and as many steps is taken to have the same ones."""
    tensors = filter(tf.is_tensor, keras.tree.flatten((args, kwargs)))
    # AutoGraph, which comes along here, does not know `:=`.
    noted = [getattr(x, COUNTS) for x in tensors if hasattr(x, COUNTS)]
    for output in outputs:
        if not tf.is_tensor(output) or len(output.shape) < 3 or hasattr(output, COUNTS):
            continue
        fitting = [mask for mask in noted if _is_for(mask, output)]
        if fitting:
            setattr(output, COUNTS, fitting[0])


def _is_mask(name: str, value: tf.Tensor) -> bool:
    whole = value.dtype.is_bool or value.dtype.is_integer
    return name.lower().endswith("mask") and whole and len(value.shape) == 2


def _says(mask: str, name: str) -> bool:
    """Whether the name of a mask says what it is for, as that of `video_mask` does."""
    return mask.lower().removesuffix("mask").strip("_") == name.lower()


def _is_for(mask: tf.Tensor, tensor: tf.Tensor) -> bool:
    return len(tensor.shape) > 1 and tensor.shape[:2] == mask.shape
