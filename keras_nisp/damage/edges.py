"""Where channels are read, and what removed ones change there once kernels are refitted."""

import math

import keras
import numpy as np
import scipy.linalg
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.rule import PlainKernel, Window, channel_axis
from keras_nisp.kernels.patches import patches, positions_first, read_positions
from keras_nisp.kernels.reading import absorbed, input_axis, plain_reads

MOST_BY_TAP = 2304  # features: more are read through one map for all taps
MOST_FEATURES = 2048  # with more, removed ones are replaced by their mean
ROWS = 16  # for each feature that second moments are taken of
MOST_VALUES = 1 << 21  # that are looked at anyway: rows times features
RIDGE = 0.05  # over the variance of a feature, where there are as many rows as features


class Moments:
    """Sums of products of what a kernel reads, and of what it is to give."""

    def __init__(self, features: int, targets: int, products: bool):
        self.count = 0
        self.sums, self.targets = np.zeros(features), np.zeros(targets)
        size = features * products
        self.gram = np.zeros((size, size), np.float32)
        self.products = np.zeros((size, targets), np.float32)

    def add(self, read: tf.Tensor, given: tf.Tensor) -> None:
        """Takes in rows of both."""
        self.count += len(read)
        self.sums += np.asarray(tf.reduce_sum(read, 0), np.float64)
        self.targets += np.asarray(tf.reduce_sum(given, 0), np.float64)
        if len(self.gram):
            self.gram += np.asarray(tf.matmul(read, read, transpose_a=True))
            self.products += np.asarray(tf.matmul(read, given, transpose_a=True))


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
        found, rank = input_axis(calls[0], plain), calls[0].inputs[plain.argument].rank
        # From the end: a layer may be called on tensors of different ranks.
        self.axis = None if found is None else found - rank - 1
        value = np.asarray(tf.cast(tf.convert_to_tensor(plain.kernel), tf.float32))
        value = value.transpose(self.order)
        self.laid_out = value.shape
        taps = math.prod(value.shape[:spatial])
        self.kernel = value.reshape(taps, len(self.units), -1)
        self.by_tap = taps == 1 or taps * len(self.units) <= MOST_BY_TAP
        features = len(self.units) * (taps if self.by_tap else 1)
        self.linear = features <= max(MOST_FEATURES, MOST_BY_TAP if self.by_tap else 0)
        rows = samples * binding.positions
        wanted = max(ROWS * features, MOST_VALUES // features)
        self.share = min(1.0, wanted / max(rows, 1))
        self.rng = np.random.default_rng(0)
        self.tables: dict[tuple[int, ...], np.ndarray] = {}
        self.moments = self.next = self._nothing()
        self.known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def _nothing(self) -> list[Moments]:
        taps, channels, outputs = self.kernel.shape
        targets = outputs // self.plain.groups if self.by_tap else channels
        features = taps * channels if self.by_tap else channels
        return [Moments(features, targets, self.linear) for _ in range(self.plain.groups)]

    # What is read ---------------------------------------------------------------------

    def rows(self, x: tf.Tensor, by_tap: bool = True, share: float = 1.0) -> tf.Tensor:
        """What the kernel reads at its positions: `(samples, positions, taps, channels)`."""
        window = self.plain.window
        axis = None if self.axis is None else self.axis % len(x.shape)
        inputs = [size for i, size in enumerate(x.shape) if i not in (0, axis)]
        table = np.arange(math.prod(inputs))[:, None]
        if window is not None and by_tap:
            table = self._table(window, tuple(x.shape), inputs, axis)
        if share < 1:
            count = math.ceil(share * len(table))
            table = table[np.sort(self.rng.choice(len(table), count, replace=False))]
        read = patches(positions_first(tf.cast(x, tf.float32), axis), table)
        return tf.reshape(read, (len(x), len(table), *read.shape[1:]))

    def _table(self, window: Window, shape: tuple, inputs: list[int], axis: int | None):
        key = tuple(inputs)
        if key not in self.tables:
            made = self.call.layer.compute_output_shape(shape)
            sizes = [size for i, size in enumerate(made) if i not in (0, axis)]
            self.tables[key] = read_positions(window, inputs, sizes)
        return self.tables[key]

    def groups(self, rows: tf.Tensor) -> list[tf.Tensor]:
        """Rows of each group of channels, flat: `(samples, positions, taps * channels)`."""
        parts = tf.split(rows, self.plain.groups, -1)
        return [tf.reshape(part, (*part.shape[:2], -1)) for part in parts]

    def add(self, x: tf.Tensor, z: tf.Tensor) -> None:
        """Takes in what one call of the layer reads in the original and in the present network."""
        if self.next is self.moments:
            self.next = self._nothing()
        state = self.rng.bit_generator.state
        old = self.groups(self.rows(x, self.by_tap, self.share))
        self.rng.bit_generator.state = state  # at the same positions
        new = self.groups(self.rows(z, self.by_tap, self.share))
        parts = np.split(self.kernel, self.plain.groups, -1)
        for moments, given, read, part in zip(self.next, old, new, parts, strict=True):
            given, read = (tf.reshape(rows, (-1, rows.shape[-1])) for rows in (given, read))
            if self.by_tap:
                given = tf.matmul(given, part.reshape(-1, part.shape[-1]))
            moments.add(read, given)

    def renew(self, keep: np.ndarray) -> None:
        """Takes what was added since the last time, in the place of what was added before.

        The present kernel stays: were all kernels fitted anew at once, each would make up for the
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
        moments = self.moments[group]
        mean = moments.sums / moments.count * self.constant
        target = moments.targets / moments.count * self.constant
        result = np.where(kept[:, None], weights, 0)
        if self.linear and kept.any():
            inner = moments.gram[np.ix_(kept, kept)].astype(np.float64) / moments.count
            inner -= np.outer(mean[kept], mean[kept])
            cross = moments.products[kept].astype(np.float64) / moments.count
            cross -= np.outer(mean[kept], target)
            strength = max(1e-4, RIDGE * len(inner) / moments.count)
            # Sums in float32 know a variance to a share of the mean square only.
            rounding = 1e-6 * (np.diagonal(inner) + mean[kept] ** 2) + 1e-9
            ridge = strength * np.abs(np.diagonal(inner)) + rounding
            missing = cross - inner @ weights[kept]
            inner += np.diag(ridge)
            try:
                result[kept] += scipy.linalg.solve(inner, missing, assume_a="pos")
            except np.linalg.LinAlgError:  # rounding, of constants that many features repeat
                result[kept] += scipy.linalg.lstsq(inner, missing, cond=1e-5)[0]
        return result, target - mean @ result

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
        read = self.groups(self.rows(x))
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
