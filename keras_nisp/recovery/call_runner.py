"""Runs a network call by call, so that what is changed on the way has effect further on."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.rule import PlainKernel
from keras_nisp.data.samples import Samples
from keras_nisp.keras_graph.masks import mark_inputs
from keras_nisp.keras_graph.recording import Step, Token
from keras_nisp.kernels.reading import read_inside


class CallRunner:
    """Runs a network's calls one by one, with all samples at once, in batches.

    A batch of a tensor is let go as soon as the last call that takes it is done with it.

    Args:
        steps: the calls.
        names: of the network's inputs.
        samples: what enters the network.
        batch_size: how many samples a batch has.
    """

    def __init__(self, steps: list[Step], names: list[str], samples: Samples, batch_size: int):
        self.steps = steps
        self.done = 0
        self.last = {token: i for i, step in enumerate(steps) for token in step.tokens}
        batches = [inputs for inputs, _ in samples.batches(batch_size)]
        for inputs in batches:
            mark_inputs(names, inputs)
        columns = zip(*batches, strict=True)
        self.values = {Token(-1, i): list(column) for i, column in enumerate(columns)}

    def read(self, plain: PlainKernel, argument: int) -> Iterable[tf.Tensor]:
        """What a kernel of the next call reads, batch by batch.

        Args:
            plain: the kernel.
            argument: which tensor among the arguments it reads, if it is one.
        """
        if plain.inside is None:
            return self.values[self.steps[self.done].tokens[argument]]
        return (read_inside(plain, *given) for given in self.arguments())

    def arguments(self) -> Iterator[tuple[tuple, dict]]:
        """What the next call is given, batch by batch."""
        return map(self.steps[self.done].fill, self._batches())

    def run(self) -> Iterator[list[tf.Tensor]]:
        """Runs the next call, and gives its outputs batch by batch; it is done with the last."""
        step, results = self.steps[self.done], []
        ending = [token for token in self.values if self.last.get(token, 0) <= self.done]
        for index, values in enumerate(self._batches()):
            results.append(step.run(values))
            for token in ending:
                self.values[token][index] = None
            yield results[-1]
        for token in ending:
            del self.values[token]
        for index, column in enumerate(zip(*results, strict=True)):
            token = Token(self.done, index)
            if token in self.last:
                self.values[token] = list(column)
        self.done += 1

    def step(self) -> None:
        """Runs the next call."""
        for _ in self.run():
            pass

    def _batches(self) -> Iterator[dict[Token, tf.Tensor]]:
        for index in range(len(next(iter(self.values.values())))):
            yield {token: batches[index] for token, batches in self.values.items()}


def memory(channel_map: ChannelMap, keep: np.ndarray, samples: Samples) -> int:
    """Bytes that one sample takes where a `CallRunner` carries most.

    Args:
        channel_map: the traced model.
        keep: boolean per unit: whether the network that is run has it.
        samples: what enters it.
    """

    def size(tensor: Traced) -> float:
        share = np.count_nonzero(keep[tensor.names]) / max(tensor.names.size, 1)
        return tensor.batch * math.prod(tensor.shape) * share

    last = {t: i for i, call in enumerate(channel_map.calls) for t in call.inputs}
    live = set(channel_map.inputs)
    most = sum(map(size, live))
    for index, call in enumerate(channel_map.calls):
        live.update(call.outputs)
        live = {tensor for tensor in live if last.get(tensor, 0) > index}
        most = max(most, sum(map(size, live)))
    # The trace may have assumed another input size.
    traced = sum(math.prod(tensor.shape) for tensor in channel_map.inputs)
    return math.ceil(4 * most * sum(map(math.prod, samples.shapes)) / traced)
