"""What a kernel reads at each position of its output, as rows of a matrix."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_nisp.channels.rule import Window


def positions_first(tensor: tf.Tensor, axis: int | None) -> tf.Tensor:
    """A batch as `(samples, positions, features)`; without an axis there is one feature."""
    if axis is None:
        return tf.reshape(tensor, (len(tensor), -1, 1))
    rank = len(tensor.shape)
    if axis != rank - 1:
        tensor = tf.transpose(tensor, [i for i in range(rank) if i != axis] + [axis])
    return tf.reshape(tensor, (len(tensor), -1, tensor.shape[-1]))


def patches(tensor: tf.Tensor, table: np.ndarray) -> tf.Tensor:
    """The features that lie under the taps of a kernel.

    Args:
        tensor: `(samples, positions, features)`.
        table: rows of `read_positions`.

    Returns:
        Tensor `(samples * output positions, taps, features)`.
    """
    if (table < 0).any():
        table = np.where(table < 0, tensor.shape[1], table)
        tensor = tf.pad(tensor, [[0, 0], [0, 1], [0, 0]])
    return tf.reshape(tf.gather(tensor, table, axis=1), (-1, table.shape[1], tensor.shape[2]))


def read_positions(window: Window, inputs: Sequence[int], outputs: Sequence[int]) -> np.ndarray:
    """Where each tap lies for each position of the output.

    Args:
        window: how the kernel slides.
        inputs, outputs: sizes of the spatial axes.

    Returns:
        Integer array `(output positions, taps)`: flat positions of the input, -1 in the padding.
    """
    flat = np.zeros((1, 1), int)
    for axis, (size, made) in enumerate(zip(inputs, outputs, strict=True)):
        line = _along(window, axis, size, made)
        both = flat[:, None, :, None], line[None, :, None, :]
        joined = np.where((both[0] >= 0) & (both[1] >= 0), both[0] * size + both[1], -1)
        flat = joined.reshape(len(flat) * made, -1)
    return flat


def _along(window: Window, axis: int, size: int, made: int) -> np.ndarray:
    """`read_positions` along one axis."""
    stride, reach = window.strides[axis], np.arange(window.size[axis]) * window.dilation[axis]
    # A transposed convolution is the gradient of one that goes from its outputs to its inputs.
    wide, narrow = (made, size) if window.transposed else (size, made)
    before = 0
    if window.padding == "same":
        before = max((narrow - 1) * stride + reach[-1] + 1 - wide, 0) // 2
    elif window.padding == "causal":
        before = reach[-1]
    if window.transposed:
        read = np.arange(made)[:, None] + before - reach
        read = np.where(read % stride == 0, read // stride, -1)
    else:
        read = np.arange(made)[:, None] * stride + reach - before
    return np.where((read >= 0) & (read < size), read, -1)
