"""Which kernels of a model read the channels of an input as they come in."""

from typing import Any

import numpy as np

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import PlainKernel, channel_axis


def plain_reads(channel_map: ChannelMap, call: Call) -> list[PlainKernel]:
    """The plain kernels of a call whose channels are those of the input that they read."""
    return [
        plain
        for plain in rule_of(call.layer).plain_kernels(call.layer)
        if _reads(channel_map, call, plain)
    ]


def _reads(channel_map: ChannelMap, call: Call, plain: PlainKernel) -> bool:
    binding: Any = channel_map.bindings.get(id(plain.kernel))
    if binding is None or binding.low_rank:
        return False
    units = binding.axes.get(plain.axis % len(plain.kernel.shape))
    names = call.inputs[plain.argument].names.ravel()
    return units is not None and np.array_equal(units, names[: len(names) // plain.groups])


def input_axis(call: Call, plain: PlainKernel) -> int | None:
    """Along which axis of its input (batch axis counted) the channels lie that a plain kernel
    reads; `None` if the input has no such axis."""
    tensor = call.inputs[plain.argument]
    if plain.window is not None:
        return channel_axis(call.layer, tensor.rank) + 1
    axes = [axis for axis, size in enumerate(tensor.names.shape, 1) if size > 1]
    return axes[0] if axes else None
