"""NISP: importance of the final responses, propagated back to every channel."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.rule import absolute
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.sample_checks import check_varied
from keras_nisp.data.samples import MAX_SAMPLES
from keras_nisp.errors import check_number
from keras_nisp.importance.absolute_network import AbsoluteNetwork, Scaled, share_out
from keras_nisp.importance.base import Importance, Select, check_setting
from keras_nisp.importance.final_response import (
    FinalResponse,
    check_names,
    collect_responses,
    find_final_responses,
)
from keras_nisp.importance.inf_fs import inf_fs


class NISP(Importance):
    """Neuron Importance Score Propagation.

    The responses of the final response layer (the layer that feeds the classifier) are
    ranked with Inf-FS on calibration data. Their scores are then propagated through the
    absolute network (weights by absolute value, no biases, activations as identity) to every
    channel in one backward pass. A channel's score is read at the inputs of the kernels that read
    the channel.

    Args:
        calibration: samples without labels: NumPy
            array, `tf.data.Dataset`, `keras.utils.PyDataset` or iterable of batches. By default
            those of the function that uses the importance: `prune(model, NISP(), calibration=x)`.
        frl: name of the final response layer (or a list of names), if it is not found
            automatically.
        alpha: weight of the deviations against the correlations in Inf-FS; see `inf_fs`.
        max_samples: largest number of samples.
        propagate_pruned: `False` for the paper's rule that scores of pruned neurons are not
            propagated further; scores and selection then alternate until they agree.
        seed: seed for sampling calibration data.
        verbose: 1 shows progress bars for reading and using the data.

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
        if frl is not None:
            check_names(frl)
        check_number("alpha", alpha, "in [0, 1]", lambda weight: 0 <= weight <= 1)
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
        check_varied(samples, self.name)
        rankings = []
        for final in finals:
            batches = samples.batches(verbose=self.calibration.verbose)
            units, responses = collect_responses(channel_map, final, batches)
            rankings.append(Ranking(final, units, inf_fs(responses, self.alpha)))
        return rankings


class NISPMag(NISP):
    """NISP-Mag, a baseline of the paper: the score of a final response is the sum of the absolute
    classifier weights that read it. It needs no data.

    Args:
        propagate_pruned: as in `NISP`.

    Raises:
        TypeError: `propagate_pruned` is not a boolean.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan_pruning(model, NISPMag(), ratio=0.5).creators[0].kept
    4

    Source: Yu et al., CVPR 2018, section 4.
    """

    def __init__(self, propagate_pruned: bool = True) -> None:
        check_setting("propagate_pruned", propagate_pruned, bool, "True or False")
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
    network = _Propagation(channel_map, rankings, removed)
    top = network.backward()
    shares = [
        (edge.names, edge.gradient, top - edge.log)
        for edge in network.edges
        if edge.gradient is not None
    ]
    # The classifier itself consumes the final responses.
    for ranking in rankings:
        cotangent = tf.constant(ranking.cotangent(channel_map.count)[None], tf.float64)
        tensor = ranking.final.tensor
        full = tf.broadcast_to(cotangent, (tensor.batch * network.samples, *tensor.shape))
        shares.append((tensor.names, full, 0.0))
    return share_out(network, shares)


class _Propagation(AbsoluteNetwork):
    """The absolute network up to the final responses."""

    def __init__(self, channel_map: ChannelMap, rankings: list[Ranking], removed: Any):
        super().__init__(channel_map, removed)
        self.rankings = rankings
        self.reached: list[Ranking] = []

    def enter(self, call: Call, traced: Traced, x: Scaled) -> tf.Tensor:
        finals = [r for r in self.rankings if r.final.classifier is call]
        if not finals:
            return super().enter(call, traced, x)
        for ranking in finals:
            if ranking.final.tensor is traced:
                self._reach(ranking, x)
        return x.value

    def leave(self, traced: Traced, x: Scaled) -> None:
        for ranking in self.rankings:
            if ranking.final.tensor is traced and ranking.final.classifier is None:
                self._reach(ranking, x)

    def _reach(self, ranking: Ranking, x: Scaled) -> None:
        if ranking not in self.reached:  # attention may read the same tensor several times
            self.reached.append(ranking)
            cotangent = ranking.cotangent(self.channel_map.count)
            if self.keep is not None:
                cotangent = cotangent * self.keep[ranking.final.tensor.names]
            self.targets.append((x, tf.constant(cotangent[None], tf.float32)))
