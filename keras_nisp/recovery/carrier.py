"""Runs a network call by call, so that what is changed on the way has effect further on."""

import math
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap, Traced
from keras_nisp.data.samples import Samples
from keras_nisp.keras_graph import calling


class Carrier:
    """Runs a network's calls one by one, with all samples at once, in batches.

    A tensor is let go as soon as no later call takes it.
    """

    def __init__(self, channel_map: ChannelMap):
        self.inputs = channel_map.inputs
        self.steps: list[tuple[Call, tuple, dict]] = []
        self.done = 0
        self.values: dict[Traced, list[tf.Tensor]] = {}

        def visit(call, args, kwargs):
            self.steps.append((call, args, kwargs))
            return call.outputs

        channel_map.walk(channel_map.inputs, visit)
        self.last = {t: i for i, (call, _, _) in enumerate(self.steps) for t in call.inputs}

    def memory(self, samples: Samples) -> int:
        """Bytes that one sample takes where most is carried."""
        live, most = set(self.inputs), 0
        for index, (call, _, _) in enumerate(self.steps):
            live.update(call.outputs)
            most = max(most, sum(tensor.batch * math.prod(tensor.shape) for tensor in live))
            live = {tensor for tensor in live if self.last.get(tensor, 0) > index}
        # The trace may have assumed another input size.
        traced = sum(math.prod(tensor.shape) for tensor in self.inputs)
        return math.ceil(4 * most * sum(array[0].size for array in samples.inputs) / traced)

    def start(self, samples: Samples, batch_size: int) -> None:
        batches = zip(*(inputs for inputs, _ in samples.batches(batch_size)), strict=True)
        self.values = dict(zip(self.inputs, map(list, batches), strict=True))

    def batches(self, call: Call) -> list[tf.Tensor]:
        """What enters the call that comes next."""
        return self.values[call.inputs[0]]

    def arguments(self) -> Iterator[tuple[tuple, dict]]:
        """What the call that comes next is given, batch by batch."""
        _, args, kwargs = self.steps[self.done]
        for index in range(len(next(iter(self.values.values())))):
            yield keras.tree.map_structure(
                lambda x: self.values[x][index] if isinstance(x, Traced) else x,  # noqa: B023
                (args, kwargs),
            )

    def step(self) -> None:
        """Runs the next call."""
        call = self.steps[self.done][0]
        results = []
        for args, kwargs in self.arguments():
            with calling.fresh_states(call.layer):
                results.append(keras.tree.flatten(call.infer(*args, **kwargs)))
        self.values |= zip(call.outputs, map(list, zip(*results, strict=True)), strict=True)
        live = (tensor for tensor in self.values if self.last.get(tensor, 0) > self.done)
        self.values = {tensor: self.values[tensor] for tensor in live}
        self.done += 1
