"""A network from which channels are removed and whose kernels are refitted, without building it."""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import CostModel
from keras_nisp.damage.distance import Distance
from keras_nisp.damage.edges import InputEdge, KernelEdge, find_edges
from keras_nisp.damage.walk import DamagedWalk, State
from keras_nisp.data.samples import Samples
from keras_nisp.io.progress import Progress

MOST_MEMORY = 1 << 28  # bytes of activations of a batch; gradients need more
MOST_SAMPLES = 256  # for damages: with fewer, widths depend on the choice of samples
LEAST_SAMPLES = 8
TEMPERATURE = 2.0  # softens the outputs, so that confident samples count, too
MOST_ACTIVATIONS = 5 << 28  # bytes of them, beyond the least


class DamagedNetwork:
    """What the outputs of a network lose if channels go and what reads them is refitted.

    The network stays at its width: kernels get zeros for what is gone, and for the rest the
    values of a refit on second moments of what they read in the original.

    Args:
        channel_map: the traced model.
        samples: calibration samples.
        verbose: 1 shows a progress bar while moments are taken.
    """

    def __init__(self, channel_map: ChannelMap, samples: Samples, verbose: int = 0):
        self.channel_map = channel_map
        costs = CostModel(channel_map)
        needed = costs.memory(costs.everything)
        self.batch_size = int(np.clip(MOST_MEMORY // max(needed, 1), 1, 64))
        fitted, held_out = samples.halves()
        count = int(np.clip(MOST_ACTIVATIONS // max(needed, 1), LEAST_SAMPLES, MOST_SAMPLES))
        self.samples = held_out.at_most(count)
        self.kernels, self.inputs = find_edges(channel_map, len(fitted))
        self.walk = DamagedWalk(channel_map, self.kernels, self.inputs)
        self.everything = costs.everything
        self.fitted = fitted
        self.distance = Distance(channel_map, TEMPERATURE)
        whole = self._state(self.everything)
        self.before = [self._outputs(inputs, whole) for inputs, _ in self._batches(self.samples)]
        outputs, counts = zip(*self.before, strict=True)
        self.distance.fit(self._joined(outputs), self._joined(counts))
        self.draws = 0
        self.renew(self.everything, verbose)

    @property
    def seen(self) -> np.ndarray:
        """Boolean per unit: whether it is read where its damage shows."""
        seen = np.zeros(self.channel_map.count, bool)
        for units in [e.units for e in self.kernels] + [e.units for e in self.inputs]:
            seen[self.channel_map.products.deciding(units)] = True
        return seen

    def _batches(self, samples: Samples) -> Iterator[tuple[list, int]]:
        """Batches, and how many of their samples count: all are of one size."""
        size = samples.batch or min(self.batch_size, len(samples))
        for inputs, _ in samples.batches(size):
            count = len(inputs[0])
            again = tf.range(max(size, count)) % count
            yield [tf.gather(x, again) for x in inputs] if count < size else inputs, count

    def _state(self, keep: np.ndarray) -> State:
        kernels = [edge.values(edge.change(keep)) for edge in self.kernels]
        return kernels, [edge.mask(keep) for edge in self.inputs]

    def _outputs(self, inputs: list, state: State) -> tuple[list, list]:
        """The outputs, and which of their steps count."""
        outputs, _, counts, _ = self.walk.run(inputs, state)
        return outputs, counts

    def _joined(self, batches: Sequence[list]) -> list:
        """Batches of outputs, or of what counts of them, as one array for each output."""
        size = len(self.samples)
        columns = zip(*batches, strict=True)
        return [None if column[0] is None else np.concatenate(column)[:size] for column in columns]

    def renew(self, keep: np.ndarray, verbose: int = 0) -> None:
        """Takes moments around a network: kernels are fitted to what is read there from then on."""
        text = "Looking at what kernels read"
        progress, done = Progress(len(self.fitted), verbose, text, "sample"), 0
        whole, state = self._state(self.everything), self._state(keep)
        for inputs, count in self._batches(self.fitted):
            _, original, _, masks = self.walk.run(inputs, whole)
            present = original if keep.all() else self.walk.run(inputs, state)[1]
            for edge, x, z, mask in zip(self.walk.read, original, present, masks, strict=True):
                part = slice(count * len(x) // len(inputs[0]))
                old, counts = x[part], None if mask is None else mask[part]
                edge.add(old, old if z is x else z[part], counts)
            progress.update(done := done + count)
        for edge in self.kernels:
            edge.renew(keep)

    def measure(self, keep: np.ndarray) -> float:
        """How far the outputs are from the original's, on average over samples."""
        total, state = 0.0, self._state(keep)
        both = zip(self._batches(self.samples), self.before, strict=True)
        for (inputs, count), (before, counts) in both:
            distances = self.distance(before, self._outputs(inputs, state)[0], counts)
            total += float(tf.reduce_sum(distances[:count]))
        return total / len(self.samples)

    def predict(self, keep: np.ndarray, candidates: Sequence[np.ndarray]) -> np.ndarray:
        """By how much the distance grows from one set of kept units to others.

        To second order, by one pass forward and two backward: with g the gradient of the distance
        and v that of a direction of the outputs drawn so that E vv' is their metric, a change of
        kernels D adds mean(<g, D> + <v, D>^2 / 2), both products for each sample.

        Args:
            keep: boolean per unit: the present network.
            candidates: others.

        Returns:
            A number for each candidate.
        """
        self.draws += 1
        changes = {edge: _Changes(edge, keep, candidates) for edge in self.kernels + self.inputs}
        state, total = self._state(keep), np.zeros(len(candidates))
        both = zip(self._batches(self.samples), self.before, strict=True)
        for number, ((inputs, count), (before, _)) in enumerate(both):
            seed, size = tf.constant(1000 * self.draws + number), len(inputs[0])
            given, slopes = self.walk.slopes(inputs, state, before, self.distance, seed)
            sums = np.zeros((2, len(candidates), size))
            for edge, x, *gradients in zip(self.walk.watched, given, *slopes, strict=True):
                moved = changes[edge].moved
                if len(moved):
                    products = changes[edge].products(x, gradients)
                    # A sample may take several entries of the batch axis: time steps, windows.
                    sums[:, moved] += products.reshape(2, len(moved), size, -1).sum(-1)
            first, second = sums[..., :count]
            total += first.sum(1) + (second**2).sum(1) / 2
        return total / len(self.samples)


class _Changes:
    """What candidates change at an edge.

    Args:
        edge: where channels are read.
        keep: boolean per unit: the present network.
        candidates: what else may be kept.

    Attributes:
        moved: which candidates change something.
    """

    def __init__(self, edge: KernelEdge | InputEdge, keep: np.ndarray, candidates):
        self.edge = edge
        differ = [(edge.kept(keep) != edge.kept(other)).any() for other in candidates]
        self.moved = np.flatnonzero(differ)
        others = [candidates[index] for index in self.moved]
        if isinstance(edge, InputEdge):
            masks = [other[edge.names] * 1.0 - keep[edge.names] for other in others]
            self.masks = tf.constant(np.reshape(masks, (len(others), edge.names.size)), tf.float32)
        elif others:
            self.present = edge.change(keep)
            # Of kernels and constants: (groups, candidates, values)
            shapes = [(len(part), len(others), part[0].size) for part in self.present]
            self.kernels, self.constants = (np.empty(shape, np.float32) for shape in shapes)
            for index, other in enumerate(others):
                both = zip(edge.changed(other), self.present, strict=True)
                for values, (new, old) in zip((self.kernels, self.constants), both, strict=True):
                    values[:, index] = (new - old).reshape(len(old), -1)

    def products(self, x: tf.Tensor, gradients: list[tf.Tensor]) -> np.ndarray:
        """Products of gradients and changes, for each sample: `(gradients, candidates, samples)`.

        Args:
            x: what the edge's kernel reads, or the tensor whose channels become zero.
            gradients: of what is watched there.
        """
        if isinstance(self.edge, InputEdge):
            axes = [i for i, n in enumerate(self.edge.names.shape, 1) if n == 1]
            slopes = [tf.cast(x, tf.float32) * tf.cast(g, tf.float32) for g in gradients]
            flat = [tf.reshape(tf.reduce_sum(each, axes), (len(x), -1)) for each in slopes]
            return np.stack([tf.matmul(self.masks, each, transpose_b=True) for each in flat])
        total = np.zeros((len(gradients), len(self.moved), len(x)))
        groups = self.edge.gradients(x, gradients, self.present)
        for pairs, *changes in zip(groups, self.kernels, self.constants, strict=True):
            for side, slopes in enumerate(pairs):
                for change, slope in zip(changes, slopes, strict=True):
                    flat = tf.reshape(slope, (len(x), -1))
                    total[side] += np.asarray(tf.matmul(change, flat, transpose_b=True))
        return total
