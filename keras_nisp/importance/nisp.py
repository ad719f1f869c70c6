"""NISP: importance of the final responses, propagated back to every channel."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.rule import absolute, meaningful, spread
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.samples import MAX_SAMPLES
from keras_nisp.importance.base import Importance, Select, map_tensors, per_unit
from keras_nisp.importance.final_response import (
    FinalResponse,
    collect_responses,
    find_final_responses,
)
from keras_nisp.importance.inf_fs import inf_fs
from keras_nisp.keras_graph import keras_models


class NISP(Importance):
    """Neuron Importance Score Propagation.

    The responses of the final response layer (the layer that feeds the classifier) are
    ranked with Inf-FS on calibration data; their scores are then propagated through the
    absolute network to every channel in one backward pass. A channel's score is read
    where it is consumed: at the inputs of the kernels that take it in.

    Args:
        calibration: samples without labels: NumPy
            array, `tf.data.Dataset`, `keras.utils.PyDataset` or iterable of batches. By default
            those of the function that uses it: `prune(model, NISP(), calibration=x, ...)`.
        frl: name of the final response layer (or a list of names), if it cannot be found by
            itself.
        alpha: mixing weight of Inf-FS.
        max_samples: how many samples are used.
        propagate_pruned: `False` for the paper's rule that the score of a neuron that
            is pruned is not propagated further; scores and selection then alternate
            until they agree.
        seed: for sampling calibration data.
        verbose: 1 shows a progress bar while data are read, and looked at.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> calibration = np.random.default_rng(0).normal(size=(64, 4))
    >>> plan = plan_pruning(model, NISP(calibration), ratio=0.5)
    >>> plan.creators[0].kept
    4

    Source: Yu et al., "NISP: Pruning Networks using Neuron Importance Score
    Propagation", CVPR 2018, sections 3.2 to 3.4.
    """

    def __init__(
        self,
        calibration: Any = None,
        frl: str | list[str] | None = None,
        alpha: float = 0.5,
        max_samples: int = MAX_SAMPLES,
        propagate_pruned: bool = True,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        self.calibration = Calibration(calibration, max_samples, seed, verbose=verbose)
        self.frl = frl
        self.alpha = alpha
        self.max_samples = max_samples
        self.propagate_pruned = propagate_pruned
        self.seed = seed

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        return propagate(channel_map, self.rank(channel_map))

    def scores(self, channel_map: ChannelMap, select: Select) -> np.ndarray:
        ranks = self.rank(channel_map)
        scores = propagate(channel_map, ranks)
        if self.propagate_pruned:
            return scores
        # In a chain the last layer is final after the first round, the one before it
        # after the second, and so on.
        removed = select(scores)
        for _ in channel_map.groups:
            scores = propagate(channel_map, ranks, removed)
            previous, removed = removed, select(scores)
            if (previous == removed).all():
                break
        return scores

    def rank(self, channel_map: ChannelMap) -> list["Ranking"]:
        """Scores of the final responses."""
        finals = find_final_responses(channel_map, self.frl)
        samples = self.calibration.samples(channel_map.model)
        rankings = []
        for final in finals:
            batches = samples.batches(verbose=self.calibration.verbose)
            units, responses = collect_responses(channel_map, final, batches)
            rankings.append(Ranking(final, units, inf_fs(responses, self.alpha)))
        return rankings


class NISPMag(NISP):
    """NISP-Mag, a baseline of the paper: the score of a final response is the sum of the
    absolute classifier weights that leave it; needs no data.

    Args:
        propagate_pruned: as in `NISP`.

    Source: Yu et al., CVPR 2018, section 4.
    """

    def __init__(self, propagate_pruned: bool = True) -> None:
        self.propagate_pruned = propagate_pruned  # the one setting: there is nothing to look at

    def rank(self, channel_map: ChannelMap) -> list["Ranking"]:
        rankings = []
        for final in find_final_responses(channel_map):
            units, classifier = np.unique(final.tensor.names), final.classifier
            assert classifier is not None  # only where the user names a layer
            total = np.zeros(channel_map.count)
            for binding in channel_map.bindings.values():
                if binding.layer == classifier.path and binding.read and binding.positions:
                    for axis in binding.read:
                        weights = np.moveaxis(np.asarray(absolute(binding.value)), axis, 0)
                        sums = weights.reshape(len(weights), -1).sum(1)
                        total += channel_map.accumulate(binding.axes[axis], sums)
            rankings.append(Ranking(final, units, total[units]))
        return rankings


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Scores of one final response layer: `scores[i]` is that of `units[i]`."""

    final: FinalResponse
    units: np.ndarray
    scores: np.ndarray

    def cotangent(self, count: int) -> np.ndarray:
        """The scores laid over the tensor, shared evenly by the positions of a unit."""
        names = self.final.tensor.names
        positions = np.bincount(names.ravel(), minlength=count) * (
            np.prod(self.final.tensor.shape) / names.size
        )
        by_unit = np.zeros(count)
        by_unit[self.units] = self.scores / positions[self.units]
        return by_unit[names]


@dataclasses.dataclass(eq=False)
class _Scaled:
    """A tensor of the absolute network: its true value is `value * exp(log)`.

    The product of many |W| overflows float32. Every tensor carries its own scale, so
    values stay within range at any depth, and true scores are recovered in logarithms.
    """

    value: tf.Tensor
    log: float

    def normalised(self) -> "_Scaled":
        """The same with a mean of 1, unless it is near enough."""
        mean = float(tf.reduce_mean(self.value))
        if 1e-3 < mean < 1e3 or not 0 < mean < np.inf:
            return self
        return _Scaled(self.value * np.float32(1 / mean), self.log + float(np.log(mean)))


def propagate(
    channel_map: ChannelMap, rankings: list[Ranking], removed: np.ndarray | None = None
) -> np.ndarray:
    """Propagates scores from the final responses back to all units.

    One forward pass of a single sample of ones through the absolute network (weights by
    absolute value, no biases, activations as identity) and one backward pass. As that
    network is linear, the gradient at a tensor is |W|^T ... |W|^T s of the paper.

    Args:
        channel_map: the traced model.
        rankings: scores of the final responses.
        removed: boolean per unit; scores of these are not propagated further.

    Returns:
        Float64 array with one score per unit, scaled to a mean of 1 in each coupled
        group; NaN for units from which no path leads to a final response, 0 for those that
        nothing reads.

    Source: Yu et al., CVPR 2018, section 3.4; recursion s_k = |w_{k+1}|^T s_{k+1}.
    """
    samples = keras_models.batch_size(channel_map.model) or 1
    ones = [tf.ones((samples, *shape)) for shape in channel_map.input_shapes]
    keep = None if removed is None else (~removed).astype(np.float32)
    network = _AbsoluteNetwork(channel_map, rankings, keep)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(ones)
        channel_map.walk([_Scaled(x, 0.0) for x in ones], network.visit)
        top = max(log for _, _, log in network.targets)
        total = tf.add_n(
            [
                tf.reduce_sum(value * cotangent) * np.float32(np.exp(log - top))
                for value, cotangent, log in network.targets
            ]
        )
    gradients = tape.gradient(total, [tapped for _, tapped, _ in network.edges])
    shares = [
        (names, gradient, top - log)
        for (names, _, log), gradient in zip(network.edges, gradients, strict=True)
        if gradient is not None
    ]
    # The classifier itself consumes the final responses.
    for ranking in rankings:
        cotangent = tf.constant(ranking.cotangent(channel_map.count)[None], tf.float64)
        tensor = ranking.final.tensor
        full = tf.broadcast_to(cotangent, (tensor.batch * samples, *tensor.shape))
        shares.append((tensor.names, full, 0.0))
    consumed = channel_map.seen(
        np.concatenate([names.ravel() for names, *_ in network.edges + shares])
    )
    return np.where(consumed, _sum_shares(channel_map, shares), 0.0)


class _AbsoluteNetwork:
    """The absolute network as an interpreter of the walk.

    Attributes:
        edges: names, tensor and scale at each consumption edge.
        targets: tensor, scores and scale of each final response.
    """

    def __init__(self, channel_map: ChannelMap, rankings: list, keep: np.ndarray | None):
        self.count = channel_map.count
        self.classifiers = {r.final.classifier for r in rankings}
        self.rankings = {id(r.final.tensor): r for r in rankings}
        self.keep = keep
        self.edges: list[tuple[np.ndarray, tf.Tensor, float]] = []
        self.targets: list[tuple[tf.Tensor, tf.Tensor, float]] = []

    def visit(self, call: Call, args, kwargs):
        scaled = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, _Scaled)]
        # Tensors that meet must have one scale.
        log = max(x.log for x in scaled)
        waiting = {key for key, r in self.rankings.items() if r.final.classifier is call}

        def enter(index, x):
            value = x.value if x.log == log else x.value * np.float32(np.exp(x.log - log))
            if call in self.classifiers:
                if id(call.inputs[index]) in waiting:
                    waiting.discard(id(call.inputs[index]))
                    self._reach(call.inputs[index], value, log)
            elif call.reads:
                value = self._tap(call.inputs[index].names, value, log)
            return value

        def tap(label, tensor, axis):
            names = spread(call.hidden[label], axis, len(tensor.shape) - 1)
            return self._tap(names, tensor, log)

        args, kwargs = map_tensors(enter, args, meaningful(kwargs), _is_scaled)
        call.on_tap = tap
        values = keras.tree.flatten(call.ask("absolute", *args, **kwargs))
        call.on_tap = None
        outputs = [_Scaled(value, log) for value in values]
        if call.weights:
            outputs = [output.normalised() for output in outputs]
        for traced, output in zip(call.outputs, outputs, strict=True):
            ranking = self.rankings.get(id(traced))
            if ranking is not None and ranking.final.classifier is None:
                self._reach(traced, output.value, output.log)
        return outputs

    def _tap(self, names, value, log):
        """Marks a consumption edge: what arrives here is the score of the channels."""
        if self.keep is not None:
            value = value * self.keep[names]
        tapped = tf.identity(value)
        self.edges.append((names, tapped, log))
        return tapped

    def _reach(self, traced, value, log):
        ranking = self.rankings[id(traced)]
        cotangent = ranking.cotangent(self.count)
        if self.keep is not None:
            cotangent = cotangent * self.keep[traced.names]
        self.targets.append((value, tf.constant(cotangent[None], tf.float32), log))


def _is_scaled(x) -> bool:
    return isinstance(x, _Scaled)


def _sum_shares(channel_map: ChannelMap, shares: list) -> np.ndarray:
    """Sums the scores of all consumption edges of each unit, edge scales put back."""
    size, samples = channel_map.count, keras_models.batch_size(channel_map.model) or 1
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
