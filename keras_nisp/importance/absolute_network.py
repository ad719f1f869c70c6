"""The absolute network: |weights|, no biases, activations as identity, at any depth."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.rule import meaningful, spread
from keras_nisp.importance.base import map_tensors, per_unit
from keras_nisp.keras_graph import keras_models


@dataclasses.dataclass(eq=False)
class Scaled:
    """A tensor of the absolute network: its true value is `value * exp(log)`.

    The product of many |W| overflows float32. Every tensor carries its own scale, so
    values stay within range at any depth, and true scores are recovered in logarithms.
    """

    value: tf.Tensor
    log: float

    def at(self, log: float) -> "Scaled":
        """The same in another scale."""
        factor = np.float32(np.exp(self.log - log))
        return self if self.log == log else Scaled(self.value * factor, log)

    def normalised(self) -> "Scaled":
        """The same with a mean of 1, unless it is near enough."""
        mean = float(tf.reduce_mean(self.value))
        if 1e-3 < mean < 1e3 or not 0 < mean < np.inf:
            return self
        return Scaled(self.value * np.float32(1 / mean), self.log + float(np.log(mean)))


@dataclasses.dataclass(eq=False)
class Edge:
    """A tensor that a kernel reads in the absolute network: a consumption edge.

    Attributes:
        names: names of its channels.
        value, log: as in `Scaled`.
        gradient: gradient of the targets, in their scale over that of the edge; `None` if no path
            leads to a target.
    """

    names: np.ndarray
    value: tf.Tensor
    log: float
    gradient: tf.Tensor | None = None


class AbsoluteNetwork:
    """One pass of a single sample of ones through the absolute network, and one back.

    Subclasses add to `targets`, in `enter`, `leave` or `end`, what is propagated back.

    Args:
        channel_map: the traced model.
        removed: boolean per unit: whether its outputs count as zero.

    Attributes:
        edges: the consumption edges, in the order of the walk.
        targets: pairs of a `Scaled` tensor and the weights of its elements.
        samples: number of samples of ones that go through: one, or the fixed batch size of the
            model.
    """

    def __init__(self, channel_map: ChannelMap, removed: np.ndarray | None = None):
        self.channel_map = channel_map
        self.keep = None if removed is None else (~removed).astype(np.float32)
        self.samples = keras_models.batch_size(channel_map.model) or 1
        self.edges: list[Edge] = []
        self.targets: list[tuple[Scaled, tf.Tensor]] = []

    def enter(self, call: Call, traced: Traced, x: Scaled) -> tf.Tensor:
        """What a call gets for a tensor that enters it."""
        return self.tap(traced.names, x) if call.reads else x.value

    def leave(self, traced: Traced, x: Scaled) -> None:
        """Sees each tensor that leaves a call."""

    def end(self, outputs: list[Scaled]) -> None:
        """Sees the outputs of the model."""

    def backward(self) -> float:
        """Runs forward and back, and sets the gradients of all edges.

        Returns:
            The scale of the targets, a logarithm.
        """
        shapes = self.channel_map.input_shapes
        ones = [tf.ones((self.samples, *shape)) for shape in shapes]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(ones)
            outputs = self.channel_map.walk([Scaled(x, 0.0) for x in ones], self._visit)
            self.end(keras.tree.flatten(outputs))
            top = max(x.log for x, _ in self.targets)
            sums = [tf.reduce_sum(x.at(top).value * counts) for x, counts in self.targets]
            total = tf.add_n(sums)
        gradients = tape.gradient(total, [edge.value for edge in self.edges])
        for edge, gradient in zip(self.edges, gradients, strict=True):
            edge.gradient = gradient
        return top

    def tap(self, names: np.ndarray, x: Scaled) -> tf.Tensor:
        """Marks a consumption edge: what arrives here is the score of the channels."""
        value = x.value if self.keep is None else x.value * self.keep[names]
        self.edges.append(Edge(names, tf.identity(value), x.log))
        return self.edges[-1].value

    def _visit(self, call: Call, args: tuple, kwargs: dict) -> list[Scaled]:
        # Tensors that meet must have one scale.
        log = max(x.log for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Scaled))

        def enter(index, x):
            return self.enter(call, call.inputs[index], x.at(log))

        def tap(label, tensor, axis):
            names = spread(call.hidden[label], axis, len(tensor.shape) - 1)
            return self.tap(names, Scaled(tensor, log))

        args, kwargs = map_tensors(enter, args, meaningful(kwargs), _is_scaled)
        call.on_tap = tap
        values = keras.tree.flatten(call.ask("absolute", *args, **kwargs))
        call.on_tap = None
        outputs = [Scaled(value, log) for value in values]
        if call.weights:
            outputs = [output.normalised() for output in outputs]
        for traced, output in zip(call.outputs, outputs, strict=True):
            self.leave(traced, output)
        return outputs


def _is_scaled(x: Any) -> bool:
    return isinstance(x, Scaled)


def share_out(network: AbsoluteNetwork, shares: list) -> np.ndarray:
    """Scores of units from the values at their consumption edges.

    Args:
        network: the network, after `backward`.
        shares: for each tensor its names, the scores of its elements, and the logarithm of their
            scale.

    Returns:
        Float64 array with one score per unit, scaled to a mean of 1 in each coupled
        group; NaN for units from which no path leads to a target, 0 for those that nothing reads.
    """
    columns = network.channel_map.products.columns
    shares = [(names, *rest) for every, *rest in shares for names in columns(every)]
    names = [names for edge in network.edges for names in columns(edge.names)]
    names += [share[0] for share in shares]
    consumed = network.channel_map.seen(np.concatenate([array.ravel() for array in names]))
    sums = _sum_shares(network.channel_map, shares, network.samples)
    return np.where(consumed, sums, 0.0)


def _sum_shares(channel_map: ChannelMap, shares: list, samples: int) -> np.ndarray:
    """Sums the scores of all consumption edges of each unit, edge scales put back."""
    size = channel_map.count
    group_of = np.full(size, len(channel_map.groups))
    for index, group in enumerate(channel_map.groups):
        group_of[group.units] = index
    top = np.full(len(channel_map.groups) + 1, -np.inf)
    for names, _, log in shares:
        np.maximum.at(top, np.unique(group_of[names]), log)
    totals, seen = np.zeros(size), []
    for names, gradient, log in shares:
        units, values = per_unit(gradient, names)
        values = values.astype(np.float64).sum(0) / samples  # positions may lie in the batch axis
        totals[units] += values * np.exp(log - top[group_of[units]])
        seen.append(units)
    for group in channel_map.groups:
        mean = totals[group.units].mean()
        if mean > 0:
            totals[group.units] /= mean
    known = channel_map.seen(np.concatenate(seen))
    return np.where(known, totals, np.nan)
