"""What the conversion makes of a composite: a model, constants, or a reason why it stays."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_nisp.functional.equivalence import masks_of, tensors_of
from keras_nisp.functional.moved_batch import batch_first, is_tensor, with_batch_at
from keras_nisp.keras_graph import keras_models
from keras_nisp.keras_graph.masks import set_mask


@dataclasses.dataclass(frozen=True)
class Converted:
    """A composite, converted.

    Attributes:
        model: takes the tensors of the composite's call, and gives those of its result.
        structure: the composite's result; what is no tensor in it stands as it is.
        masks: for each tensor of the result which of its arguments' masks it carries.
        batches: for each tensor of the result where its batch axis is; the model has it first.
        takes: the same for the tensors of the call.
    """

    model: keras.Model
    structure: Any
    masks: list[int | None]
    batches: list[int]
    takes: list[int]

    def __call__(self, args, kwargs):
        settings = {"training": kwargs["training"]} if "training" in kwargs else {}
        tensors = tensors_of(args, kwargs)
        masks = masks_of(tensors)
        given = [*map(batch_first, tensors, self.takes), *masks]
        outputs = keras.tree.flatten(self.model(single(given), **settings))
        for tensor, index in zip(outputs, self.masks, strict=True):
            if index is not None:
                set_mask(tensor, masks[index])
        pending = map(with_batch_at, outputs, self.batches)
        return keras.tree.map_structure(
            lambda x: next(pending) if is_tensor(x) else x, self.structure
        )


@dataclasses.dataclass(frozen=True)
class Constants:
    """A composite whose result follows from the sizes of its arguments: positions, a mask.

    Attributes:
        structure: the result.
        has_rows: whether it has a row for each sample of the batch at which it was traced.
    """

    structure: Any
    has_rows: bool

    def __call__(self, args, kwargs):
        return self.structure


@dataclasses.dataclass(frozen=True)
class Kept:
    """A layer that could not be converted in one of its calls, and why."""

    layer: keras.Layer
    reason: str


def single(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def number_calls(graph: keras.Model, composites: Iterable[tuple[keras.Layer, list[tuple]]]) -> None:
    """Names what became of each call of a layer: the first as the layer, others with a number.

    Attempts that came to nothing do not count, and no other layer has such a name.

    Args:
        graph: in which they are.
        composites: layers, and of each the calls with what became of them.
    """
    used = list(keras_models.operations(graph))
    known, taken = set(map(id, used)), {operation.name for operation in used}
    for layer, calls in composites:
        numbered = (f"{layer.name}_{number}" for number in itertools.count(2))
        others = (name for name in numbered if name not in taken)
        stays = id(layer) in known  # in another call, under its name
        names: Iterator[str] = others if stays else itertools.chain([layer.name], others)
        for _, made, _ in calls:
            if isinstance(made, Converted) and id(made.model) in known:
                made.model.name = next(names)
