"""Samples from whatever Keras users pass."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.data.samples import MAX_SAMPLES, Samples, map_labels
from keras_nisp.errors import check_count
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph import keras_models

MOST_EMPTY = 100  # batches without samples: a source may never give any


def collect(
    data: Any,
    model: keras.Model,
    limit: int = MAX_SAMPLES,
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
    check_count("max_samples", limit)
    if isinstance(data, Samples):
        samples = data.first(limit)
    else:
        samples = _collected(data, model, limit, seed, verbose)
    if labels:
        _check_labels(samples.labels)
    return samples


def _collected(data: Any, model: keras.Model, limit: int, seed: int, verbose: int) -> Samples:
    tensors = keras_models.body(model).inputs
    reader = _Reader(model)
    if _is_arrays(data):
        x, y = _split(data)
        inputs, y = _sample(reader.arrays(x), y, limit, seed)
    else:
        inputs, y = _read(data, reader, limit, verbose)
    inputs = [_check(array, tensor) for array, tensor in zip(inputs, tensors, strict=True)]
    return Samples(inputs, y, keras_models.batch_size(model), reader.names)


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
        self.tensors = keras_models.body(model).inputs
        self.known = tuple(keras_models.input_names(model))
        self.structure = keras_models.input_structure(model)
        self.optional = [keras_models.is_optional(tensor) for tensor in self.tensors]
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
                f"{len(x)} arrays. (Labels are told from inputs in a tuple: `(x, y)`.)"
            )
        return [_array(*row) for row in zip(x, self.known, self.optional, strict=True)]

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
        return inputs, map_labels(np.asarray, y)
    chosen = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
    labels = map_labels(lambda array: np.asarray(array)[chosen], y)
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
    progress = Progress(limit, verbose, "Reading samples", "sample")
    for element in _elements(data):
        x, y = _split(element)
        x = reader.arrays(x)
        if x[0].ndim == rank - 1:  # not batched
            x = [array[None] for array in x]
            y = map_labels(lambda array: np.asarray(array)[None], y)
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
        progress.update(count, last=False)
        if count >= limit:
            break
    if not inputs:
        raise ValueError("Expected calibration data. Received none: the data are empty.")
    progress.update(count, last=True)
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
    if not (_is_text(array) if text else _is_numeric(array)):
        raise TypeError(
            f"Expected {'strings' if text else 'numbers'} for input '{name}'. Received an array of "
            f"dtype {array.dtype}{' that holds others, too' if array.dtype == object else ''}."
        )
    if not fits(array, tensor):
        shape = f"(samples, {', '.join(map(str, expected))})"
        raise ValueError(
            f"Expected calibration data of shape {shape} for input '{name}'. "
            f"Received: shape {array.shape}"
        )
    if text:
        return array.astype(object)  # TensorFlow takes not every other form
    _check_finite(array, f"input '{name}'")
    return array.astype(keras.backend.standardize_dtype(tensor.dtype), copy=False)


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "UST" or all(isinstance(v, (str, bytes)) for v in array.flat)


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"


def fits(array: np.ndarray, tensor) -> bool:
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
