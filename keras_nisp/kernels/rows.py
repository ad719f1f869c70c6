"""Rows of what a plain kernel reads, position by position, some of them if they are many."""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.rule import PlainKernel
from keras_nisp.kernels.patches import patches, positions_first, read_positions

Share = float


def share_of(rows: int, features: int, least: int, most_values: int) -> Share:
    """Which share of the rows to look at: more of the same samples say little that is new.

    Args:
        rows: how many there are; 0 if a rule does not say.
        features: of each row.
        least: how many rows for each feature there should be.
        most_values: rows times features that are looked at anyway.
    """
    wanted = max(least * features, most_values // max(features, 1))
    return min(1.0, wanted / rows) if rows else 1.0


class KernelRows:
    """What a kernel reads at each position of its output, or of its input.

    Args:
        layer: that has the kernel.
        plain: the kernel.
        axis: gives, for the rank of a tensor that it reads, the axis of the channels (batch axis
            counted); `None` if there is none.
        by_tap: whether a row holds what lies under all taps, or the channels of one position.
    """

    def __init__(
        self,
        layer: keras.Operation,
        plain: PlainKernel,
        axis: Callable[[int], int | None],
        by_tap: bool,
    ):
        self.layer, self.plain, self.axis, self.by_tap = layer, plain, axis, by_tap
        self.tables: dict[tuple[int, ...], np.ndarray] = {}

    def table(self, shape: tuple[int, ...]) -> np.ndarray:
        """Positions of an input of this shape that each row reads, as `read_positions`."""
        if shape[1:] not in self.tables:
            axis, window = self.axis(len(shape)), self.plain.window
            inputs = [size for i, size in enumerate(shape) if i not in (0, axis)]
            table = np.arange(math.prod(inputs))[:, None]
            if window is not None and self.by_tap:
                made = self.layer.compute_output_shape(shape)
                sizes = [size for i, size in enumerate(made) if i not in (0, axis)]
                table = read_positions(window, inputs, sizes)
            self.tables[shape[1:]] = table
        return self.tables[shape[1:]]

    def some(self, shape: tuple[int, ...], share: Share, rng: np.random.Generator) -> np.ndarray:
        """Which rows of the table to look at: a share of them, drawn."""
        count = len(self.table(shape))
        if share == 1:
            return np.arange(count)
        return np.sort(rng.choice(count, math.ceil(share * count), replace=False))

    def __call__(self, x: tf.Tensor, table: np.ndarray) -> tf.Tensor:
        """`(samples, rows of the table, taps, channels)` of a batch."""
        read = patches(positions_first(x, self.axis(len(x.shape))), table)
        return tf.reshape(read, (len(x), len(table), *read.shape[1:]))
