"""What becomes of each unit: it stays, is dropped, or is merged with others.

One linear map for each axis of each variable follows. An axis that owns channels keeps
the mean of those that are merged, an axis that reads them keeps their sum.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from keras_nisp.channels.call import Call
    from keras_nisp.channels.channel_map import Binding

DROPPED = -1
LARGE = 1 << 20  # values: NumPy would copy the array first


class UnitMap:
    """The fate of each unit.

    Args:
        into: for each unit the unit that it becomes: itself if it stays, another one (which
            stays) if it is merged into that, `DROPPED` if it goes.
    """

    def __init__(self, into: np.ndarray):
        self.into = into
        self.keep = into == np.arange(len(into))

    @classmethod
    def removing(cls, removed: np.ndarray) -> "UnitMap":
        """Drops the units of a boolean array."""
        return cls(np.where(removed, DROPPED, np.arange(len(removed))))

    @functools.cached_property
    def merged(self) -> np.ndarray:
        """Boolean per unit: whether it shares its fate with another one."""
        into = self.into[self.into != DROPPED]
        shared = np.bincount(into, minlength=len(self.into)) > 1
        return shared[self.into] & (self.into != DROPPED)

    def labels(self, units: np.ndarray) -> np.ndarray:
        """For each position of an axis, the position after the surgery, or `DROPPED`.

        A unit may lie at several positions (a channel flattened with its pixels): the n-th
        position of a unit goes to the n-th position of what it becomes.
        """
        keep = self.keep[units]
        if not self.merged[units].any():
            return np.where(keep, np.cumsum(keep) - 1, DROPPED)
        nth = occurrences(units)
        times = nth.max() + 1
        staying = np.flatnonzero(keep)
        keys = units[staying] * times + nth[staying]
        order = np.argsort(keys)
        wanted = self.into[units] * times + nth
        found = order[np.searchsorted(keys, wanted, sorter=order).clip(0, len(staying) - 1)]
        return np.where(self.into[units] == DROPPED, DROPPED, found)

    def resized(self, binding: "Binding", value: tf.Tensor, but: Sequence[int] = ()) -> tf.Tensor:
        """A variable's value at its new size.

        Args:
            binding: of the variable.
            value: its value, or one with the same axes.
            but: axes that stay as they are.
        """
        for axis, units in binding.axes.items():
            if axis not in but:
                change = self.read if axis in binding.read else self.own
                value = change(value, axis, units)
        return value

    def own(self, value: tf.Tensor, axis: int, units: np.ndarray) -> tf.Tensor:
        """Takes means of what is merged along an axis that owns channels."""
        if not self.merged[units].any():
            return self._gather(value, axis, units)
        labels = self.labels(units)
        counts = np.bincount(labels[labels != DROPPED])
        total = segment_sum(value, labels, len(counts), axis)
        return total / _along(tf.constant(counts, value.dtype), axis, len(value.shape))

    def read(self, value: tf.Tensor, axis: int, units: np.ndarray) -> tf.Tensor:
        """Takes sums of what is merged along an axis that reads channels."""
        if not self.merged[units].any():
            return self._gather(value, axis, units)
        return segment_sum(value, self.labels(units), int(self.keep[units].sum()), axis)

    def level(self, value: tf.Tensor, axis: int, units: np.ndarray) -> tf.Tensor:
        """Puts means in the place of what is merged; what is dropped stays as it is."""
        labels, small = self.labels(units), self.own(value, axis, units)
        spread = tf.gather(small, np.maximum(labels, 0), axis=axis)
        same = _along(tf.constant(self.merged[units]), axis, len(value.shape))
        return tf.where(same, spread, value)

    def _gather(self, value, axis, units):
        keep = self.keep[units]
        if keep.all():
            return value
        if not hasattr(value, "numpy") or value.shape.num_elements() > LARGE:
            return tf.gather(value, np.flatnonzero(keep), axis=axis)
        # NumPy takes slices of small arrays far faster than an eager operation does.
        return tf.constant(np.compress(keep, value.numpy(), axis))


def segment_sum(value: tf.Tensor, labels: np.ndarray, count: int, axis: int) -> tf.Tensor:
    """Sums slices along an axis that have the same label; negative labels are left out."""
    rank = len(value.shape)
    order = [axis, *(i for i in range(rank) if i != axis)]
    rows = tf.transpose(value, order) if axis else value
    total = tf.math.unsorted_segment_sum(rows, labels, count)
    return tf.transpose(total, np.argsort(order)) if axis else total


def occurrences(units: np.ndarray) -> np.ndarray:
    """How many times each unit was met before: 0, 1, 2..."""
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    nth = np.empty(len(units), np.int64)
    nth[order] = np.arange(len(units)) - np.searchsorted(ordered, ordered)
    return nth


def _along(vector: tf.Tensor, axis: int, rank: int) -> tf.Tensor:
    return tf.reshape(vector, [-1 if i == axis else 1 for i in range(rank)])


def resized_arguments(
    call: "Call", args: tuple, kwargs: dict, sources: Callable
) -> tuple[tuple, dict]:
    """The arguments of a call after a removal: constants and sizes change with the channels.

    Args:
        call: the call.
        args, kwargs: with tensors of the new sizes.
        sources: gives, for each new position of an axis with these units, the old one.
    """
    changed = list(args)
    for position, binding in call.constants.items():
        if isinstance(position, int):
            changed[position] = binding.variable
            for axis, units in binding.axes.items():
                changed[position] = changed[position].take(sources(units), axis)

    def width(units: np.ndarray) -> int:
        return len(sources(units.ravel()))

    return call.ask("arguments", tuple(changed), kwargs, width)
