"""Tensors of a traced graph whose batch axis was moved to the front, as Keras expects it."""

from collections.abc import Callable
from typing import Any

import keras

from keras_nisp.errors import ReasonError


class NotAGraphError(ReasonError):
    """Why no graph does what a call does, at whatever sizes it is traced."""


class UnsupportedLayoutError(Exception):
    """A call cannot be made with the batch axis in front; it is made on tensors as they were
    traced."""


class MovedBatch:
    """A tensor of a traced graph, in the graph that is made of it.

    Args:
        tensor: with the batch axis first.
        batch: where that axis is in the traced graph; `None` if it has none there, since it
            follows from weights alone.
    """

    def __init__(self, tensor: Any, batch: Any) -> None:
        self._tensor, self.batch = tensor, batch

    @property
    def tensor(self) -> Any:
        """With the batch axis first."""
        return self._tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """In the traced graph, of what follows from weights alone."""
        return tuple(self.tensor.shape[1:])

    @property
    def rank(self) -> int:
        """In the traced graph."""
        return len(self.tensor.shape) - (self.batch is None)

    def axis(self, axis: int) -> int:
        """Where an axis of the traced tensor lies."""
        return moved_axis(axis % self.rank, self.batch)


class Weight(MovedBatch):
    """A weight of a layer, its axes perhaps in another order.

    Args:
        variable: the weight.
        axes: of the variable, in the order of the traced graph.
        as_table: gives the variable for each sample.
    """

    def __init__(self, variable: keras.Variable, axes: tuple[int, ...], as_table: Callable) -> None:
        super().__init__(None, None)
        self.variable, self.axes, self.as_table = variable, axes, as_table

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape[axis] for axis in self.axes)

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def tensor(self) -> Any:
        table = self.as_table(self.variable)
        if self.axes == tuple(range(self.rank)):
            return table
        return keras.ops.transpose(table, (0, *(axis + 1 for axis in self.axes)))


def is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def moved(tensor: Any, batch: Any) -> Any:
    """A tensor with the batch axis first, and where that is in the traced graph."""
    return tensor if batch == 0 else MovedBatch(tensor, batch)


def as_moved(x: Any) -> MovedBatch:
    """A tensor of the graph as a `MovedBatch`, wherever its batch axis is."""
    return x if isinstance(x, MovedBatch) else MovedBatch(x, batch_of(x))


def tensor_of(x: Any) -> Any:
    """A value of any kind, with the batch axis first."""
    return x.tensor if isinstance(x, MovedBatch) else x


def rank_of(x: Any) -> int:
    """In the traced graph, of a value of any kind."""
    return x.rank if isinstance(x, MovedBatch) else len(getattr(x, "shape", ()))


def batch_of(x: Any) -> Any:
    """Where the batch axis is in the traced graph, of a value of any kind; `None` for none."""
    if isinstance(x, MovedBatch):
        return x.batch
    return 0 if is_tensor(x) else None


def moved_axis(axis: int, batch: int | None) -> int:
    """Where an axis lies once the batch axis is first."""
    if batch is None:
        return axis + 1
    return 0 if axis == batch else axis + (axis < batch)


def reshaped(tensor: Any, sizes: list[int]) -> Any:
    """A tensor with other axes behind that of samples."""
    if list(tensor.shape[1:]) == sizes:
        return tensor
    return keras.ops.reshape(tensor, (-1, *sizes))


def with_batch_at(tensor: Any, place: int) -> Any:
    """A tensor with its first axis elsewhere."""
    if not place:
        return tensor
    others = list(range(1, len(tensor.shape)))
    return keras.ops.transpose(tensor, (*others[:place], 0, *others[place:]))


def batch_first(tensor: Any, place: int) -> Any:
    """A tensor whose batch axis is elsewhere, with it first."""
    if not place:
        return tensor
    others = [axis for axis in range(len(tensor.shape)) if axis != place]
    return keras.ops.transpose(tensor, (place, *others))


def shape_batch_first(shape: tuple, place: int) -> tuple:
    """The shape of a tensor whose batch axis is elsewhere, with it first."""
    return (shape[place], *shape[:place], *shape[place + 1 :]) if place else tuple(shape)


def rows_for_each_sample(indices: Any, like: keras.KerasTensor) -> Any:
    """Constant indices as a symbolic tensor, so that what is looked up shows in the graph: one row
    of them for each sample."""
    if is_tensor(indices) or not like.shape:
        return indices
    indices = keras.ops.convert_to_tensor(indices)
    if len(indices.shape) == 1:
        indices = indices[None]
    if len(indices.shape) != 2 or indices.shape[0] != 1:
        return indices
    zeros = keras.ops.zeros_like(like, dtype=indices.dtype)
    zeros = keras.ops.sum(zeros, axis=tuple(range(1, len(like.shape))), keepdims=True)
    return keras.ops.add(indices, keras.ops.reshape(zeros, (-1, 1)))
