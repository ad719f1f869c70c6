"""SynFlow: how much of the flow through the absolute network passes each channel."""

import numbers

import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.errors import check_number
from keras_nisp.importance.absolute_network import AbsoluteNetwork, Scaled, share_out
from keras_nisp.importance.base import Importance, Select, check_setting


class SynFlow(Importance):
    """Iterative Synaptic Flow Pruning: needs no data.

    An input of ones goes through the absolute network of `NISP`: weights by absolute
    value, no biases, activations as identity. `R` is the sum of its outputs. The score of a
    channel is `|dR/dw * w|`, summed over all weights that read it: the part of `R` that passes
    through the channel.

    The paper scores again after each of many small removals. With `steps=1`, the default, channels
    are scored once. With more, the channels are removed in `steps` steps, in which each group
    shrinks by a constant factor, and the others are scored again without them: a channel that
    feeds removed ones loses that part of its score. This pays off if much is removed.

    Args:
        steps: how often channels are scored; the paper uses 100.

    Raises:
        TypeError: `steps` is not a number.
        ValueError: `steps` is not a whole number of at least 1.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan_pruning(model, SynFlow(), ratio=0.5).creators[0].kept
    4

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020.
    """

    def __init__(self, steps: int = 1) -> None:
        check_setting("steps", steps, numbers.Real, "a number")
        check_number("steps", steps, "that is whole, from 1", lambda n: n >= 1 and n % 1 == 0)
        self.steps = int(steps)

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        return _flow(channel_map, None)

    def scores(self, channel_map: ChannelMap, select: Select) -> np.ndarray:
        scores = self(channel_map)
        for step in range(1, self.steps):
            removed = _some(channel_map, scores, select(scores), step / self.steps)
            scores = np.where(removed, 0, _flow(channel_map, removed))
        return scores


def _some(
    channel_map: ChannelMap, scores: np.ndarray, going: np.ndarray, share: float
) -> np.ndarray:
    """Of the units to be removed, those with the lowest scores, so that each group keeps
    `kept ** share` of its channels."""
    removed = np.zeros_like(going)
    for group in channel_map.groups:
        last = group.units[going[group.units]]
        kept = 1 - len(last) / len(group.units)
        count = round(len(group.units) * (1 - kept**share))
        removed[last[np.argsort(scores[last], kind="stable")[:count]]] = True
    return channel_map.products.gone(removed)


class _Flow(AbsoluteNetwork):
    """The absolute network to the end, where each output counts as much."""

    def end(self, outputs: list[Scaled]) -> None:
        self.targets = [(x, tf.ones_like(x.value)) for x in outputs]


def _flow(channel_map: ChannelMap, removed: np.ndarray | None) -> np.ndarray:
    """Value times gradient at the consumption edges, relative to the mean of each group."""
    network = _Flow(channel_map, removed)
    network.backward()
    shares = [
        (edge.names, edge.value * edge.gradient, 0.0)
        for edge in network.edges
        if edge.gradient is not None
    ]
    return share_out(network, shares)
