"""Samples from whatever Keras users pass."""

import itertools
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.data.model_inputs import (
    LISTS,
    InputReader,
    cast,
    check_finite,
    dense,
    is_text,
)
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
            keys, or those of the dict that the model takes. A last axis of 1 is added or dropped,
            as Keras does. If an element may be a batch or a sample, as where sizes are open, it is
            what needs no such axis.
        model: gives the number, names, shapes and dtypes of the inputs.
        limit: number of samples; arrays are sampled at random, the others from their
            start.
        seed: for sampling arrays.
        labels: whether labels are needed. If not, those that differ in shape from batch to batch
            are left.
        verbose: 1 shows a progress bar while data are read.

    Returns:
        `Samples`.

    Raises:
        ValueError: there are no data, shapes or numbers of labels do not fit, or values are not
            finite or not of the input's dtype.
        TypeError: the data are of an unknown kind, or labels are needed and missing.
    """
    check_count("max_samples", limit)
    check_count("seed", seed, 0)
    if isinstance(data, Samples):
        samples = data.first(limit)
    else:
        samples = _collected(data, model, limit, seed, labels, verbose)
    if labels:
        _check_labels(samples.labels)
    return samples


def _collected(
    data: Any, model: keras.Model, limit: int, seed: int, labels: bool, verbose: int
) -> Samples:
    tensors = keras_models.body(model).inputs
    reader = InputReader(model)
    if _is_arrays(data):
        x, y = _split(data)
        inputs, y = _sample(reader.batch(x), y, limit, seed, labels)
    else:
        inputs, y = _read(data, reader, limit, labels, verbose)
    inputs = [cast(array, tensor) for array, tensor in zip(inputs, tensors, strict=True)]
    return Samples(inputs, y, keras_models.batch_size(model), reader.names)


def _check_labels(labels: Any) -> None:
    """Raises unless there are labels, none of them NaN or infinite."""
    if labels is None:
        raise TypeError(
            "Expected calibration data with labels, as an `(x, y)` tuple or a dataset of "
            "them. Received data without labels, or with labels that differ in shape."
        )
    for array in keras.tree.flatten(labels):
        if np.issubdtype(array.dtype, np.floating):
            check_finite(array, "labels")


def _is_arrays(data) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and all(_is_arrays(part) or part is None for part in data)
    if isinstance(data, dict):
        return bool(data) and all(_is_arrays(part) for part in data.values())
    return tf.is_tensor(data) or hasattr(data, "__array__") or hasattr(data, "toarray")


def _split(element) -> tuple[Any, Any]:
    """x and y of one element, by the conventions of `fit`: a tuple is (x, y, ...)."""
    if isinstance(element, tuple) and 1 <= len(element) <= 3:
        x, y = element[0], element[1] if len(element) > 1 else None
        return x, y
    return element, None


def _sample(inputs: list[np.ndarray], y: Any, limit: int, seed: int, needed: bool):
    """At most `limit` of the samples in arrays, drawn at random, with their labels."""
    count = len(inputs[0])
    shapes = [tuple(part.shape) for part in keras.tree.flatten(y) if part is not None]
    if any(shape[:1] != (count,) for shape in shapes):
        raise ValueError(
            f"Expected a label for each of the {count} samples. Received labels of shape "
            f"{', '.join(map(str, shapes))}."
        )
    y = _labels([_Labels(y, count, single=False)], needed)
    if count <= limit:
        return inputs, y
    chosen = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
    return [array[chosen] for array in inputs], map_labels(operator.itemgetter(chosen), y)


def _elements(data) -> Iterable:
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches  # `None`: without end
        return (data[i] for i in (itertools.count() if count is None else range(count)))
    if isinstance(data, tuple) and len(data) <= 3:
        kinds = ", ".join(type(part).__name__ for part in data)
        raise TypeError(
            f"Expected arrays or tensors in a tuple, as in `(x, y)`. Received: ({kinds}). {LISTS}"
        )
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return data
    raise TypeError(
        "Expected calibration data to be a NumPy array, a tf.data.Dataset, a "
        f"keras.utils.PyDataset or an iterable of batches. Received: {type(data).__name__}"
    )


def _read(data, reader: InputReader, limit: int, needed: bool, verbose: int):
    """Reads batches until there are enough samples."""
    inputs, labels, count, empty = [], [], 0, 0
    progress = Progress(limit, verbose, "Reading samples", "sample")
    for element in _elements(data):
        x, y = _split(element)
        x, single = reader.element(x)
        empty = 0 if len(x[0]) else empty + 1
        if empty == MOST_EMPTY:
            raise ValueError(
                f"Expected calibration data. Received {empty} empty batches, one after another."
            )
        if empty:
            continue
        inputs.append(x)
        labels.append(_Labels(y, len(x[0]), single))
        count += len(x[0])
        progress.update(count, last=False)
        if count >= limit:
            break
    if not inputs:
        raise ValueError("Expected calibration data. Received none: the data are empty.")
    progress.update(count, last=True)
    joined = [_concatenate(parts)[:limit] for parts in zip(*inputs, strict=True)]
    return joined, map_labels(operator.itemgetter(slice(limit)), _labels(labels, needed))


def _concatenate(parts) -> np.ndarray:
    shapes = {array.shape[1:] for array in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"Expected calibration batches of one shape. Received samples of {sorted(shapes)}."
        )
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


class _Labels(NamedTuple):
    """Labels of a batch of so many `samples`, or of a single one."""

    given: Any
    samples: int
    single: bool

    def array(self, part: Any) -> np.ndarray:
        """One of them with an axis of samples."""
        array = dense(part, "labels of one length")
        array = array[None] if self.single else array
        if len(array) != self.samples or (array.dtype == object and not is_text(array)):
            raise ValueError("labels do not go with samples")
        return array


def _labels(batches: list[_Labels], needed: bool) -> Any:
    """The labels of batches in one piece; `None` where they cannot be joined, unless needed."""
    parts = [batch.given for batch in batches]
    if any(part is None for part in parts):
        return None
    try:
        return keras.tree.map_structure(
            lambda *columns: _concatenate(list(map(_Labels.array, batches, columns))), *parts
        )
    except (TypeError, ValueError) as error:  # ragged, or of several shapes or structures
        if not needed:
            return None
        shapes = (
            keras.tree.map_structure(lambda part: tuple(getattr(part, "shape", ())), given)
            for given in parts
        )
        shown = ", then ".join(list(dict.fromkeys(map(str, shapes)))[:3])
        raise ValueError(
            "Expected labels of one structure, with one entry for each sample, all of one shape. "
            f"Received labels of the shapes {shown[:400]}: pad them; make arrays of lists."
        ) from error
