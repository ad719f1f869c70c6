"""Optimal Brain Surgeon over coupled groups: the loss that remains after the others make up."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.named_tensor import Traced, varying
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.unit_map import occurrences
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.samples import MAX_SAMPLES
from keras_nisp.errors import check_number
from keras_nisp.importance.base import Importance, run, scored_where
from keras_nisp.keras_graph.masks import counts_of, spread_mask

MOST_ROUNDS = 512  # of a channel each
ROUNDS = 64  # about so many, with several channels at a time, in wider groups
MOST_VALUES = 1 << 23  # of a batch that second moments are taken over: positions times channels


class OptimalBrainSurgeon(Importance):
    """Removes channels one by one, each time the one that the others can make up for best.

    The worth of a channel depends on the channels that are left: of two equal channels, one can be
    removed at no cost, but then not the other. So the channels of a group are removed on paper,
    with the least squares that `recalibrate` uses to make up for them. At each kernel that reads
    the group, `C` is the second moment of the kernel's inputs (the covariance, if a bias or a
    BatchNormalization absorbs the constant), `P = (C + ridge * mean(diag C) I)^-1`, and `W` the
    kernel `(channels, taps and outputs)`, times `|gamma| / sd` of a BatchNormalization behind it,
    over the root of the energy of its output. Without channel `i`

        s_i = sum over kernels of |W[i]|^2 / P[i, i]

    of the energy is lost. The channel with the least loss is removed:

        W -= P[:, i] W[i] / P[i, i]        P -= P[:, i] P[i, :] / P[i, i]

    and so on; from more than 512 channels several are removed at a time. The score of a channel is
    the sum of `s` up to its removal: the share of energy that its readers lose when it is removed
    together with all channels of a lower score, summed over the readers. Scores are a rank and an
    error at once, on one scale for all groups.

    Taps of a kernel, pixels of a flattened channel, and groups of a convolution share the
    second moments of their channels: correlations between pixels are not used. A kernel that
    reads a tensor inside its layer (behind a depthwise kernel, or in a recurrent layer) is treated
    as if it read the layer's input, if that holds these channels. Otherwise (heads and channels of
    attention) the channels are treated as uncorrelated, with a mean square of 1. Where a product
    reads channels without a kernel, the channels themselves are what the others have to make up
    for.

    Args:
        calibration: samples without labels, as for `NISP`, with the same default.
        ridge: strength of the regularization, relative to the mean variance of a channel.
        max_samples: largest number of samples.
        seed: seed for sampling calibration data.
        verbose: 1 shows progress bars for reading and using the data.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> calibration = np.random.default_rng(0).normal(size=(64, 4))
    >>> plan_pruning(model, OptimalBrainSurgeon(calibration), ratio=0.5).creators[0].kept
    4

    Source: Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain
    Surgeon", NeurIPS 1992; by layers, Dong et al., NeurIPS 2017; for whole channels, Kurtic et al.,
    "ZipLM", NeurIPS 2023.
    """

    def __init__(
        self,
        calibration: Any = None,
        ridge: float = 1e-3,
        max_samples: int = MAX_SAMPLES,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        check_number("ridge", ridge, "above 0", lambda strength: 0 < strength < math.inf)
        self.calibration = Calibration(calibration, max_samples, seed, verbose=verbose)
        self.ridge = ridge
        self.max_samples = max_samples
        self.seed = seed

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        samples = self.calibration.samples(channel_map.model)
        edges = _edges(channel_map)
        by_tensor: dict[tuple[Call, int], list[_Edge]] = {}
        for edge in edges:
            for tensor in edge.tensors:
                by_tensor.setdefault(tensor, []).append(edge)

        def on_read(call, index, tensor):
            for edge in by_tensor.get((call, index), ()):
                edge.moments.add(tensor, call.inputs[index].names)
            return tensor

        for inputs, _ in samples.batches(verbose=self.calibration.verbose):
            run(channel_map, inputs, on_read)
        total = np.zeros(channel_map.count)
        for group in channel_map.groups:
            reading = [edge.problem(self.ridge) for edge in edges if edge.reads(group.units)]
            total[group.units] = _eliminate(group.units, [p for p in reading if p is not None])
        return scored_where(channel_map, total, [edge.units for edge in edges])


# Kernels and what they read -----------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Edge:
    """An axis of a kernel that reads channels.

    Attributes:
        units: those that it reads, each once, in ascending order.
        layer: path of its layer.
        binding, axis: the kernel; `None` where channels are read without one.
        scale: of each output, as a factor; 1 where nothing follows.
        tensors: those that hold what it reads: call, and number among its inputs.
        moments: of what it reads.
    """

    units: np.ndarray
    layer: str
    binding: Binding | None
    axis: int
    scale: np.ndarray | float
    tensors: list[tuple[Call, int]]
    moments: "_Moments"

    def reads(self, units: np.ndarray) -> bool:
        return bool(np.isin(units, self.units).any())

    def energy(self) -> np.ndarray:
        """`W W'` over the channels, before it is scaled."""
        size = len(self.units)
        if self.binding is None:
            return np.eye(size)
        kernel = np.asarray(tf.cast(self.binding.value, tf.float32)) * self.scale
        kernel = np.moveaxis(kernel, self.axis, 0)
        table, total = _table(self.binding.axes[self.axis], self.units), np.zeros((size, size))
        for positions in table:
            rows = kernel[positions].reshape(size, -1).astype(np.float64)
            rows[positions < 0] = 0
            total += rows @ rows.T
        return total

    def problem(self, ridge: float) -> "_Problem | None":
        """What is to be kept, as least squares; `None` if the kernel gives nothing."""
        covariance, energy = self.moments.covariance(self.layer), self.energy()
        alive = covariance.diagonal() > 0
        energy[~alive] = energy[:, ~alive] = 0
        whole = (energy * covariance).sum()
        if not whole > 0:
            return None
        strength = ridge * covariance.diagonal()[alive].mean()
        inverse = np.linalg.inv(covariance + strength * np.eye(len(covariance)))
        return _Problem(self.units, energy / whole, (inverse + inverse.T) / 2)


def _edges(channel_map: ChannelMap) -> list[_Edge]:
    """All kernels by the axes that they read."""
    scales = _scales(channel_map)
    edges: dict[tuple, _Edge] = {}
    for call in (call for call in channel_map.calls if call.reads):
        inputs = [np.unique(tensor.names) for tensor in call.inputs]
        bindings = [channel_map.bindings.get(id(weight)) for weight in call.weights]
        kernels = [(b, axis) for b in bindings if b and b.positions for axis in sorted(b.read)]
        scale = scales.get(call.outputs[0])
        for binding, axis in kernels:
            units = np.unique(binding.axes[axis])
            holding = [i for i, held in enumerate(inputs) if np.isin(units, held).all()]
            edge = edges.setdefault(
                (id(binding), axis),
                _Edge(
                    units,
                    call.path,
                    binding,
                    axis,
                    _along_outputs(binding, scale),
                    [],
                    _Moments(units, _takes_constant(call, binding, scale)),
                ),
            )
            edge.tensors += [(call, i) for i in holding[:1]]
        if not kernels:
            for i, units in enumerate(inputs):
                edge = _Edge(units, call.path, None, 0, 1.0, [(call, i)], _Moments(units, False))
                edges[call, i] = edge
    return list(edges.values())


def _scales(channel_map: ChannelMap) -> dict[Traced, np.ndarray]:
    """`|gamma| / sd` of each BatchNormalization, by the tensor that enters it."""
    scales = {}
    for call in channel_map.calls:
        if normalisation := rule_of(call.layer).normalisation(call.layer):
            scale = 1 / np.sqrt(np.asarray(normalisation.variance) + normalisation.epsilon)
            if normalisation.scale is not None:
                scale = scale * np.abs(np.asarray(normalisation.scale))
            scales[call.inputs[0]] = scale
    for call in channel_map.calls:
        if getattr(call.layer, "activation", None) not in (None, keras.activations.linear):
            scales.pop(call.outputs[0], None)
    return scales


def _along_outputs(binding: Binding, scale: np.ndarray | None) -> np.ndarray | float:
    """A factor for each output of a kernel, in a shape that broadcasts to it."""
    if scale is None or len(binding.create) != 1:
        return 1.0
    (create,) = binding.create
    shape = np.ones(len(binding.variable.shape), int)
    shape[create] = -1
    return scale.reshape(shape)


def _takes_constant(call: Call, binding: Binding, scale: np.ndarray | None) -> bool:
    """Whether a bias or a normalization makes up for a constant."""
    plain = rule_of(call.layer).plain_kernels(call.layer)
    biased = any(p.kernel is binding.variable and p.bias is not None for p in plain)
    return scale is not None or biased


def _table(names: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Where units lie along an axis: `(times, units)`, -1 where one lies there less often."""
    chosen = np.flatnonzero(np.isin(names, units))
    nth = occurrences(names[chosen])
    table = np.full((nth.max() + 1, len(units)), -1)
    table[nth, np.searchsorted(units, names[chosen])] = chosen
    return table


class _Moments:
    """Second moments of channels, summed batch by batch.

    Args:
        units: of the channels, in ascending order.
        centred: whether the mean of each position is taken off.
    """

    def __init__(self, units: np.ndarray, centred: bool):
        self.units, self.centred = units, centred
        self.gram = np.zeros((len(units), len(units)))
        self.sums: Any = 0.0  # of each position of the channels
        self.times: Any = 1  # how many positions each channel has
        self.rows = 0

    def add(self, tensor: tf.Tensor, names: np.ndarray) -> None:
        """Adds a batch of a tensor that holds the channels."""
        values = _positions_first(tensor, names)
        if (mask := counts_of(tensor)) is not None:
            counts = _positions_first(spread_mask(mask, tensor), names)[:, 0] > 0
            values = tf.boolean_mask(values, counts)
        step = -(-int(tf.size(values)) // MOST_VALUES) or 1
        rows = np.asarray(tf.cast(values[::step], tf.float64))
        table = _table(names.ravel(), self.units)
        for positions in table:
            part = np.where(positions < 0, 0, rows[:, positions])
            self.gram += part.T @ part
        self.sums = self.sums + np.where(table < 0, 0, rows.sum(0)[table])
        self.times, self.rows = (table >= 0).sum(0), self.rows + len(rows)

    def covariance(self, layer: str) -> np.ndarray:
        """The second moments; the unit matrix where no data were seen."""
        if not np.isfinite(self.gram).all():
            raise ValueError(
                f"Expected finite activations. Received NaN or infinity in what enters '{layer}' "
                "on the calibration data: activations overflow (in half precision?), or the data "
                "are in another range than in training."
            )
        if not self.rows:
            return np.eye(len(self.units))
        centre = self.sums.T @ self.sums / self.rows if self.centred else 0.0
        varies = (self.gram - centre).diagonal() > 1e-10 * self.gram.diagonal()
        counts = np.sqrt(np.outer(self.times, self.times))
        return np.where(np.outer(varies, varies), (self.gram - centre) / self.rows / counts, 0)


def _positions_first(tensor: tf.Tensor, names: np.ndarray) -> tf.Tensor:
    """Values as `(positions, names)`."""
    axes = [axis + 1 for axis in varying(names)]
    others = [axis for axis in range(len(names.shape) + 1) if axis not in axes]
    if axes and axes != list(range(len(others), len(names.shape) + 1)):
        tensor = tf.transpose(tensor, others + axes)
    return tf.reshape(tensor, (-1, names.size))


# Elimination --------------------------------------------------------------------------


class _Problem:
    """What a kernel takes in, as least squares over channels.

    Args:
        units: of the channels, in ascending order.
        energy: `W W'`, for `W` the kernel `(channels, taps and outputs)`.
        inverse: of the second moments.
    """

    def __init__(self, units: np.ndarray, energy: np.ndarray, inverse: np.ndarray):
        self.units, self.energy, self.inverse = units, energy, inverse

    def losses(self, units: np.ndarray) -> np.ndarray:
        """What would be lost without each of these alone."""
        losses = np.zeros(len(units))
        here, positions = self._positions(units)
        losses[here] = (self.energy.diagonal() / self.inverse.diagonal())[positions]
        return np.maximum(losses, 0)

    def steps(self, units: np.ndarray) -> np.ndarray:
        """What would be lost by each of these after those before it."""
        steps = np.zeros(len(units))
        here, positions = self._positions(units)
        block, root = self.energy[np.ix_(positions, positions)], self._root(positions)
        steps[here] = ((root @ block) * root).sum(1)
        return np.maximum(steps, 0)

    def remove(self, units: np.ndarray) -> None:
        """Removes channels. `W W'` is kept in the place of W: it does not grow with the outputs."""
        _, gone = self._positions(units)
        rest, root = np.delete(np.arange(len(self.units)), gone), self._root(gone)
        across, block = np.ix_(gone, rest), self.energy[np.ix_(gone, gone)]
        shares = self.inverse[across].T @ (root.T @ root)
        change = shares @ (self.energy[across] - block @ shares.T / 2)
        self.energy = self.energy[np.ix_(rest, rest)] - change - change.T
        self.inverse = self.inverse[np.ix_(rest, rest)] - shares @ self.inverse[across]
        self.units = self.units[rest]

    def _root(self, positions: np.ndarray) -> np.ndarray:
        """The inverse of the Cholesky factor of a block of the inverse."""
        return np.linalg.inv(np.linalg.cholesky(self.inverse[np.ix_(positions, positions)]))

    def _positions(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the units are among the channels, and where."""
        here = np.isin(units, self.units)
        return here, np.searchsorted(self.units, units[here])


def _eliminate(units: np.ndarray, problems: list[_Problem]) -> np.ndarray:
    """What is lost in all problems up to the removal of each unit, the least first.

    In wide groups several go at a time, as long as each costs less, after those before it, than
    the next one that is not among them: of two that are alike only one does.
    """
    scores, lost, remaining = np.zeros(len(units)), 0.0, np.arange(len(units))
    most = 1 if len(units) <= MOST_ROUNDS else len(units) // ROUNDS
    while problems and len(remaining):
        losses = np.sum([problem.losses(units[remaining]) for problem in problems], 0)
        order = np.argsort(losses, kind="stable")
        gone = remaining[order[:most]]
        steps = np.sum([problem.steps(units[gone]) for problem in problems], 0)
        if most < len(remaining):
            dear = steps > losses[order[most]]
            dear[0] = False
            gone = gone[: np.argmax(dear) if dear.any() else None]
        for problem in problems:
            problem.remove(units[gone])
        scores[gone] = lost + np.cumsum(steps[: len(gone)])
        lost, remaining = scores[gone[-1]], np.delete(remaining, order[: len(gone)])
    return scores
