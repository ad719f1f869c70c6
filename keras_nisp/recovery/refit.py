"""One kernel, refitted so that the channels it still reads give what all of them gave."""

import functools

import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.keras_graph.masks import counts_of, spread_mask
from keras_nisp.kernels.regression import FOLDS, Moments
from keras_nisp.kernels.rows import KernelRows, share_of
from keras_nisp.recovery.assigning import assign_finite, check_finite
from keras_nisp.recovery.pair import Reader

MOST_FEATURES = 4096  # solving for more takes too long
ROWS = 5  # for each feature: more of the same samples say little that is new
LEAST_ROWS = 5  # for each feature: with fewer, taps share one map
MOST_VALUES = 1 << 23  # that are looked at anyway: rows times features
AT_ONCE = 2  # rows for each feature, of which products are taken together


class Refit:
    """Regression of what a kernel gives in the original on what its twin reads.

    Each tap of the kernel gets weights of its own, so that what neighbors know of a removed
    channel counts. Where there are too few rows or too many weights for that, all taps share one
    map: the original's channels are regressed on the kept ones.

    Args:
        reader: the kernel.
        positions: how many of all samples it is applied to; 0 if its rule does not say.
        constant: whether a constant can be added after the kernel.
        linearly: whether the kernel changes, or the bias alone.
        ridge: strength of the regularization; by default chosen on held-out samples.
    """

    def __init__(
        self, reader: Reader, positions: int, constant: bool, linearly: bool, ridge: float | None
    ):
        self.reader, self.constant, self.ridge = reader, constant, ridge
        self.weights = reader.kernel()  # (taps, channels, outputs)
        self.rng = np.random.default_rng(0)
        width, taps = reader.width, len(self.weights)
        enough = taps == 1 or positions >= LEAST_ROWS * taps * width
        fits = taps * width <= MOST_FEATURES and enough
        self.linearly = linearly and (fits or width <= MOST_FEATURES)
        self.by_tap = fits or not self.linearly
        self.by_output = self.by_tap and reader.gives_product
        features = taps * width if self.by_tap else width
        self.share = share_of(positions, features, ROWS, MOST_VALUES)
        self.rows = self._rows(self.by_tap)
        groups, targets = reader.plain.groups, self.weights.shape[1]
        if self.by_tap:
            targets = self.weights.shape[2] // groups
        double = getattr(reader.call.layer, "compute_dtype", None) == "float64"
        self.dtype = np.float64 if double else np.float32
        settings = features, targets, self.linearly, FOLDS, self.dtype, AT_ONCE * features
        self.moments = [Moments(*settings) for _ in range(groups)]

    @functools.cached_property
    def matrices(self) -> list[tf.Tensor]:
        """The kernel of each group: `(taps * channels, outputs)`."""
        groups = np.split(self.weights, len(self.moments), -1)
        return [tf.constant(g.reshape(-1, g.shape[-1]), self.dtype) for g in groups]

    def _rows(self, by_tap: bool) -> KernelRows:
        reader = self.reader
        return KernelRows(reader.call.layer, reader.plain, reader.channel_axis, by_tap)

    # Data ---------------------------------------------------------------------------

    def add(self, call: Call, x: tf.Tensor, z: tf.Tensor, y: tf.Tensor | None = None) -> None:
        """Takes in a batch.

        Args:
            call: of the layer in the original.
            x, z: what the layer reads there, and what its twin reads.
            y: what it gives there, if `by_output`.
        """
        for values in (x, z):
            check_finite(values, f"What enters layer '{call.path}' is")
        shape, mask = tuple(x.shape), counts_of(x)
        chosen = self.rows.some(shape, self.share, self.rng)
        table = self.rows.table(shape)[chosen]
        if y is None:
            old = self.rows(x, table)
        else:
            old = self.reader.product(tf.cast(self.rows(y, chosen[:, None]), self.dtype))
        rows, seen = (old, self.rows(z, table)), None
        if mask is not None:  # what is masked does not count later either
            seen = tf.reduce_any(self.rows(spread_mask(mask, x), table) > 0, (2, 3))
        for fold in range(FOLDS):
            part = np.arange(fold, len(x), FOLDS)
            old, new = (tf.gather(values, part) for values in rows)
            if seen is not None:
                counts = tf.gather(seen, part)
                old, new = tf.boolean_mask(old, counts), tf.boolean_mask(new, counts)
            self._add(fold, old, new, given=y is not None)

    def _add(self, fold: int, x: tf.Tensor, z: tf.Tensor, given: bool) -> None:
        """Takes in `(..., taps, channels)` of what the kernel reads in the original (or gives
        there, at one tap) and of what it reads in the twin."""
        rows = [tf.reshape(values, (-1, *values.shape[-2:])) for values in (x, z)]
        split = [tf.split(values, len(self.moments), -1) for values in rows]
        for group, (moments, *both) in enumerate(zip(self.moments, *split, strict=True)):
            old, new = (tf.cast(tf.reshape(a, (len(a), -1)), self.dtype) for a in both)
            if self.by_tap and not given:
                old = tf.matmul(old, self.matrices[group])
            moments.add(new, old, fold)

    # Result -------------------------------------------------------------------------

    def assign(self) -> None:
        """Writes kernel and bias of the twin."""
        parts = np.split(self.weights, len(self.moments), -1)
        solved = [self._solved(*both) for both in zip(self.moments, parts, strict=True)]
        kernels, constants = (np.concatenate(arrays, -1) for arrays in zip(*solved, strict=True))
        reader = self.reader
        assign_finite(reader.made.kernel, reader.laid_out(kernels), reader.call.path)
        if (bias := reader.bias) is not None:
            assign_finite(reader.made.bias, bias + constants.reshape(bias.shape), reader.call.path)

    def _solved(self, moments: Moments, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The kernel `(taps, kept channels, outputs)` and the constant of one group."""
        surgery, shape = self._surgery(weights), (len(weights), self.reader.width, -1)
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
        table = self._rows(by_tap=True).table((1, *self.reader.input.shape))
        return np.einsum("t,tco->co", (table >= 0).mean(0), weights)
