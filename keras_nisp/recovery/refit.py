"""One kernel, refitted so that the channels it still reads give what all of them gave."""

import math

import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.keras_graph.masks import mask_of, spread_mask
from keras_nisp.kernels.patches import patches, positions_first, read_positions
from keras_nisp.kernels.regression import FOLDS, Moments
from keras_nisp.recovery.assigning import assign_finite, check_finite
from keras_nisp.recovery.pair import Reader

MOST_FEATURES = 4096  # solving for more takes too long
ROWS = 8  # for each feature: more of the same samples say little that is new
LEAST_ROWS = 5  # for each feature: with fewer, taps share one map
MOST_VALUES = 1 << 21  # that are looked at anyway: rows times features


class Refit:
    """Regression of what a kernel gives in the original on what its twin reads.

    Each tap of the kernel gets weights of its own, so that what neighbours know of a removed
    channel counts. Where there are too few rows or too many weights for that, all taps share one
    map: the original's channels are regressed on the kept ones.

    Args:
        reader: the kernel.
        rows: how many positions of all samples it is applied to.
        constant: whether a constant can be added after the kernel.
        linearly: whether the kernel changes, or the bias alone.
        ridge: strength of the regularisation; by default chosen on held-out samples.
    """

    def __init__(
        self, reader: Reader, rows: int, constant: bool, linearly: bool, ridge: float | None
    ):
        self.reader, self.constant, self.ridge = reader, constant, ridge
        self.weights = reader.kernel()  # (taps, channels, outputs)
        self.rng = np.random.default_rng(0)
        width, taps = reader.width, len(self.weights)
        enough = taps == 1 or rows >= LEAST_ROWS * taps * width
        fits = taps * width <= MOST_FEATURES and enough
        self.linearly = linearly and (fits or width <= MOST_FEATURES)
        self.by_tap = fits or not self.linearly
        features = taps * width if self.by_tap else width
        wanted = max(ROWS * features, MOST_VALUES // features)
        self.share = min(1.0, wanted / rows)  # of the positions
        outputs = self.weights.shape[2] // reader.plain.groups
        shape = features * self.linearly, outputs if self.by_tap else self.weights.shape[1]
        self.moments = [Moments(*shape) for _ in range(reader.plain.groups)]

    # Data ---------------------------------------------------------------------------

    def add(self, call: Call, x: tf.Tensor, z: tf.Tensor) -> None:
        """Takes in a batch: what the layer reads in the original, and what its twin reads."""
        for values in (x, z):
            check_finite(values, f"What enters layer '{call.path}' is")
        table, mask, axis = (
            self._table(tuple(x.shape), self.by_tap),
            mask_of(x),
            self.reader.channel_axis(len(x.shape)),
        )
        if self.share < 1:
            chosen = self.rng.choice(len(table), math.ceil(self.share * len(table)), replace=False)
            table = table[np.sort(chosen)]
        for fold in range(FOLDS):
            part = np.arange(fold, len(x), FOLDS)
            given, made = tf.gather(x, part), tf.gather(z, part)
            old, new = (patches(positions_first(rows, axis), table) for rows in (given, made))
            if mask is not None:  # what is masked does not count later either
                weights = spread_mask(tf.gather(mask, part), given)
                seen = tf.reduce_any(patches(positions_first(weights, axis), table) > 0, (1, 2))
                old, new = tf.boolean_mask(old, seen), tf.boolean_mask(new, seen)
            self._add(fold, old, new)

    def _table(self, shape: tuple[int, ...], by_tap: bool) -> np.ndarray:
        """Positions of an input of this shape (batch axis counted) that are read for each output,
        or each of them alone."""
        axis, window = self.reader.channel_axis(len(shape)), self.reader.plain.window
        inputs = [size for i, size in enumerate(shape) if i not in (0, axis)]
        if window is None or not by_tap:
            return np.arange(math.prod(inputs))[:, None]
        made = self.reader.call.layer.compute_output_shape(shape)
        return read_positions(window, inputs, [n for i, n in enumerate(made) if i not in (0, axis)])

    def _add(self, fold: int, x: tf.Tensor, z: tf.Tensor) -> None:
        """Takes in `(positions, taps, channels)` of the original and the twin."""
        parts = zip(
            *(tf.split(a, len(self.moments), -1) for a in (x, z, self.weights)), strict=True
        )
        for moments, (old, new, weights) in zip(self.moments, parts, strict=True):
            old, new = (
                tf.cast(tf.reshape(rows, (len(rows), -1)), tf.float64) for rows in (old, new)
            )
            if self.by_tap:
                old = tf.matmul(old, tf.reshape(weights, (-1, weights.shape[-1])))
            if not self.linearly:
                old -= tf.matmul(new, self._surgery(weights))
                new = new[:, :0]
            moments.add(fold, new, old)

    # Result -------------------------------------------------------------------------

    def assign(self) -> None:
        """Writes kernel and bias of the twin."""
        parts = np.split(self.weights, len(self.moments), -1)
        solved = [self._solved(*both) for both in zip(self.moments, parts, strict=True)]
        kernels, constants = (np.concatenate(arrays, -1) for arrays in zip(*solved, strict=True))
        reader = self.reader
        assign_finite(reader.made.kernel, reader.laid_out(kernels), reader.call.path)
        if (bias := reader.bias()) is not None:
            assign_finite(reader.made.bias, bias + constants.reshape(bias.shape), reader.call.path)

    def _solved(self, moments: Moments, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The kernel `(taps, kept channels, outputs)` and the constant of one group."""
        surgery, shape = self._surgery(weights), (len(weights), self.reader.width, -1)
        if not self.linearly:
            _, constant = moments.fit(surgery[:0], self.constant, self.ridge)
            return surgery.reshape(shape), constant
        if self.by_tap:
            change, constant = moments.fit(surgery, self.constant, self.ridge)
            return (surgery + change).reshape(shape), constant
        alone = self.reader.labels == np.arange(self.reader.width)[:, None]
        change, constant = moments.fit(alone.astype(float), self.constant, self.ridge)
        kernel = np.einsum("kc,tco->tko", alone + change, weights)
        return kernel, constant @ self._tap_sums(weights)

    def _surgery(self, weights) -> np.ndarray:
        """The kernel as the surgery leaves it: `(taps * kept channels, outputs)`."""
        return self.reader.surgery(weights).reshape(-1, weights.shape[-1])

    def _tap_sums(self, weights: np.ndarray) -> np.ndarray:
        """What an input that is 1 everywhere adds to the outputs: `(channels, outputs)`.

        The mean over positions, where outputs get different taps.
        """
        table = self._table((1, *self.reader.input.shape), by_tap=True)
        return np.einsum("t,tco->co", (table >= 0).mean(0), weights)
