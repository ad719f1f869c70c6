"""Where channels are read, and what removed ones change there once kernels are refitted."""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.rule import PlainKernel, channel_axis
from keras_nisp.keras_graph.masks import spread_mask
from keras_nisp.kernels.elimination import Elimination
from keras_nisp.kernels.patches import positions_first
from keras_nisp.kernels.reading import absorbed, inner_reads, plain_reads, read_axis, read_inside
from keras_nisp.kernels.regression import Moments
from keras_nisp.kernels.rows import KernelRows, share_of

MOST_FEATURES = 1152  # with more, taps share one map; with more channels, removed ones get a mean
ROWS = 4  # for each feature that second moments are taken of
MOST_VALUES = 1 << 21  # that are looked at anyway: rows times features
LEAST_RIDGE = 1e-4
RIDGE = 0.05  # over the variance of a feature, where there are as many rows as features


# Of a kernel, `(groups, taps * channels, outputs)`, and of the constant behind it.
Change = tuple[np.ndarray, np.ndarray]


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
        spatial = 0 if plain.window is None else len(plain.window.size)
        self.order = [i for i in range(len(plain.kernel.shape)) if i not in plain.axes]
        self.order[spatial:spatial] = plain.axes  # to (taps..., channels..., outputs...)
        self.axes = [binding.axes[axis] for axis in plain.axes]
        self.units = _units(channel_map, plain)
        value = np.asarray(tf.cast(tf.convert_to_tensor(plain.kernel), tf.float32))
        value = value.transpose(self.order)
        self.laid_out = value.shape
        taps, channels = math.prod(value.shape[:spatial]), math.prod(map(len, self.axes))
        self.kernel = value.reshape(taps, channels, -1)
        self.by_tap = taps == 1 or taps * channels <= MOST_FEATURES
        axis_of = functools.partial(read_axis, self.call, plain)
        self.rows, self.looked_at = (
            KernelRows(self.call.layer, plain, axis_of, by_tap) for by_tap in (True, self.by_tap)
        )
        features = channels * (taps if self.by_tap else 1)
        self.share = share_of(samples * binding.positions, features, ROWS, MOST_VALUES)
        self.rng = np.random.default_rng(0)
        self.moments = self._nothing()
        self.fits: list[Elimination] = []
        self.known: dict[str, tuple[np.ndarray, Change]] = {}  # what is kept, and the change then

    def _nothing(self) -> list[Moments]:
        taps, channels, outputs = self.kernel.shape
        targets = outputs // self.plain.groups if self.by_tap else channels
        features = taps * channels if self.by_tap else channels
        settings = features, targets, features <= MOST_FEATURES, 1, np.float32
        return [Moments(*settings) for _ in range(self.plain.groups)]

    # What is read ---------------------------------------------------------------------

    def kept(self, keep: np.ndarray) -> np.ndarray:
        """Boolean per channel: whether it is kept, along all axes."""
        return functools.reduce(np.logical_and.outer, [keep[units] for units in self.axes]).ravel()

    def read(self, args: tuple, kwargs: dict) -> tf.Tensor:
        """What the kernel multiplies in a call of the layer."""
        if self.plain.inside is not None:
            return read_inside(self.plain, args, kwargs)
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x)]
        return tensors[self.plain.argument]

    def groups(self, rows: tf.Tensor) -> list[tf.Tensor]:
        """Rows of each group of channels, flat: `(samples, positions, taps * channels)`."""
        parts = tf.split(tf.cast(rows, tf.float32), self.plain.groups, -1)
        return [tf.reshape(part, (*part.shape[:2], -1)) for part in parts]

    def add(self, x: tf.Tensor, z: tf.Tensor, mask: tf.Tensor | None = None) -> None:
        """Takes in a batch of a call of the layer.

        Args:
            x, z: what it reads in the original and in the present network.
            mask: which time steps of that count.
        """
        shape = tuple(x.shape)
        table = self.looked_at.table(shape)[self.looked_at.some(shape, self.share, self.rng)]
        old = self.groups(self.looked_at(x, table))
        new = old if z is x else self.groups(self.looked_at(z, table))
        if mask is not None:
            counts = tf.reduce_any(self.looked_at(spread_mask(mask, x), table) > 0, (2, 3))
            old, new = ([tf.boolean_mask(rows, counts) for rows in each] for each in (old, new))
        parts = np.split(self.kernel, self.plain.groups, -1)
        for moments, given, read, part in zip(self.moments, old, new, parts, strict=True):
            given, read = (tf.reshape(rows, (-1, rows.shape[-1])) for rows in (given, read))
            if self.by_tap:
                given = tf.matmul(given, part.reshape(-1, part.shape[-1]))
            moments.add(read, given)

    def renew(self, keep: np.ndarray) -> None:
        """Takes what was added since the last time, in the place of what was added before.

        The present kernel stays: if all kernels were refitted at once, each would make up for the
        same errors.
        """
        kept = self.kept(keep)
        known = {"renewed": (kept, self.change(keep))} if self.fits else {}
        parts = np.split(self.kernel, self.plain.groups, -1)
        both = zip(self.moments, parts, strict=True)
        self.fits = [self._fitted(moments, part, kept) for moments, part in both]
        self.known, self.moments = known, self._nothing()

    def _fitted(self, moments: Moments, kernel: np.ndarray, kept: np.ndarray) -> Elimination:
        """One group's regression."""
        taps, channels, outputs = kernel.shape
        if not all(np.isfinite(values).all() for values in (*moments.sums, moments.gram)):
            raise ValueError(
                "Expected finite activations. Received NaN or infinity in what enters "
                f"'{self.call.path}' on the calibration data: activations overflow (in half "
                "precision?), or the data are in another range than in training."
            )
        base = kernel.reshape(-1, outputs) if self.by_tap else np.eye(channels)
        kept = np.tile(kept, taps) if self.by_tap else kept
        ridge = max(LEAST_RIDGE, RIDGE * np.count_nonzero(kept) / max(moments.count.sum(), 1))
        fit = Elimination(moments, base, self.constant, ridge, kept)
        if not self.by_tap:
            fit.through(kernel.transpose(1, 0, 2).reshape(channels, -1))
        return fit

    # What changes ---------------------------------------------------------------------

    def change(self, keep: np.ndarray) -> Change:
        """The change of the kernel `(groups, taps * channels, outputs)` and of the constant
        `(groups, outputs)` in the present network.

        Args:
            keep: boolean per unit of the model.
        """
        now = self.kept(keep)
        for kept, change in self.known.values():
            if np.array_equal(kept, now):
                return change
        self.known["present"] = now, self.changed(keep)
        return self.known["present"][1]

    def changed(self, keep: np.ndarray) -> Change:
        """The same, of a network that is not yet the present one: it is not remembered."""
        kept = self.kept(keep)
        parts = np.split(self.kernel, self.plain.groups, -1)
        if kept.all():
            outputs = parts[0].shape[-1]
            shape = len(parts), parts[0].size // outputs, outputs
            return np.zeros(shape, np.float32), np.zeros((len(parts), outputs), np.float32)
        both = [self._change(*each, kept) for each in zip(self.fits, parts, strict=True)]
        kernels, constants = zip(*both, strict=True)
        return np.array(kernels, np.float32), np.array(constants, np.float32)

    def _change(self, fit: Elimination, kernel: np.ndarray, kept: np.ndarray):
        """One group's, as `(taps * channels, outputs)` and `(outputs,)`."""
        taps, channels, outputs = kernel.shape
        flat = kernel.reshape(-1, outputs)
        value, constant = fit.without(np.tile(kept, taps) if self.by_tap else kept)
        if not self.by_tap:
            value = value.reshape(channels, taps, outputs).transpose(1, 0, 2).reshape(flat.shape)
            constant = constant.reshape(taps, outputs).sum(0)
        value -= flat
        return value, constant

    # In the network -------------------------------------------------------------------

    @property
    def variables(self) -> list[keras.Variable]:
        """Of the layer: the ones that a change has effect on."""
        return [v for v in (self.plain.kernel, self.plain.bias) if v is not None]

    def values(self, change: Change) -> list[tf.Tensor]:
        """What the variables are after a change; where none takes the constant, it comes last."""
        kernel = np.concatenate(list(change[0]), -1).reshape(self.laid_out)
        constant = np.concatenate(list(change[1]))
        value = tf.convert_to_tensor(self.plain.kernel)
        kernel = tf.cast(kernel.transpose(np.argsort(self.order)), value.dtype)
        values = [value + kernel]
        if (bias := self.plain.bias) is not None:
            added = tf.cast(constant.reshape(bias.shape), bias.dtype)
            values.append(tf.convert_to_tensor(bias) + added)
        elif self.constant:
            values.append(tf.constant(constant))
        return values

    def with_constant(self, output: tf.Tensor, values: list[tf.Tensor]) -> tf.Tensor:
        """An output of the layer, with the constant that no variable takes."""
        if len(values) == len(self.variables):
            return output
        shape = [1] * len(output.shape)
        shape[self.output_axis()] = -1
        return output + tf.cast(tf.reshape(values[-1], shape), output.dtype)

    def output_axis(self) -> int:
        """Along which axis of the output, from the end, the kernel's outputs lie."""
        output = self.call.outputs[0]
        if self.plain.window is not None:
            return channel_axis(self.call.layer, output.rank) - output.rank
        axes = output.varying
        return axes[0] - output.rank if axes else -1

    def gradients(self, x: tf.Tensor, gradients: list, change: Change) -> list:
        """For each group the gradients of each sample for the kernel and for the constant.

        Args:
            x: what a call reads in the present network.
            gradients: of the call's output, of several numbers.
            change: that the present network has.

        Returns:
            For each group and each number, pairs of tensors `(samples, taps * channels, outputs)`
            and `(samples, outputs)`.
        """
        read = self.groups(self.rows(x, self.rows.table(tuple(x.shape))))
        axis = self.output_axis() % len(gradients[0].shape)
        slopes = [positions_first(tf.cast(g, tf.float32), axis) for g in gradients]
        activation = getattr(self.call.layer, "activation", None)
        if activation not in (None, keras.activations.linear):
            slopes = self._before_activation(activation, read, slopes, change)
        split = [tf.split(g, self.plain.groups, -1) for g in slopes]
        result = []
        for rows, *each in zip(read, *split, strict=True):
            kernels = tf.matmul(rows, tf.concat(each, -1), transpose_a=True)
            constants = (tf.reduce_sum(g, 1) for g in each)
            result.append(list(zip(tf.split(kernels, len(each), -1), constants, strict=True)))
        return result

    def _before_activation(self, activation, read, gradients: list, change: Change) -> list:
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
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(linear)
            activated = activation(linear)
        return [tape.gradient(activated, linear, g) for g in gradients]


class InputEdge:
    """A tensor in which removed channels become zero: what reads it cannot make up for them."""

    def __init__(self, call: Call, index: int):
        self.call, self.index = call, index
        self.names = call.inputs[index].names

    @property
    def units(self) -> np.ndarray:
        return self.names.ravel()

    def kept(self, keep: np.ndarray) -> np.ndarray:
        """Boolean per channel: whether it is kept."""
        return keep[self.units]

    def mask(self, keep: np.ndarray) -> tf.Tensor:
        """The kept channels as 1, others as 0."""
        return tf.constant(keep[self.names], tf.float32)


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
        one = len(call.outputs) == 1
        plain = {p.argument: p for p in plain_reads(channel_map, call) if one and p.gives}
        inner = [p for p in inner_reads(channel_map, call) if one and p.gives]
        seen = np.zeros(channel_map.count, bool)  # inside: it counts there
        for kernel in inner:
            seen[_units(channel_map, kernel)] = True
        for index, tensor in enumerate(call.inputs if call.reads else ()):
            shown = index in plain or seen[tensor.names].all()
            if not shown and channel_map.free[tensor.names].any():
                inputs.append(InputEdge(call, index))
        every = calls[id(call.layer)]
        for kernel in [*plain.values(), *inner] if call is every[0] else ():
            if channel_map.free[_units(channel_map, kernel)].any():
                constant = kernel.bias is not None or call.outputs[0] in into
                kernels.append(KernelEdge(channel_map, every, kernel, constant, samples))
    return kernels, inputs


def _units(channel_map: ChannelMap, plain: PlainKernel) -> np.ndarray:
    """All that the channels that a kernel reads depend on."""
    axes = channel_map.bindings[id(plain.kernel)].axes
    return np.concatenate([axes[axis] for axis in plain.axes])
