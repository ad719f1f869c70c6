"""Where the batch axis of a call's tensors is, and calls in which it is open."""

from typing import Any

import keras

from keras_nisp.functional.call_graphs import for_any_batch
from keras_nisp.functional.moved_batch import NotAGraphError, is_tensor
from keras_nisp.keras_graph.masks import mask_of, set_mask

PROBE = 13  # batch size at which a call is traced that does not take an open one


def place_of(tensor: keras.KerasTensor, batch: int | None) -> int | None:
    """Where the batch axis of a call's tensor is; `None` if that cannot be told.

    It is the first, perhaps with others in it, wherever that is possible.

    Args:
        tensor: of the call.
        batch: the batch size, `None` if it is open.
    """
    sizes = {batch or PROBE, PROBE}
    first = tensor.shape[0] if tensor.shape else None
    if first in (None, 1) or any(not first % size for size in sizes):
        return 0
    places = [axis for axis, size in enumerate(tensor.shape) if size is None or size in sizes]
    return places[0] if len(places) == 1 and mask_of(tensor) is None else None


def places_of(tensors: list, batch: int | None) -> list[int]:
    """Where the batch axes of a call's tensors are."""
    places = [place for x in tensors if (place := place_of(x, batch)) is not None]
    if len(places) < len(tensors):
        raise NotAGraphError("it cannot be told which axis of what it takes is that of samples")
    return places


def rows_of(tensors: list, probe: int) -> int:
    """The batch size of a call inside of one that is traced at a batch size: it has more rows where
    samples are in parts, such as windows, side by side."""
    places = [place_of(x, probe) for x in tensors]
    sizes = {x.shape[p] for x, p in zip(tensors, places, strict=True) if p is not None and x.shape}
    size = sizes.pop() if len(sizes) == 1 else probe
    return probe if size is None or size % probe else size


def with_open_batch(value: Any, probe: int | None) -> Any:
    """An argument of a call that is traced at a batch size, as it is at any."""
    if probe is None:
        return value
    if not is_tensor(value):
        return for_any_batch(value, probe)
    place = place_of(value, probe)
    if place is None or tuple(value.shape[place : place + 1]) != (probe,):
        return value
    shape = (*value.shape[:place], None, *value.shape[place + 1 :])
    opened = keras.Input(batch_shape=shape, dtype=value.dtype)
    if mask_of(value) is not None:
        set_mask(opened, with_open_batch(mask_of(value), probe))
    return opened
