"""Samples in memory."""

import math
import operator
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph import calling

MOST_IN_BATCH, LEAST_IN_BATCH = 64, 8
MOST_VALUES = 1 << 21  # of the inputs of a batch: what layers make of large images fills memory
MAX_SAMPLES = 2048  # that are used of larger data, unless asked for otherwise


class Samples:
    """Some samples in memory.

    Args:
        inputs: one array per model input, each `(samples, ...)`.
        labels: array (or structure of arrays) of labels, or `None`.
        batch: the batch size that the model is bound to, if it is. Then there are as many samples
            as fill batches: the remainder is dropped, and too few are repeated.
        names: names of the inputs, if data were given by name.

    Attributes:
        inputs, labels, batch, names: what was given.
    """

    def __init__(
        self,
        inputs: list[np.ndarray],
        labels: Any = None,
        batch: int | None = None,
        names: tuple[str, ...] | None = None,
    ):
        self.inputs, self.labels, self.batch, self.names = inputs, labels, batch, names
        if batch is not None and len(self) % batch:
            whole = max(len(self) - len(self) % batch, batch)
            chosen = np.arange(whole) % len(self)
            self.inputs = [array[chosen] for array in inputs]
            self.labels = map_labels(lambda array: np.asarray(array)[chosen], labels)

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of one sample of each input."""
        return [array.shape[1:] for array in self.inputs]

    def first(self, count: int) -> "Samples":
        """The first `count` of them."""
        return self if len(self) <= count else self._taken(slice(count))

    def at_most(self, count: int) -> "Samples":
        """At most `count` of them, evenly spaced: data may be sorted by class."""
        if len(self) <= count:
            return self
        return self._taken(np.linspace(0, len(self) - 1, count).round().astype(int))

    def halves(self) -> tuple["Samples", "Samples"]:
        """Every other of them, and the rest; all twice, if the model is bound to a batch size or
        there are too few."""
        if self.batch is not None or len(self) < 8:
            return self, self
        return self._taken(slice(None, None, 2)), self._taken(slice(1, None, 2))

    def _taken(self, which: slice | np.ndarray) -> "Samples":
        labels = map_labels(operator.itemgetter(which), self.labels)
        return Samples([array[which] for array in self.inputs], labels, self.batch, self.names)

    def batches(
        self, batch_size: int | None = None, verbose: int = 0, text: str = "Scoring channels"
    ) -> Iterator[tuple[list, Any]]:
        """Pairs of (list of input tensors, labels), in order.

        Args:
            batch_size: of the batches, unless the model is bound to another; by default 64, and
                fewer of large samples.
            verbose: 1 shows a progress bar.
            text: what they are looked at for.
        """
        size = self.batch or batch_size or self._batch_size()
        progress = Progress(len(self), verbose, text, "sample")
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            labels = map_labels(operator.itemgetter(part), self.labels)
            yield [tf.convert_to_tensor(array[part]) for array in self.inputs], labels
            progress.update(start + size)

    def _batch_size(self) -> int:
        values = sum(math.prod(shape) for shape in self.shapes)
        return min(MOST_IN_BATCH, max(LEAST_IN_BATCH, MOST_VALUES // max(values, 1)))


def outputs_of(model: keras.Model, samples: Samples) -> list[np.ndarray]:
    """What a model gives for samples, as a flat list; each batch starts from a fresh state.

    The samples of a stateful model do not follow each other: they may be drawn at random.
    """
    parts = [keras.tree.flatten(calling.answer(model, inputs)) for inputs, _ in samples.batches()]
    return [np.concatenate(list(map(np.asarray, column))) for column in zip(*parts, strict=True)]


def class_labels(samples: Samples) -> np.ndarray | None:
    """Indices of classes, if the labels are these or one-hot; `None` for others, or without any."""
    labels = [np.asarray(part) for part in keras.tree.flatten(samples.labels)]
    if len(labels) != 1 or labels[0].dtype.kind not in "biuf":
        return None
    (values,) = labels
    if (values < 0).any() or (values % 1).any() or not np.isfinite(values).all():
        return None
    if values.ndim == 1 or values.shape[1:] == (1,):
        return values.ravel().astype(int)
    one_hot = values.ndim == 2 and (values.sum(-1) == 1).all()
    return values.argmax(-1) if one_hot else None


def map_labels(function, labels):
    return None if labels is None else keras.tree.map_structure(function, labels)
