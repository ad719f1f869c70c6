"""A tensor with names for its channels."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(eq=False)
class Traced:
    """A tensor as the trace sees it: what a rule's `trace` is given for each tensor.

    Attributes:
        names: integer array that broadcasts to `shape`; equal integers are one channel. Of a
            feature map with channels along its last axis it has the shape `(1, 1, channels)`.
            Where channels lie along several axes, as in heads, equal integers are equal in both.
        shape: the tensor's shape without the batch axis.
        batch: how many entries of the batch axis one sample takes: more than one where
            positions were moved into it (windows, time steps).
        lines: of names that are products, what lies along each axis along which they vary.
        batch_axis: where the batch axis lies: not first where queries, keys and values were moved
            before it, to be taken apart.
        dtype: of its numbers.
        points_at: of indices, the names of the channels among which they count.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> call = trace(model).calls[-1]
    >>> call.inputs[0].names.tolist(), call.inputs[0].shape
    ([4, 5, 6, 7, 8, 9, 10, 11], (8,))
    """

    names: np.ndarray
    shape: tuple[int, ...]
    batch: int = 1
    lines: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    batch_axis: int = 0
    dtype: str = "float32"
    points_at: np.ndarray | None = None

    def put_units(self, units: np.ndarray) -> None:
        """Puts units in the place of names, once the trace has found them."""
        self.names = compact(units[self.names])
        if self.points_at is not None:
            self.points_at = units[self.points_at]
        varying = [axis for axis, size in enumerate(self.names.shape) if size > 1]
        self.lines = {axis: units[self.lines[axis]] for axis in varying if axis in self.lines}

    @property
    def rank(self) -> int:
        """The number of axes, the batch axis not counted."""
        return len(self.shape)

    def axis_in_tensor(self, axis: int) -> int:
        """Where an axis of `shape` lies in the tensor itself, the batch axis counted."""
        return axis + (axis >= self.batch_axis)

    def own_axis(self, axis: int) -> int | None:
        """Which axis of `shape` an axis of the tensor is, the batch axis counted; `None` for it."""
        axis %= self.rank + 1
        return None if axis == self.batch_axis else axis - (axis > self.batch_axis)

    def with_batch(self, count: Any) -> tuple[Any, ...]:
        """The shape of the tensor itself, with a batch of this size, or `None` for it."""
        return (*self.shape[: self.batch_axis], count, *self.shape[self.batch_axis :])

    def line(self, axis: int) -> np.ndarray:
        """The names along one axis, at the first position of all others.

        For `resize` and what else reads names; in `trace`, `call.along` also makes sure that they
        are the same at the other positions.

        Args:
            axis: the batch axis not counted; -1 is the last.

        Returns:
            1-D array, one name for each position along the axis.
        """
        axis %= self.rank
        if axis in self.lines:
            return self.lines[axis]
        names = np.moveaxis(self.names, axis, -1)
        return np.broadcast_to(rows(names)[0], (self.shape[axis],))


def compact(names: np.ndarray) -> np.ndarray:
    """Drops the extent of axes along which the names do not vary."""
    for axis in range(names.ndim):
        if names.shape[axis] > 1:
            first = names.take([0], axis)
            if (names == first).all():
                names = first
    return names


def rows(names: np.ndarray) -> np.ndarray:
    """Names as `(positions, the last axis)`, which may be empty."""
    return names.reshape(math.prod(names.shape[:-1]), names.shape[-1])
