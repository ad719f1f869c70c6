"""Wrappers, taken apart: `TimeDistributed` and `Bidirectional` as calls of what they wrap.

So the layers inside need no rules of their own, and may be whole models.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from keras_nisp.keras_graph.masks import carry_mask, mask_of, set_mask

# The attributes that hold what a wrapper wraps.
WRAPPED = {
    layers.TimeDistributed: ("layer",),
    layers.Bidirectional: ("forward_layer", "backward_layer"),
}
MERGES = {
    "concat": layers.Concatenate,
    "sum": layers.Add,
    "ave": layers.Average,
    "mul": layers.Multiply,
}


class FlipTime(keras.Operation):
    """Turns the order of time steps around.

    The mask stays: recurrent layers that go backwards pass it on as it was, in the order of time.
    """

    def call(self, x):
        return carry_mask(x, ops.flip(x, axis=1))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class PairDirections(keras.Operation):
    """Passes what both directions give: Keras takes them to be equally wide."""

    def call(self, forward, backward):
        return [forward, backward]

    def compute_output_spec(self, forward, backward):
        return [keras.KerasTensor(x.shape, x.dtype) for x in (forward, backward)]


class FoldTime(keras.Operation):
    """Moves the time steps into the batch axis.

    Args:
        takes_mask: whether the layer inside takes a mask: Keras gives it that of its time step.
    """

    def __init__(self, takes_mask: bool):
        super().__init__()
        self.takes_mask = takes_mask

    def call(self, x, mask=None):
        folded = ops.reshape(x, (-1, *ops.shape(x)[2:]))
        mask = mask_of(x) if mask is None else mask
        if mask is None or not self.takes_mask:
            return folded
        return set_mask(folded, ops.reshape(mask, (-1, *ops.shape(mask)[2:])))

    def compute_output_spec(self, x, mask=None):
        return keras.KerasTensor((None, *x.shape[2:]), x.dtype)


class UnfoldTime(keras.Operation):
    """Moves time steps out of the batch axis again; the second tensor says how many.

    Args:
        passes_mask: whether the wrapper passes its mask on (Keras 3.16 does not).
    """

    def __init__(self, passes_mask: bool):
        super().__init__()
        self.passes_mask = passes_mask

    def call(self, x, like):
        unfolded = ops.reshape(x, (-1, ops.shape(like)[1], *ops.shape(x)[1:]))
        return carry_mask(like, unfolded) if self.passes_mask else unfolded

    def compute_output_spec(self, x, like):
        return keras.KerasTensor((None, like.shape[1], *x.shape[1:]), x.dtype)


def is_wrapper(operation: keras.Operation) -> bool:
    """Whether `take_apart` knows this operation."""
    return type(operation) in WRAPPED


def take_apart(wrapper: keras.Layer, path: str, args: tuple, kwargs: dict, call: Callable) -> Any:
    """Runs what a wrapper does as single calls.

    Args:
        wrapper: a `TimeDistributed` or `Bidirectional` layer.
        path: its name, after the names of the models that hold it.
        args, kwargs: of its call.
        call: `call(operation, path, args, kwargs)` gives the flat list of outputs.
    """
    if isinstance(wrapper, layers.TimeDistributed):
        sequence, *options = args
        mask = dict(zip(("training", "mask"), options, strict=False), **kwargs).get("mask")
        inner = wrapper.layer
        fold = FoldTime(getattr(inner, "_call_has_mask_arg", False))
        given = (sequence,) if mask is None else (sequence, mask)
        folded = call(fold, f"{path}/fold", given, {})
        (output,) = call(inner, f"{path}/{inner.name}", tuple(folded), {})
        return call(UnfoldTime(wrapper.supports_masking), f"{path}/unfold", (output, sequence), {})
    return _both_directions(wrapper, path, args, kwargs, call)


def _both_directions(wrapper, path, args, kwargs, call) -> list:
    directions = wrapper.forward_layer, wrapper.backward_layer
    results = []
    sequence, *options = args
    options = dict(zip(("initial_state", "mask"), options, strict=False), **kwargs)
    for index, layer in enumerate(directions):
        own = dict(options)
        if own.get("initial_state") is not None:
            half = len(own["initial_state"]) // 2
            own["initial_state"] = own["initial_state"][index * half :][:half]
        results.append(call(layer, f"{path}/{layer.name}", (sequence,), own))
    (forward, *states), (backward, *more) = results
    if wrapper.return_sequences:
        (backward,) = call(FlipTime(), f"{path}/flip", (backward,), {})
    forward, backward = call(PairDirections(), f"{path}/pair", (forward, backward), {})
    if wrapper.merge_mode is None:
        return [forward, backward, *states, *more]
    merge = MERGES[wrapper.merge_mode]()
    return [
        *call(merge, f"{path}/{wrapper.merge_mode}", ([forward, backward],), {}),
        *states,
        *more,
    ]


def rewrap(wrapper: keras.Layer, clone: Callable, **settings) -> keras.Layer:
    """A wrapper like this one around clones of what it wraps, with other settings."""
    names = WRAPPED[type(wrapper)]
    config = {k: v for k, v in wrapper.get_config().items() if k not in ("layer", *names)}
    config.update(settings)
    first, *others = (clone(getattr(wrapper, name)) for name in names)
    return type(wrapper)(first, **dict(zip(names[1:], others, strict=True)), **config)
