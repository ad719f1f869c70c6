"""Calibration data: samples from whatever Keras users have at hand."""

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp import graph

DEFAULT_BATCH = 64


class Samples:
    """Some samples in memory.

    Attributes:
        inputs: one array per model input, each `(samples, ...)`.
        labels: array (or structure of arrays) of labels, or `None`.
    """

    def __init__(self, inputs: list[np.ndarray], labels: Any = None):
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.inputs[0])

    def first(self, count: int) -> "Samples":
        """The first so many of them."""
        if len(self) <= count:
            return self
        labels = _map_labels(operator.itemgetter(slice(count)), self.labels)
        return Samples([array[:count] for array in self.inputs], labels)

    def batches(self, batch_size: int = DEFAULT_BATCH) -> Iterator[tuple[list, Any]]:
        """Pairs of (list of input tensors, labels), in order."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            labels = _map_labels(operator.itemgetter(part), self.labels)
            yield [tf.convert_to_tensor(array[part]) for array in self.inputs], labels


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
        self._read: dict[tuple, Samples] = {}

    def samples(self, model: keras.Model) -> Samples:
        """The samples for a model."""
        inputs = graph.body(model).inputs
        signature = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if signature not in self._read:
            self._read[signature] = collect(self.data, model, **self.arguments)
        return self._read[signature]


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
            `(x, y)` or `(x, y, weight)` tuples.
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
    if labels and samples.labels is None:
        raise TypeError(
            "Expected calibration data with labels, as an `(x, y)` tuple or a dataset of "
            "them. Received data without labels."
        )
    return samples


def _collected(data: Any, model: keras.Model, limit: int, seed: int, verbose: int) -> Samples:
    tensors = graph.body(model).inputs
    if _is_arrays(data):
        x, y = _split(data)
        inputs, y = _sample(_flat_inputs(x, model), y, limit, seed)
    else:
        inputs, y = _read(data, model, limit, verbose)
    inputs = [_check(array, tensor) for array, tensor in zip(inputs, tensors, strict=True)]
    return Samples(inputs, y)


def _is_arrays(data) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and all(_is_arrays(part) or part is None for part in data)
    if isinstance(data, dict):
        return bool(data) and all(_is_arrays(part) for part in data.values())
    return isinstance(data, np.ndarray) or tf.is_tensor(data)


def _split(element) -> tuple[Any, Any]:
    """x and y of one element, by the conventions of `fit`: a tuple is (x, y, ...)."""
    if isinstance(element, tuple) and 1 <= len(element) <= 3:
        x, y = element[0], element[1] if len(element) > 1 else None
        return x, y
    return element, None


def _flat_inputs(x, model) -> list[np.ndarray]:
    if isinstance(x, dict):
        names = graph.input_names(model)
        missing = [name for name in names if name not in x]
        if missing:
            raise ValueError(
                f"Expected calibration data for the inputs {names}. Received a dict with "
                f"the keys {list(x)}."
            )
        x = [x[name] for name in names]
    tensors = graph.body(model).inputs
    arrays = [np.asarray(part) for part in (x if isinstance(x, (list, tuple)) else [x])]
    if len(arrays) != len(tensors):
        raise ValueError(
            f"Expected calibration data for {len(tensors)} model inputs. Received "
            f"{len(arrays)} arrays."
        )
    return arrays


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


def _read(data, model, limit, verbose):
    """Reads batches until there are enough samples."""
    inputs, labels, count = [], [], 0
    rank = len(graph.body(model).inputs[0].shape)
    progress = keras.utils.Progbar(limit, unit_name="sample") if verbose else None
    for element in _elements(data):
        x, y = _split(element)
        x = _flat_inputs(x, model)
        if x[0].ndim == rank - 1:  # not batched
            x = [array[None] for array in x]
            y = _map_labels(lambda array: np.asarray(array)[None], y)
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
    fits = len(array.shape) == len(expected) + 1 and all(
        want in (None, got) for want, got in zip(expected, array.shape[1:], strict=True)
    )
    if not fits:
        shape = f"(samples, {', '.join(map(str, expected))})"
        raise ValueError(
            f"Expected calibration data of shape {shape} for input '{name}'. "
            f"Received: shape {array.shape}"
        )
    if text:
        return array
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected finite calibration data for input '{name}'. Received NaN or infinity in "
            f"{int(bad.sum())} of {len(array)} samples, the first at index {int(bad.argmax())}."
        )
    return array.astype(keras.backend.standardize_dtype(tensor.dtype), copy=False)


def random_samples(model: keras.Model, shapes, count: int = 2, seed: int = 0) -> Samples:
    """Normally distributed samples for a model's inputs; shapes without the batch axis."""
    rng = np.random.default_rng(seed)
    inputs = []
    for tensor, shape in zip(graph.body(model).inputs, shapes, strict=True):
        values = rng.normal(size=(count, *shape))
        if tensor.dtype == "string":
            inputs.append(np.where(values > 0, "a", "b"))
            continue
        if "float" not in keras.backend.standardize_dtype(tensor.dtype):
            values = values > 0  # any integer input takes 0 and 1
        inputs.append(values.astype(keras.backend.standardize_dtype(tensor.dtype)))
    return Samples(inputs)
