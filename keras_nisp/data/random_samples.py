"""Random samples in the range that a model's beginning expects: pixels behind a rescaling, indices
that an embedding knows, words of a vocabulary."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_nisp.channels.registry import operations, rule_of
from keras_nisp.data.samples import Samples
from keras_nisp.errors import check_count
from keras_nisp.keras_graph import keras_models, walking

WORDS = np.array(["a", "b", "c d", "e"])
PIXEL_SCALES = (64.0, 256.0)  # what divides by as much expects 0 to 255


@dataclasses.dataclass(frozen=True)
class _Arriving:
    """What arrives at a layer of a model's input: `scale * input + offset`.

    Attributes:
        index: of the input.
        moved: whether its axes may have changed.
    """

    index: int
    scale: Any = 1.0
    offset: Any = 0.0
    moved: bool = False

    def times(self, factor: Any, offset: Any = 0.0) -> "_Arriving":
        factor, offset = np.asarray(factor, np.float64), np.asarray(offset, np.float64)
        return dataclasses.replace(
            self, scale=self.scale * factor, offset=self.offset * factor + offset
        )

    def entering(self, wanted: np.ndarray) -> np.ndarray:
        """The input of which the wanted values arrive."""
        scale, offset = (
            np.mean(value) if self.moved else value for value in (self.scale, self.offset)
        )
        return (wanted - offset) / np.where(scale == 0, 1, scale)


# A draw gives values of a shape; the first axis is that of samples.
Draw = Callable[[np.random.Generator, tuple], np.ndarray]


def random_samples(model: keras.Model, shapes, count: int = 2, seed: int = 0) -> Samples:
    """Random samples for a model's inputs, in the range that its first layers expect.

    Args:
        model: a functional or Sequential model.
        shapes: of one sample of each input.
        count: of samples; as many more as fill the batches that the model may be bound to.
        seed: of the random numbers.
    """
    check_count("seed", seed, 0)
    rng, batch = np.random.default_rng(seed), keras_models.batch_size(model)
    count = -(-count // (batch or 1)) * (batch or 1)
    draws = _draws(model)
    inputs = []
    for index, (tensor, shape) in enumerate(
        zip(keras_models.body(model).inputs, shapes, strict=True)
    ):
        draw = draws.get(index) or _standard(tensor.dtype)
        values = draw(rng, (count, *shape))
        if tensor.dtype != "string":
            values = _as_type(values, keras.backend.standardize_dtype(tensor.dtype))
        inputs.append(values)
    return Samples(inputs, batch=batch)


def _as_type(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bool":
        return values > 0.5
    if "float" not in dtype:
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _standard(dtype: str) -> Draw:
    """What an input gets of which nothing is known."""
    if dtype == "string":
        return lambda rng, shape: rng.choice(WORDS, shape)
    if dtype == "uint8":
        return _pixels
    if "float" in keras.backend.standardize_dtype(dtype):
        return _normal
    # Any integer input takes 0 and 1.
    return lambda rng, shape: (_normal(rng, shape) > 0).astype(float)


def _normal(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    return rng.normal(size=shape)


def _pixels(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(float)


def _draws(model: keras.Model) -> dict[int, Draw]:
    """How the values of each input are drawn, by its index, where a layer tells it."""
    found: dict[int, Draw] = {}

    def visit(node, args, kwargs):
        operation, nothing = node.operation, [None] * len(node.outputs)
        if type(operation) is layers.TimeDistributed:
            operation = operation.layer
        values = keras.tree.flatten((args, kwargs))
        if keras_models.is_graph(operation):
            return walking.replay(operation, args[0] if args else kwargs["inputs"], visit)
        arriving = [value for value in values if isinstance(value, _Arriving)]
        if len(arriving) != 1:
            return nothing
        dtype = keras_models.body(model).inputs[arriving[0].index].dtype
        if draw := _expected(operation, arriving[0], dtype):
            found.setdefault(arriving[0].index, draw)
            return nothing
        passed = _passed(operation, args, arriving[0])
        return nothing if passed is None else [passed] * len(node.outputs)

    inputs = [_Arriving(index) for index in range(len(keras_models.body(model).inputs))]
    walking.replay(
        model, keras.tree.pack_sequence_as(keras_models.input_structure(model), inputs), visit
    )
    return found


def _passed(operation: keras.Operation, args: tuple, value: _Arriving) -> _Arriving | None:
    """What leaves a layer that only rescales or moves values."""
    rule = rule_of(operation)
    constants = rule.affine(operation, args)
    if constants is None:
        return None
    moved = value.moved or not rule.elementwise
    return dataclasses.replace(value.times(*constants), moved=moved)


def _expected(operation: keras.Operation, value: _Arriving, dtype: str) -> Draw | None:
    """How an input is drawn for a layer that tells what it expects; `None` if it does not."""
    count = _indices(operation)
    if count is not None:
        return lambda rng, shape: value.entering(rng.integers(0, count, shape))
    words = _vocabulary(operation, dtype)
    if words is not None:
        return lambda rng, shape: _chosen(rng, words, shape)
    if isinstance(operation, layers.Discretization) and operation.bin_boundaries:
        low, high = np.min(operation.bin_boundaries), np.max(operation.bin_boundaries)
        margin = (high - low) / len(operation.bin_boundaries) or 1.0
        return lambda rng, shape: value.entering(rng.uniform(low - margin, high + margin, shape))
    if draw := _by_statistics(operation, value):
        return draw
    if getattr(operation, "weights", ()) and "float" in keras.backend.standardize_dtype(dtype):
        return _for_weights(value)
    if getattr(operation, "weights", ()) and np.any(np.asarray(value.scale) != 1):
        return _for_weights(value)
    return None


def _for_weights(value: _Arriving) -> Draw:
    """What a layer with weights expects: about a mean of 0 and a variance of 1."""
    scale = np.mean(np.abs(value.scale))
    if scale and PIXEL_SCALES[0] <= 1 / scale <= PIXEL_SCALES[1]:
        return _pixels
    return lambda rng, shape: value.entering(_normal(rng, shape))


def _by_statistics(operation: keras.Operation, value: _Arriving) -> Draw | None:
    """Values like those that a layer took in training, if it keeps their statistics."""

    def draw(rng, shape):
        statistics = rule.input_statistics(operation, len(shape))
        assert statistics is not None  # as at rank 1
        mean, variance = statistics
        around, spread = mean.astype(np.float64), np.sqrt(np.maximum(variance, 0))
        if value.moved:
            around, spread = around.mean(), spread.mean()
        return value.entering(around + spread * _normal(rng, shape))

    rule = rule_of(operation)
    known = rule.input_statistics(operation, 1)
    if known is None or (np.all(known[0] == 0) and np.all(known[1] == 1)):
        return None
    return draw


def _indices(operation: keras.Operation) -> int | None:
    """How many indices a layer takes, if it takes indices."""
    if isinstance(operation, layers.Embedding):
        return operation.input_dim
    if isinstance(operation, layers.CategoryEncoding):
        return operation.num_tokens if operation.output_mode != "count" else None
    if type(operation) in operations("one_hot", "multi_hot"):
        return operation.num_classes
    return None


def _vocabulary(operation: keras.Operation, dtype: str) -> Sequence | None:
    """What a layer that looks words or numbers up knows."""
    if isinstance(operation, (layers.StringLookup, layers.IntegerLookup, layers.TextVectorization)):
        known = list(operation.get_vocabulary(include_special_tokens=False))
        if not known or getattr(operation, "invert", False):
            return None
        return known
    if isinstance(operation, layers.Hashing):
        return WORDS.tolist() if dtype == "string" else range(1000)
    return None


def _chosen(rng: np.random.Generator, words: Sequence, shape: tuple) -> np.ndarray:
    return np.asarray(words)[rng.integers(0, len(words), shape)]
