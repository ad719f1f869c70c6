"""Where channels are read, and what removed ones change there once kernels are refitted."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.rule import PlainKernel, channel_axis
from keras_nisp.kernels.patches import positions_first
from keras_nisp.kernels.reading import absorbed, input_axis, plain_reads
from keras_nisp.kernels.regression import Moments
from keras_nisp.kernels.rows import KernelRows, share_of

MOST_FEATURES = 2304  # with more, taps share one map; with more channels, removed ones get a mean
ROWS = 16  # for each feature that second moments are taken of
MOST_VALUES = 1 << 21  # that are looked at anyway: rows times features
LEAST_RIDGE = 1e-4
RIDGE = 0.05  # over the variance of a feature, where there are as many rows as features


class KernelEdge:
    """A plain kernel, at all calls of its layer, and the second moments of what it reads.

    `change(keep)` says by how much the kernel and the constant behind it change where only some
    units are kept, and it is refitted: removed channels get zeros, kept ones make up for them.

    Args:
        channel_map: the traced model.
        calls: of the layer.
        plain: the kernel.
        constant: whether a constant can be added after it.
        samples: how many will be added.
    """

    def __init__(
        self,
        channel_map: ChannelMap,
        calls: list[Call],
        plain: PlainKernel,
        constant: bool,
        samples: int,
    ):
        self.plain, self.call, self.constant = plain, calls[0], constant
        binding = channel_map.bindings[id(plain.kernel)]
        axis = plain.axes[0]
        spatial = 0 if plain.window is None else len(plain.window.size)
        self.order = [i for i in range(len(plain.kernel.shape)) if i != axis]
        self.order.insert(spatial, axis)  # to (taps..., channels, outputs...)
        self.units = binding.axes[axis]
        value = np.asarray(tf.cast(tf.convert_to_tensor(plain.kernel), tf.float32))
        value = value.transpose(self.order)
        self.laid_out = value.shape
        taps, channels = math.prod(value.shape[:spatial]), len(self.units)
        self.kernel = value.reshape(taps, channels, -1)
        self.by_tap = taps == 1 or taps * channels <= MOST_FEATURES
        self.rows, self.looked_at = (
            KernelRows(self.call.layer, plain, self._axis, by_tap) for by_tap in (True, self.by_tap)
        )
        features = channels * (taps if self.by_tap else 1)
        self.share = share_of(samples * binding.positions, features, ROWS, MOST_VALUES)
        self.rng = np.random.default_rng(0)
        self.moments = self.next = self._nothing()
        self.known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def _axis(self, rank: int) -> int | None:
        return input_axis(self.call, self.plain, rank)

    def _nothing(self) -> list[Moments]:
        taps, channels, outputs = self.kernel.shape
        targets = outputs // self.plain.groups if self.by_tap else channels
        features = taps * channels if self.by_tap else channels
        settings = features, targets, features <= MOST_FEATURES, 1, np.float32
        return [Moments(*settings) for _ in range(self.plain.groups)]

    # What is read ---------------------------------------------------------------------

    def groups(self, rows: tf.Tensor) -> list[tf.Tensor]:
        """Rows of each group of channels, flat: `(samples, positions, taps * channels)`."""
        parts = tf.split(tf.cast(rows, tf.float32), self.plain.groups, -1)
        return [tf.reshape(part, (*part.shape[:2], -1)) for part in parts]

    def add(self, x: tf.Tensor, z: tf.Tensor) -> None:
        """Takes in what one call of the layer reads in the original and in the present network."""
        if self.next is self.moments:
            self.next = self._nothing()
        table = self.looked_at.some(tuple(x.shape), self.share, self.rng)
        old, new = (self.groups(self.looked_at(values, table)) for values in (x, z))
        parts = np.split(self.kernel, self.plain.groups, -1)
        for moments, given, read, part in zip(self.next, old, new, parts, strict=True):
            given, read = (tf.reshape(rows, (-1, rows.shape[-1])) for rows in (given, read))
            if self.by_tap:
                given = tf.matmul(given, part.reshape(-1, part.shape[-1]))
            moments.add(read, given)

    def renew(self, keep: np.ndarray) -> None:
        """Takes what was added since the last time, in the place of what was added before.

        The present kernel stays: if all kernels were refitted at once, each would make up for the
        same errors.
        """
        present = self.change(keep)
        self.moments = self.next
        self.known = {np.packbits(keep[self.units]).tobytes(): present}

    # What changes ---------------------------------------------------------------------

    def change(self, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The change of the kernel `(groups, taps * channels, outputs)` and of the constant
        `(groups, outputs)`.

        Args:
            keep: boolean per unit of the model.
        """
        kept = keep[self.units]
        key = np.packbits(kept).tobytes()
        if key not in self.known:
            parts = np.split(self.kernel, self.plain.groups, -1)
            both = zip(*(self._change(g, part, kept) for g, part in enumerate(parts)), strict=True)
            kernels, constants = (np.stack(arrays).astype(np.float32) for arrays in both)
            self.known[key] = kernels, constants
        return self.known[key]

    def _change(self, group: int, kernel: np.ndarray, kept: np.ndarray):
        """One group's, as `(taps * channels, outputs)` and `(outputs,)`."""
        taps, channels, outputs = kernel.shape
        flat = kernel.reshape(-1, outputs)
        if kept.all():
            return np.zeros_like(flat), np.zeros(outputs)
        if not self.by_tap:
            map_, constant = self._map(group, np.eye(channels), kept)
            changed = np.einsum("kc,tco->tko", map_, kernel).reshape(flat.shape)
            return changed - flat, constant @ kernel.sum(0)
        changed, constant = self._map(group, flat, np.tile(kept, taps))
        return changed - flat, constant

    def _map(self, group: int, weights: np.ndarray, kept: np.ndarray):
        """Coefficients by which the kept features give best what all of the original's gave by
        `weights`, with zeros for the others, and a constant."""
        moments, result = self.moments[group], np.zeros(weights.shape)
        ridge = max(LEAST_RIDGE, RIDGE * np.count_nonzero(kept) / max(moments.count.sum(), 1))
        change, constant = moments.fit(weights[kept], self.constant, ridge, kept)
        result[kept] = weights[kept] + change
        return result, constant

    # In the network -------------------------------------------------------------------

    def weights(self, change: tuple[np.ndarray, np.ndarray]) -> list[tuple]:
        """Pairs of a variable of the layer and the value that it has after a change."""
        kernel = np.concatenate(list(change[0]), -1).reshape(self.laid_out)
        value = tf.convert_to_tensor(self.plain.kernel)
        kernel = tf.cast(kernel.transpose(np.argsort(self.order)), value.dtype)
        pairs = [(self.plain.kernel, value + kernel)]
        if (bias := self.plain.bias) is not None:
            constant = np.concatenate(list(change[1])).reshape(bias.shape)
            pairs.append((bias, tf.convert_to_tensor(bias) + tf.cast(constant, bias.dtype)))
        return pairs

    def output_axis(self) -> int:
        """Along which axis of the output, from the end, the kernel's outputs lie."""
        output = self.call.outputs[0]
        if self.plain.window is not None:
            return channel_axis(self.call.layer, output.rank) - output.rank
        axes = [axis for axis, size in enumerate(output.names.shape) if size > 1]
        return axes[0] - output.rank if axes else -1

    def gradient(self, x: tf.Tensor, output: tf.Tensor, gradient: tf.Tensor, change) -> list:
        """For each group the gradient of each sample for the kernel and for the constant.

        Args:
            x, output: of a call in the present network.
            gradient: of the output.
            change: that the present network has.

        Returns:
            Pairs of tensors `(samples, taps * channels, outputs)` and `(samples, outputs)`.
        """
        axis = self.output_axis() % len(gradient.shape)
        read = self.groups(self.rows(x, self.rows.table(tuple(x.shape))))
        g = positions_first(tf.cast(gradient, tf.float32), axis)
        activation = getattr(self.call.layer, "activation", None)
        if activation not in (None, keras.activations.linear):
            g = self._before_activation(activation, read, g, change)
        parts = zip(read, tf.split(g, self.plain.groups, -1), strict=True)
        return [(tf.matmul(rows, g, transpose_a=True), tf.reduce_sum(g, 1)) for rows, g in parts]

    def _before_activation(self, activation, read, g, change) -> tf.Tensor:
        parts = np.split(self.kernel, self.plain.groups, -1)
        linear = tf.concat(
            [
                tf.matmul(rows, part.reshape(-1, part.shape[-1]) + kernel) + constant
                for rows, part, kernel, constant in zip(read, parts, *change, strict=True)
            ],
            -1,
        )
        if self.plain.bias is not None:
            linear += tf.cast(tf.reshape(tf.convert_to_tensor(self.plain.bias), [-1]), tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(linear)
            activated = activation(linear)
        return tape.gradient(activated, linear, g)


class InputEdge:
    """A tensor in which removed channels become zero: what reads it cannot make up for them."""

    def __init__(self, call: Call, index: int):
        self.call, self.index = call, index
        self.names = call.inputs[index].names

    @property
    def units(self) -> np.ndarray:
        return self.names.ravel()

    def keep(self, keep: np.ndarray, dtype) -> tf.Tensor:
        """The kept channels as 1, others as 0."""
        return tf.cast(keep[self.names], dtype)


def find_edges(channel_map: ChannelMap, samples: int) -> tuple[list[KernelEdge], list[InputEdge]]:
    """All edges at which channels are read that may be removed.

    Args:
        channel_map: the traced model.
        samples: how many samples moments will be taken of.
    """
    calls: dict[int, list[Call]] = {}
    for call in channel_map.calls:
        calls.setdefault(id(call.layer), []).append(call)
    kernels, inputs, into = [], [], absorbed(channel_map)
    for call in channel_map.calls:
        reads = plain_reads(channel_map, call) if len(call.outputs) == 1 else []
        plain = {kernel.argument: kernel for kernel in reads if kernel.gives}
        for index, tensor in enumerate(call.inputs if call.reads else ()):
            if not channel_map.free[tensor.names].any():
                continue
            if index not in plain:
                inputs.append(InputEdge(call, index))
            elif call is calls[id(call.layer)][0]:
                constant = plain[index].bias is not None or call.outputs[0] in into
                every = calls[id(call.layer)]
                kernels.append(KernelEdge(channel_map, every, plain[index], constant, samples))
    return kernels, inputs
