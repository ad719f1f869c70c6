"""A network from which channels are removed and whose kernels are refitted, without building it."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import CostModel
from keras_nisp.damage.distance import Distance
from keras_nisp.damage.edges import InputEdge, KernelEdge, find_edges
from keras_nisp.data.samples import Samples
from keras_nisp.importance.base import map_tensors
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph.masks import take_off_alike

MOST_MEMORY = 1 << 28  # bytes of activations of a batch, of which gradients keep more
MOST_SAMPLES = 256  # on which damages are taken
LEAST_SAMPLES = 16
MOST_ACTIVATIONS = 1 << 31  # bytes of them, beyond the least


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
        self.samples = held_out.every(-(-len(held_out) // count))
        self.kernels, self.inputs = find_edges(channel_map, len(fitted))
        self.by_layer: dict[int, list[KernelEdge]] = {}
        for kernel in self.kernels:
            self.by_layer.setdefault(id(kernel.call.layer), []).append(kernel)
        self.by_call: dict[int, dict[int, InputEdge]] = {}
        for tensor in self.inputs:
            self.by_call.setdefault(id(tensor.call), {})[tensor.index] = tensor
        self.everything = costs.everything
        self.fitted, self.verbose = fitted, verbose
        self.renew(self.everything)
        self.distance = Distance(channel_map)
        self.before = [self._run(inputs, None) for inputs in self._batches()]
        self.distance.fit([np.concatenate(column) for column in zip(*self.before, strict=True)])
        self.draws = 0

    @property
    def seen(self) -> np.ndarray:
        """Boolean per unit: whether it is read where its damage shows."""
        seen = np.zeros(self.channel_map.count, bool)
        for units in [e.units for e in self.kernels] + [e.units for e in self.inputs]:
            seen[units] = True
        return seen

    def _batches(self):
        for inputs, _ in self.samples.batches(self.batch_size):
            yield inputs

    def renew(self, keep: np.ndarray) -> None:
        """Takes moments around a network: kernels are fitted to what is read there from then on."""
        progress, done = Progress(len(self.fitted), self.verbose, "sample"), 0
        for inputs, _ in self.fitted.batches(self.batch_size):
            original = self._read(inputs, None)
            present = original if keep.all() else self._read(inputs, keep)
            for (edge, x), (_, z) in zip(original, present, strict=True):
                edge.add(x, z)
            progress.update(done := done + len(inputs[0]))
        for edge in self.kernels:
            edge.renew(keep)

    def _read(self, inputs: list, keep: np.ndarray | None) -> list[tuple[KernelEdge, tf.Tensor]]:
        """What each kernel reads, call by call."""
        seen: list = []
        self._run(inputs, keep, seen=seen)
        return [(edge, x) for edge, x, _ in seen if isinstance(edge, KernelEdge)]

    def _run(
        self, inputs: list, keep: np.ndarray | None, tape=None, seen: list | None = None
    ) -> list:
        """The outputs where only some units are kept.

        Args:
            inputs: of the model.
            keep: boolean per unit; `None` for the original.
            tape: watches what edges give or get.
            seen: collects `(edge, what a kernel reads, what is watched)`.
        """
        changes: dict[KernelEdge, tuple] = {}
        if keep is not None:
            lossy = (edge for edge in self.kernels if not keep[edge.units].all())
            changes = {edge: edge.change(keep) for edge in lossy}
        weights = [pair for edge, change in changes.items() for pair in edge.weights(change)]

        def watched(edge, x, tensor):
            if tape is not None:
                tensor = tf.identity(tensor)
                tape.watch(tensor)
            if seen is not None:
                seen.append((edge, x, tensor))
            return tensor

        def visit(call, args, kwargs):
            given = (args, kwargs)
            masks = self.by_call.get(id(call), {})
            if masks and keep is not None:

                def mask(index, x):
                    edge = masks.get(index)
                    if edge is None or not x.dtype.is_floating:
                        return x
                    return watched(edge, x, x * edge.keep(keep, x.dtype))

                given = map_tensors(mask, args, kwargs)
                take_off_alike((args, kwargs), given)
            outputs = call.infer(*given[0], **given[1])
            for edge in self.by_layer.get(id(call.layer), ()):
                tensors = [x for x in keras.tree.flatten(given) if tf.is_tensor(x)]
                if edge in changes and edge.plain.bias is None and edge.constant:
                    constant = np.concatenate(list(changes[edge][1]))
                    shape = [1] * len(outputs.shape)
                    shape[edge.output_axis()] = -1
                    outputs = outputs + tf.cast(constant.reshape(shape), outputs.dtype)
                outputs = watched(edge, tensors[edge.plain.argument], outputs)
            return outputs

        with keras.StatelessScope(state_mapping=weights):
            return keras.tree.flatten(self.channel_map.walk(inputs, visit))

    def measure(self, keep: np.ndarray) -> float:
        """How far the outputs are from the original's, on average over samples."""
        total = 0.0
        for inputs, before in zip(self._batches(), self.before, strict=True):
            total += float(tf.reduce_sum(self.distance(before, self._run(inputs, keep))))
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
        total, count = np.zeros(len(candidates)), 0
        for number, (inputs, before) in enumerate(zip(self._batches(), self.before, strict=True)):
            seen: list = []
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                after = self._run(inputs, keep, tape, seen)
                far = tf.reduce_sum(self.distance(before, after))
                drawn = tf.reduce_sum(self.distance.direction(after, 1000 * self.draws + number))
            tensors = [tensor for _, _, tensor in seen]
            slopes = [tape.gradient(value, tensors) for value in (far, drawn)]
            del tape
            size = len(inputs[0])
            sums = np.zeros((2, len(candidates), size))
            for (edge, x, tensor), *gradients in zip(seen, *slopes, strict=True):
                moved = [i for i, other in enumerate(candidates) if _differ(edge, keep, other)]
                for side, gradient in enumerate(gradients):
                    if moved and gradient is not None:
                        others = [candidates[i] for i in moved]
                        products = _products(edge, x, tensor, gradient, keep, others)
                        # A sample may take several entries of the batch axis: time steps, windows.
                        sums[side, moved] += products.reshape(len(moved), size, -1).sum(-1)
            total += sums[0].sum(1) + (sums[1] ** 2).sum(1) / 2
            count += size
        return total / count


def _products(edge, x: tf.Tensor, tensor: tf.Tensor, gradient: tf.Tensor, keep, others):
    """Products of gradients and changes, for each sample: `(others, samples)`.

    Args:
        edge: where channels are read.
        x: what its kernel reads, or the tensor whose channels become zero.
        tensor: what is watched, in the present network.
        gradient: of that.
        keep: boolean per unit: the present network.
        others: what else may be kept.
    """
    if isinstance(edge, InputEdge):
        changes = np.stack([other[edge.names] * 1.0 - keep[edge.names] for other in others])
        slopes = tf.cast(x, tf.float32) * tf.cast(gradient, tf.float32)
        axes = [i for i, n in enumerate(edge.names.shape, 1) if n == 1]
        flat = tf.reshape(tf.reduce_sum(slopes, axes), (len(x), -1))
        changes = tf.constant(changes.reshape(len(others), -1), tf.float32)
        return np.asarray(tf.matmul(changes, flat, transpose_b=True))
    now, changed = edge.change(keep), [edge.change(other) for other in others]
    total = np.zeros((len(others), len(x)))
    for group, (kernel, constant) in enumerate(edge.gradient(x, tensor, gradient, now)):
        kernels = np.stack([(other[0][group] - now[0][group]).ravel() for other in changed])
        constants = np.stack([other[1][group] - now[1][group] for other in changed])
        flat = tf.reshape(kernel, (len(x), -1))
        total += np.asarray(tf.matmul(kernels, flat, transpose_b=True))
        total += np.asarray(tf.matmul(constants, constant, transpose_b=True))
    return total


def _differ(edge, keep: np.ndarray, other: np.ndarray) -> bool:
    return bool((keep[edge.units] != other[edge.units]).any())
