"""Weights that the code of a layer uses by itself, as what layers of Keras give."""

import string
from typing import Any

import keras
import numpy as np

from keras_nisp.functional.moved_batch import (
    MovedBatch,
    NotAGraphError,
    UnsupportedLayoutError,
    Weight,
    batch_of,
    is_tensor,
    moved,
    reshaped,
    tensor_of,
)
from keras_nisp.keras_graph import symbolic
from keras_nisp.keras_graph.weight_layers import WeightLayers


class HeldWeights:
    """What the calls of one graph get for the weights that they use.

    Args:
        like: a tensor of the graph, which has its batch axis first.
        layers: layers for the weights.
        dtype: the policy of the layer whose weights they are.
        once: `id` of the weights that one call alone uses.
    """

    def __init__(self, like: Any, layers: WeightLayers, dtype: Any, once: set[int]) -> None:
        self.like, self.layers, self.dtype, self.once = like, layers, dtype, once
        self.tables: dict[int, Any] = {}

    def weight(self, variable: keras.Variable) -> Weight:
        """The value of a weight in the graph."""
        return Weight(variable, tuple(range(len(variable.shape))), self.table)

    def table(self, variable: keras.Variable) -> Any:
        """A weight for each sample."""
        if id(variable) not in self.tables:
            layer = self.layers.table(variable, self.dtype) if len(variable.shape) else None
            if layer is None:
                raise NotAGraphError(
                    f"it uses its weight '{variable.name}' in ways that no layer of Keras has"
                )
            self.tables[id(variable)] = layer(keras.ops.add(self._zeros("float32"), 1.0))
        return self.tables[id(variable)]

    def rows(self, x: Weight, indices: Any) -> Any:
        """Rows of a weight, looked up by an `Embedding`; `None` if that cannot be."""
        alone = id(x.variable) in self.once and x.axes == (0, 1)
        layer = self.layers.rows(x.variable, self.dtype) if alone else None
        if layer is None:
            return None
        if isinstance(indices, MovedBatch):
            return moved(layer(indices.tensor), indices.batch)
        if is_tensor(indices):
            return layer(indices)
        indices = np.asarray(indices, "int32")
        zeros = reshaped(self._zeros("int32"), [1] * indices.ndim)
        return MovedBatch(layer(keras.ops.add(zeros, indices[None])), None)

    def product(self, operands: tuple, terms: list[str], output: str) -> Any:
        """An einsum.

        Args:
            operands: values of any kind.
            terms, output: the letters of their axes and of those of the result.
        """
        pairs = list(zip(operands, terms, strict=True))
        used = "".join(terms)
        samples = {term[batch_of(x)] for x, term in pairs if batch_of(x) is not None}
        first = samples.pop() if samples else _unused(used)
        if samples or (first in used and first not in output):
            raise UnsupportedLayoutError
        place = output.index(first) if first in output else None
        output = first + output.replace(first, "")
        written = []
        for x, term in pairs:
            if batch_of(x) is None and first in term:
                raise UnsupportedLayoutError
            is_array = not isinstance(x, MovedBatch) and not is_tensor(x)
            written.append(term if is_array else first + term.replace(first, ""))
        product = self._by_layer(operands, written, output)
        if product is None:
            equation = f"{','.join(written)}->{output}"
            product = keras.ops.einsum(equation, *map(tensor_of, operands))
        return moved(product, place)

    def _by_layer(self, operands: tuple, terms: list[str], output: str) -> Any:
        """A product with a weight by a layer that holds it; `None` for other products."""
        weights = [x for x in operands if isinstance(x, Weight) and id(x.variable) in self.once]
        if len(operands) != 2 or len(weights) != 1:
            return None
        index = operands.index(weights[0])
        x, term = operands[1 - index], terms[1 - index]
        if batch_of(x) is None:
            return None
        kernel = terms[index][1:]  # without the letter of samples
        kernel = "".join(kernel[weights[0].axes.index(axis)] for axis in range(len(kernel)))
        if not set(kernel) <= set(term + output) or not set(output) <= set(term + kernel):
            return None
        layer = self.layers.product(weights[0].variable, f"{term},{kernel}->{output}", self.dtype)
        return None if layer is None else symbolic.called(layer, (tensor_of(x),), {})

    def _zeros(self, dtype: str) -> Any:
        """A zero for each sample."""
        zeros = keras.ops.zeros_like(self.like, dtype=dtype)
        axes = tuple(range(1, len(self.like.shape)))
        return keras.ops.sum(zeros, axis=axes) if axes else zeros


def _unused(letters: str) -> str:
    return next(letter for letter in string.ascii_letters if letter not in letters)
