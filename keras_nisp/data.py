"""Calibration data: samples from whatever Keras users have at hand."""

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp import graph

DEFAULT_BATCH = 64
MOST_EMPTY = 100  # batches without samples: a source may never give any


class Samples:
    """Some samples in memory.

    Args:
        inputs: one array per model input, each `(samples, ...)`.
        labels: array (or structure of arrays) of labels, or `None`.
        batch: the batch size that the model is bound to, if it is. Then there are as many samples
            as fill batches: what is left over goes, and too few are repeated.
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
            self.labels = _map_labels(lambda array: np.asarray(array)[chosen], labels)

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of one sample of each input."""
        return [array.shape[1:] for array in self.inputs]

    def first(self, count: int) -> "Samples":
        """The first so many of them."""
        return self if len(self) <= count else self._taken(slice(count))

    def every(self, step: int) -> "Samples":
        """The first of each so many."""
        return self if step <= 1 else self._taken(slice(None, None, step))

    def _taken(self, which: slice) -> "Samples":
        labels = _map_labels(operator.itemgetter(which), self.labels)
        return Samples([array[which] for array in self.inputs], labels, self.batch, self.names)

    def batches(self, batch_size: int = DEFAULT_BATCH) -> Iterator[tuple[list, Any]]:
        """Pairs of (list of input tensors, labels), in order.

        Args:
            batch_size: of the batches, unless the model is bound to another.
        """
        size = self.batch or batch_size
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            labels = _map_labels(operator.itemgetter(part), self.labels)
            yield [tf.convert_to_tensor(array[part]) for array in self.inputs], labels


def outputs_of(model: keras.Model, samples: Samples) -> list[np.ndarray]:
    """What a model gives for samples, as a flat list; each batch starts from a fresh state.

    The samples of a stateful model do not follow each other: they may be drawn at random.
    """
    parts = [keras.tree.flatten(graph.answer(model, inputs)) for inputs, _ in samples.batches()]
    return [np.concatenate(list(map(np.asarray, column))) for column in zip(*parts, strict=True)]


class Calibration:
    """Calibration data of an importance, read once per kind of model.

    A generator cannot be read again when channels are scored a second time, as `NISPPruner`
    does.

    Args:
        data, limit, seed, labels, verbose: as for `collect`.
    """

    def __init__(self, data: Any, limit: int, seed: int, labels: bool = False, verbose: int = 0):
        self.data = data
        self.arguments = {"limit": limit, "seed": seed, "labels": labels, "verbose": verbose}
        self._read: list[tuple[tuple, Samples]] = []

    def samples(self, model: keras.Model) -> Samples:
        """The samples for a model."""
        samples = self.known(model)
        if samples is None:
            samples = collect(self.data, model, **self.arguments)
            if not isinstance(self.data, Samples):  # else it was looked at where it was read
                from keras_nisp.data_range import warn_of_range

                warn_of_range(model, samples)
            self._read.append((_signature(model), samples))
        return samples

    def known(self, model: keras.Model) -> Samples | None:
        """The samples for a model, if they were read already."""
        inputs, names = graph.body(model).inputs, graph.input_names(model)
        for known, samples in self._read:
            if samples.names is None and known == _signature(model):
                return samples
            if samples.names is not None and set(samples.names) == set(names):
                # By name: another model may take the same inputs in another order.
                order = [samples.names.index(name) for name in names]
                arrays = [samples.inputs[i] for i in order]
                if all(map(_fits, arrays, inputs)):
                    batch = graph.batch_size(model)
                    return Samples(arrays, samples.labels, batch, tuple(names))
        return None


def _signature(model: keras.Model) -> tuple:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in graph.body(model).inputs)


def _map_labels(function, labels):
    return None if labels is None else keras.tree.map_structure(function, labels)


def collect(
    data: Any,
    model: keras.Model,
    limit: int = 2048,
    seed: int = 0,
    labels: bool = False,
    verbose: int = 0,
) -> Samples:
    """Takes up to `limit` samples out of calibration data.

    Args:
        data: NumPy array or tensor (or a list or dict of them, for several inputs), an
            `(x, y)` tuple, a `tf.data.Dataset` (batched or not), a
            `keras.utils.PyDataset`, or an iterable of batches. Elements may be
            `(x, y)` or `(x, y, weight)` tuples. A dict has the names of the input layers as its
            keys, or those of the dict that the model takes.
        model: gives the number, names, shapes and dtypes of the inputs.
        limit: number of samples; arrays are sampled at random, the others from their
            start.
        seed: for sampling arrays.
        labels: whether labels are needed.
        verbose: 1 shows a progress bar while data are read.

    Returns:
        `Samples`.

    Raises:
        ValueError: there are no data, shapes do not fit, or values are not finite.
        TypeError: the data are of an unknown kind, or labels are needed and missing.
    """
    if limit < 1:
        raise ValueError(f"Expected at least 1 calibration sample. Received: {limit}")
    if isinstance(data, Samples):
        samples = data.first(limit)
    else:
        samples = _collected(data, model, limit, seed, verbose)
    if labels:
        _check_labels(samples.labels)
    return samples


def _collected(data: Any, model: keras.Model, limit: int, seed: int, verbose: int) -> Samples:
    tensors = graph.body(model).inputs
    reader = _Reader(model)
    if _is_arrays(data):
        x, y = _split(data)
        inputs, y = _sample(reader.arrays(x), y, limit, seed)
    else:
        inputs, y = _read(data, reader, limit, verbose)
    inputs = [_check(array, tensor) for array, tensor in zip(inputs, tensors, strict=True)]
    return Samples(inputs, y, graph.batch_size(model), reader.names)


def _check_labels(labels: Any) -> None:
    """Raises unless there are labels, none of them NaN or infinite."""
    if labels is None:
        raise TypeError(
            "Expected calibration data with labels, as an `(x, y)` tuple or a dataset of "
            "them. Received data without labels."
        )
    for array in map(np.asarray, keras.tree.flatten(labels)):
        if np.issubdtype(array.dtype, np.floating):
            _check_finite(array, "labels")


def _is_arrays(data) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and all(_is_arrays(part) or part is None for part in data)
    if isinstance(data, dict):
        return bool(data) and all(_is_arrays(part) for part in data.values())
    return isinstance(data, np.ndarray) or tf.is_tensor(data) or hasattr(data, "toarray")


def _split(element) -> tuple[Any, Any]:
    """x and y of one element, by the conventions of `fit`: a tuple is (x, y, ...)."""
    if isinstance(element, tuple) and 1 <= len(element) <= 3:
        x, y = element[0], element[1] if len(element) > 1 else None
        return x, y
    return element, None


class _Reader:
    """Lays out what stands for a model's inputs as a flat list of arrays.

    Attributes:
        names: of the inputs, once data came by name.
    """

    def __init__(self, model: keras.Model):
        self.tensors = graph.body(model).inputs
        self.known = tuple(graph.input_names(model))
        self.structure = graph.input_structure(model)
        self.optional = [graph.is_optional(tensor) for tensor in self.tensors]
        self.names: tuple[str, ...] | None = None

    def arrays(self, x: Any) -> list[np.ndarray]:
        """The arrays of one element of the data."""
        if isinstance(x, dict):
            x = self._by_name(x)
        elif isinstance(x, (list, tuple)):
            x = keras.tree.flatten(x) if len(x) != len(self.tensors) else list(x)
        else:
            x = [x]
        if len(x) != len(self.tensors):
            raise ValueError(
                f"Expected calibration data for {len(self.tensors)} model inputs. Received "
                f"{len(x)} arrays."
            )
        return [_array(part, *row) for part, *row in zip(x, self.known, self.optional, strict=True)]

    def _by_name(self, x: dict) -> list:
        if isinstance(self.structure, dict) and set(self.structure) <= set(x):
            return keras.tree.flatten({key: x[key] for key in self.structure})
        self.names = self.known
        absent = [n for n, free in zip(self.known, self.optional, strict=True) if not free]
        if any(name not in x for name in absent):
            raise ValueError(
                f"Expected calibration data for the inputs {list(self.known)}. Received a dict "
                f"with the keys {list(x)}."
            )
        return [x.get(name) for name in self.known]


def _array(x: Any, name: str, optional: bool) -> np.ndarray:
    """Data of one input as a dense array."""
    if x is None:
        hint = " It is optional, but data are needed: pass zeros, say." if optional else ""
        raise ValueError(f"Expected calibration data for input '{name}'. Received: None.{hint}")
    if isinstance(x, (tf.RaggedTensor, tf.compat.v1.ragged.RaggedTensorValue)):
        raise TypeError(
            f"Expected calibration data of one length for input '{name}'. Received a ragged "
            "tensor: pad it with `.to_tensor()`."
        )
    if isinstance(x, tf.compat.v1.SparseTensorValue):
        x = tf.SparseTensor.from_value(x)
    if isinstance(x, tf.SparseTensor):
        x = tf.sparse.to_dense(x)
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x)


def _sample(inputs, y, limit, seed):
    count = len(inputs[0]) if inputs[0].ndim else 0
    if any(array.ndim == 0 or len(array) != count for array in inputs):
        raise ValueError(
            "Expected calibration arrays of one length. Received shapes "
            f"{[array.shape for array in inputs]}."
        )
    if count <= limit:
        return inputs, _map_labels(np.asarray, y)
    chosen = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
    labels = _map_labels(lambda array: np.asarray(array)[chosen], y)
    return [array[chosen] for array in inputs], labels


def _elements(data) -> Iterable:
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(data.num_batches or len(data)))
    if isinstance(data, tf.data.Dataset):
        return data.as_numpy_iterator()
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return data
    raise TypeError(
        "Expected calibration data to be a NumPy array, a tf.data.Dataset, a "
        f"keras.utils.PyDataset or an iterable of batches. Received: {type(data).__name__}"
    )


def _read(data, reader: _Reader, limit: int, verbose: int):
    """Reads batches until there are enough samples."""
    inputs, labels, count, empty = [], [], 0, 0
    rank = len(reader.tensors[0].shape)
    progress = keras.utils.Progbar(limit, unit_name="sample") if verbose else None
    for element in _elements(data):
        x, y = _split(element)
        x = reader.arrays(x)
        if x[0].ndim == rank - 1:  # not batched
            x = [array[None] for array in x]
            y = _map_labels(lambda array: np.asarray(array)[None], y)
        empty = empty + 1 if x[0].ndim and not len(x[0]) else 0
        if empty == MOST_EMPTY:
            raise ValueError(
                f"Expected calibration data. Received {empty} empty batches, one after another."
            )
        if empty:
            continue
        inputs.append(x)
        labels.append(y)
        count += len(x[0]) if x[0].ndim else 0
        if progress:
            progress.update(min(count, limit))
        if count >= limit:
            break
    if not inputs:
        raise ValueError("Expected calibration data. Received none: the data are empty.")
    if progress:
        progress.update(min(count, limit), finalize=True)
    joined = [_concatenate(parts)[:limit] for parts in zip(*inputs, strict=True)]
    if any(y is None for y in labels):
        return joined, None
    return joined, keras.tree.map_structure(
        lambda *parts: np.concatenate([np.asarray(p) for p in parts])[:limit], *labels
    )


def _concatenate(parts) -> np.ndarray:
    shapes = {array.shape[1:] for array in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"Expected calibration batches of one shape. Received samples of {sorted(shapes)}."
        )
    return np.concatenate(parts)


def _check(array: np.ndarray, tensor) -> np.ndarray:
    name, expected = tensor.name, tuple(tensor.shape[1:])
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(
            f"Expected calibration data for input '{name}'. Received none: shape {array.shape}."
        )
    text = tensor.dtype == "string"
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool or text):
        raise TypeError(
            f"Expected numbers for input '{name}'. Received an array of dtype {array.dtype}."
        )
    if not _fits(array, tensor):
        shape = f"(samples, {', '.join(map(str, expected))})"
        raise ValueError(
            f"Expected calibration data of shape {shape} for input '{name}'. "
            f"Received: shape {array.shape}"
        )
    if text:
        return array
    _check_finite(array, f"input '{name}'")
    return array.astype(keras.backend.standardize_dtype(tensor.dtype), copy=False)


def _fits(array: np.ndarray, tensor) -> bool:
    """Whether an array has the shape of an input, the batch axis apart."""
    expected = tuple(tensor.shape[1:])
    return len(array.shape) == len(expected) + 1 and all(
        want in (None, got) for want, got in zip(expected, array.shape[1:], strict=True)
    )


def _check_finite(array: np.ndarray, name: str) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected finite calibration data for {name}. Received NaN or infinity in "
            f"{int(bad.sum())} of {len(array)} samples, the first at index {int(bad.argmax())}."
        )
