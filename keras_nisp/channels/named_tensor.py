"""A tensor with names for its channels."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(eq=False)
class Traced:
    """A tensor as the trace sees it. A rule's `trace` gets one for each tensor.

    Attributes:
        names: integer array that broadcasts to `shape`; equal integers are the same channel. A
            feature map with channels along its last axis has names of shape `(1, 1, channels)`.
            If channels lie along several axes, as in heads, two elements share an integer only if
            both head and channel agree.
        shape: the tensor's shape without the batch axis.
        batch: number of entries of the batch axis that one sample takes: more than one if
            positions were moved into it (windows, time steps).
        lines: if names vary along several axes, the names along each of these axes.
        batch_axis: position of the batch axis. It is not the first where queries, keys and values
            were stacked before it, to be taken apart.
        dtype: dtype of the tensor.
        points_at: for a tensor of indices, the names of the channels that it indexes.

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
        held = {axis: self.lines[axis] for axis in varying(self.names) if axis in self.lines}
        self.lines = {axis: units[line] for axis, line in held.items()}

    @property
    def rank(self) -> int:
        """The number of axes, the batch axis not counted."""
        return len(self.shape)

    @property
    def varying(self) -> list[int]:
        """The axes along which channels lie."""
        return varying(self.names)

    def varies(self, axis: int) -> bool:
        """Whether channels lie along an axis, the batch axis not counted."""
        return self.names.shape[axis] > 1

    def axis_in_tensor(self, axis: int) -> int:
        """The position in the tensor itself, the batch axis counted, of an axis of `shape`."""
        return axis + (axis >= self.batch_axis)

    def own_axis(self, axis: int) -> int | None:
        """The axis of `shape` that an axis of the tensor itself is; `None` for the batch axis."""
        axis %= self.rank + 1
        return None if axis == self.batch_axis else axis - (axis > self.batch_axis)

    def with_batch(self, count: Any) -> tuple[Any, ...]:
        """The shape of the tensor itself, with this size (or `None`) as that of the batch axis."""
        return (*self.shape[: self.batch_axis], count, *self.shape[self.batch_axis :])

    def line(self, axis: int) -> np.ndarray:
        """The names along one axis, at the first position of all other axes.

        For `resize` and other methods that read names. In `trace` use `call.along`, which also
        makes sure that the names are the same at the other positions.

        Args:
            axis: axis of the tensor, the batch axis not counted; -1 is the last.

        Returns:
            1-D array, one name for each position along the axis.
        """
        axis %= self.rank
        if axis in self.lines:
            return self.lines[axis]
        names = np.moveaxis(self.names, axis, -1)
        return np.broadcast_to(rows(names)[0], (self.shape[axis],))


def varying(names: np.ndarray) -> list[int]:
    """The axes along which names vary."""
    return [axis for axis, size in enumerate(names.shape) if size > 1]


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
