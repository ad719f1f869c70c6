"""Arrays for the inputs of a model: laid out and cast as Keras does when it runs the model."""

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.keras_graph import keras_models

# Of an element: is its rank adjusted, is it a single sample? As it is comes first.
READINGS = list(itertools.product((False, True), (False, True)))
LISTS = "A list of numbers counts as many inputs or labels: make it an array by `np.asarray`."


class InputReader:
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
        self._earlier: list[tuple[bool, bool]] = []

    def batch(self, x: Any) -> list[np.ndarray]:
        """The arrays of data whose first axis is that of samples."""
        return self._checked(self._arrays(x))

    def element(self, x: Any) -> tuple[list[np.ndarray], bool]:
        """The arrays of a batch or a single sample, as a batch, and whether it was a single one.

        Where both are possible, it is what earlier elements were (the last batch may have one
        sample), or else what has the rank as it is.
        """
        arrays = self._arrays(x)
        for adjust, single in (*self._earlier, *READINGS):
            layout = [array[None] for array in arrays] if single else arrays
            layout = self._adjusted(layout) if adjust else layout
            if self._fit(layout):
                self._earlier = [(adjust, single)]
                return layout, single
        return self._checked(arrays), False

    def _adjusted(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(map(_adjusted, arrays, self.tensors))

    def _fit(self, arrays: list[np.ndarray]) -> bool:
        return all(map(fits, arrays, self.tensors)) and len(set(map(len, arrays))) == 1

    def _checked(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        arrays = self._adjusted(arrays)
        for array, tensor, name in zip(arrays, self.tensors, self.known, strict=True):
            if not fits(array, tensor):
                shape = ", ".join(map(str, ("samples", *tensor.shape[1:])))
                raise ValueError(
                    f"Expected calibration data of shape ({shape}) for input '{name}'. "
                    f"Received: shape {array.shape}"
                )
        if not self._fit(arrays):
            raise ValueError(
                "Expected calibration arrays of one length. Received shapes "
                f"{[array.shape for array in arrays]}."
            )
        return arrays

    def _arrays(self, x: Any) -> list[np.ndarray]:
        """What stands for the inputs, as it is."""
        if isinstance(x, dict):
            x = self._by_name(x)
        elif isinstance(x, (list, tuple)):
            x = keras.tree.flatten(x) if len(x) != len(self.tensors) else list(x)
        else:
            x = [x]
        if len(x) != len(self.tensors):
            raise ValueError(
                f"Expected calibration data for {len(self.tensors)} model inputs. Received "
                f"{len(x)} arrays. ({_hint(x)})"
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


def _hint(parts: list) -> str:
    """Why there may be another number of arrays than a model takes."""
    if any(isinstance(part, (bool, int, float, str, bytes)) for part in parts):
        return LISTS
    return "Labels are told from inputs in a tuple: `(x, y)`."


def _array(x: Any, name: str, optional: bool) -> np.ndarray:
    """Data of one input as a dense array."""
    if x is None:
        hint = " It is optional, but data are needed: pass zeros, say." if optional else ""
        raise ValueError(f"Expected calibration data for input '{name}'. Received: None.{hint}")
    return dense(x, f"calibration data of one length for input '{name}'")


def dense(x: Any, expected: str) -> np.ndarray:
    """An array of a tensor, sparse or not; of a ragged one it says what was expected."""
    if isinstance(x, (tf.RaggedTensor, tf.compat.v1.ragged.RaggedTensorValue)):
        raise TypeError(
            f"Expected {expected}. Received a ragged tensor: pad it with `.to_tensor()`."
        )
    if isinstance(x, tf.SparseTensor):
        x = tf.sparse.to_dense(x)
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x)


def _adjusted(array: np.ndarray, tensor) -> np.ndarray:
    """An array with a last axis of 1 added or dropped, as Keras does, if it fits an input then."""
    forms = [array]
    if tensor.shape[-1] == 1:
        forms.append(array[..., None])
    if array.shape[-1:] == (1,):
        forms.append(array[..., 0])
    return next((form for form in forms if fits(form, tensor)), array)


def fits(array: np.ndarray, tensor) -> bool:
    """Whether an array has the shape of an input, the batch axis apart."""
    expected = tuple(tensor.shape[1:])
    return len(array.shape) == len(expected) + 1 and all(
        want in (None, got) for want, got in zip(expected, array.shape[1:], strict=True)
    )


def cast(array: np.ndarray, tensor) -> np.ndarray:
    """An array in the dtype of an input; raises where that changes more than digits."""
    dtype, name = keras.backend.standardize_dtype(tensor.dtype), f"input '{tensor.name}'"
    text, whole = dtype == "string", "int" in dtype or dtype == "bool"
    if not len(array):
        raise ValueError(
            f"Expected calibration data for {name}. Received none: shape {array.shape}."
        )
    known = is_text(array) if text else is_numeric(array)
    if not known and not (array.dtype.kind == "c" and "complex" in dtype):
        raise TypeError(
            f"Expected {'strings' if text else 'real numbers'} for {name}. Received an array of "
            f"dtype {array.dtype}{' that holds others, too' if array.dtype == object else ''}."
        )
    if text:
        return array.astype(object)  # TensorFlow takes not every other form
    check_finite(array, name)
    with np.errstate(all="ignore"):  # it is said below
        values = array.astype(dtype, copy=False)
    bad = values != array if whole else ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"Expected values that {dtype} can hold for {name}. Received others, such as "
            f"{array[bad][0]}: scale, clip or round them as in training."
        )
    return values


def is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "UST" or all(isinstance(v, (str, bytes)) for v in array.flat)


def is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"


def check_finite(array: np.ndarray, name: str) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected finite calibration data for {name}. Received NaN or infinity in "
            f"{int(bad.sum())} of {len(array)} samples, the first at index {int(bad.argmax())}."
        )
