"""Which kernels of a model read the channels of an input as they come in."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import PlainKernel, channel_axis
from keras_nisp.keras_graph.masks import pass_on_counts


def plain_reads(channel_map: ChannelMap, call: Call) -> list[PlainKernel]:
    """The plain kernels of a call whose channels are those of the input that they read."""
    every = _bound(channel_map, call, inside=False)
    return [plain for plain in every if _reads(channel_map, call, plain)]


def inner_reads(channel_map: ChannelMap, call: Call) -> list[PlainKernel]:
    """The plain kernels of a call that read something inside the layer."""
    return _bound(channel_map, call, inside=True)


def read_inside(plain: PlainKernel, args: tuple, kwargs: dict) -> tf.Tensor:
    """What a kernel reads inside a layer that is called with these arguments."""
    assert plain.inside is not None
    tensor = plain.inside(*args, **kwargs)
    pass_on_counts(args, kwargs, [tensor])
    return tensor


def _bound(channel_map: ChannelMap, call: Call, inside: bool) -> list[PlainKernel]:
    plains = []
    for plain in rule_of(call.layer).plain_kernels(call.layer):
        binding: Any = channel_map.bindings.get(id(plain.kernel))
        bound = binding is not None and not binding.low_rank
        if bound and binding.axes.keys() >= set(plain.axes) and inside == bool(plain.inside):
            argument = call.sources.get(id(plain.kernel), plain.argument)
            plains.append(dataclasses.replace(plain, argument=argument))
    return plains


def _reads(channel_map: ChannelMap, call: Call, plain: PlainKernel) -> bool:
    units = channel_map.bindings[id(plain.kernel)].axes[plain.axes[0]]
    names = call.inputs[plain.argument].names.ravel()
    return np.array_equal(units, names[: len(names) // plain.groups])


def input_axis(call: Call, plain: PlainKernel, rank: int) -> int | None:
    """Along which axis of a tensor (batch axis counted) the channels lie that a plain kernel reads.

    Args:
        call: one of its layer's calls.
        plain: the kernel.
        rank: of the tensor, batch axis counted: a layer may be called on tensors of several ranks.

    Returns:
        The axis; `None` if there are no channels.
    """
    tensor = call.inputs[plain.argument]
    if plain.window is not None:
        return channel_axis(call.layer, tensor.rank) + 1
    # From the end, since the ranks differ in axes that the kernel does not see.
    axes = [axis - tensor.rank for axis in tensor.varying]
    return axes[0] % rank if axes else None


def read_axis(call: Call, plain: PlainKernel, rank: int) -> int | None:
    """The same of what a plain kernel reads, which may be inside its layer."""
    return rank - 1 if plain.inside else input_axis(call, plain, rank)


def is_linear(call: Call) -> bool:
    """Whether a call has no activation."""
    return getattr(call.layer, "activation", None) in (None, keras.activations.linear)


def absorbed(channel_map: ChannelMap) -> set[Traced]:
    """Tensors whose missing constant the next normalization absorbs."""
    linear = {t for call in channel_map.calls if is_linear(call) for t in call.outputs}
    normalised = {
        tensor
        for call in channel_map.calls
        if rule_of(call.layer).normalisation(call.layer)
        for tensor in call.inputs
    }
    return linear & normalised
