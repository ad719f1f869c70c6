"""How far the outputs of two networks are apart, as a number that adds up over small changes."""

import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.errors import warn
from keras_nisp.keras_graph import keras_models
from keras_nisp.keras_graph.masks import step_weights
from keras_nisp.keras_graph.output_kinds import OutputKind, kind_of

Counts = list[tf.Tensor | None] | None

LEAST = 1e-7  # of a probability
ROUNDING = 1e-6  # of the largest output


class Distance:
    """Divergence of outputs from those of the original.

    Probabilities (of a softmax or a sigmoid, or logits of a model that is compiled for them) are
    compared by the Kullback-Leibler divergence, everything else by half of the squared difference
    over the variance of an output's values. Several outputs add up.

    Args:
        channel_map: the traced model.
        temperature: by which logits are divided, the divergence being multiplied by its square.
            The higher, the more unlikely classes count.
    """

    def __init__(self, channel_map: ChannelMap, temperature: float = 1.0):
        count = len(keras_models.body(channel_map.model).outputs)
        self.kinds = [kind_of(channel_map.model, i) for i in range(count)]
        self.scales = [1.0] * count
        self.all = [None] * count  # steps count
        self.temperature, self.name = temperature, channel_map.model.name

    def fit(self, outputs: list[np.ndarray], counts: Counts = None) -> None:
        """Takes the scale of the original's outputs.

        Args:
            outputs: one array each.
            counts: which steps of each count; `None` for all of one, or of all.

        Raises:
            ValueError: they are NaN or infinite. Constant ones are warned of.
        """
        _check(outputs, self.name)
        for i, (kind, values, mask) in enumerate(
            zip(self.kinds, outputs, counts or self.all, strict=True)
        ):
            if kind.name == "values":
                values = np.ma.asarray(values, np.float64)
                if mask is not None:
                    values[~np.asarray(mask)] = np.ma.masked
                spread = float(values.var(0).mean())
                self.scales[i] = spread or float((values**2).mean()) or 1.0

    def __call__(self, before: list, after: list, counts: Counts = None) -> tf.Tensor:
        """For each sample, how far they are apart: a tensor `(samples,)`."""
        total = 0.0
        every = zip(self.kinds, self.scales, before, after, counts or self.all, strict=True)
        for kind, scale, old, new, mask in every:
            old, new = tf.cast(old, tf.float32), tf.cast(new, tf.float32)
            if kind.name == "values":
                values = ((new - old) / np.sqrt(2 * scale)) ** 2  # a square alone may overflow
            else:
                old, new = (_log(kind, rows, self.temperature) for rows in (old, new))
                values = self.temperature**2 * tf.exp(old) * (old - new)
            total += _per_sample(values, kind, mask)
        return total

    def direction(self, outputs: list, counts: Counts, seed: tf.Tensor | int) -> tf.Tensor:
        """A number for each sample whose squared change is, on average over seeds, twice the
        distance that a small change of the outputs makes: `(samples,)`."""
        total = 0.0
        every = zip(self.kinds, self.scales, outputs, counts or self.all, strict=True)
        for i, (kind, scale, new, mask) in enumerate(every):
            new = tf.cast(new, tf.float32)
            key = tf.stack([seed, i])
            if kind.name == "values":
                sign = tf.sign(tf.random.stateless_uniform(tf.shape(new), key, -1, 1))
                total += _root_mean(sign * new / np.sqrt(scale), kind, mask)
                continue
            logs = _log(kind, new, self.temperature)
            root = tf.sqrt(tf.exp(tf.stop_gradient(logs)))
            signed = root * tf.sign(tf.random.stateless_uniform(tf.shape(root), key, -1, 1))
            # E vv' = diag(p) - pp', as for a class drawn from p, but without rare large values.
            v = self.temperature * (signed - root**2 * tf.reduce_sum(signed, -1, keepdims=True))
            total += _root_mean(v * logs, kind, mask)
        return total


def _check(outputs: list[np.ndarray], name: str) -> None:
    rows = [np.asarray(output, np.float64).reshape(len(output), -1) for output in outputs]
    bad = ~np.all([np.isfinite(part).all(1) for part in rows], axis=0)
    if bad.any():
        raise ValueError(
            f"Expected finite outputs of model '{name}' for calibration data. Received NaN or "
            f"infinity for {bad.sum()} of {len(bad)} samples: look at the data and the weights."
        )
    same = [np.ptp(part, axis=0).max() <= ROUNDING * abs(part).max() for part in rows]
    if len(bad) > 1 and all(same):
        warn(
            f"Model '{name}' gives the same outputs for all calibration samples, so no removal "
            "appears to cost anything. Look at the data and the weights."
        )


def _log(kind: OutputKind, values: tf.Tensor, temperature: float = 1.0) -> tf.Tensor:
    """Logarithms of probabilities, moved to the last axis."""
    if kind.name == "binary":
        values = tf.stack([values, 1 - values], -1)
    elif kind.name == "binary logits":
        values = tf.stack([values, tf.zeros_like(values)], -1)
    else:
        values = tf.experimental.numpy.moveaxis(values, kind.axis, -1)
    if "logits" not in kind.name:
        values = tf.math.log(tf.maximum(values, LEAST))
    return tf.nn.log_softmax(values / temperature)


def _per_sample(values: tf.Tensor, kind: OutputKind, mask: tf.Tensor | None) -> tf.Tensor:
    """Sums over classes, means over everything else that counts."""
    if kind.name != "values":
        values = tf.reduce_sum(values, -1)
    if mask is not None:
        values *= step_weights(mask, values)
    return tf.reduce_mean(tf.reshape(values, (tf.shape(values)[0], -1)), 1)


def _root_mean(values: tf.Tensor, kind: OutputKind, mask: tf.Tensor | None) -> tf.Tensor:
    """Like `_per_sample`, for terms whose squares are to add up."""
    if kind.name != "values":
        values = tf.reduce_sum(values, -1)
    if mask is not None:
        values *= tf.sqrt(step_weights(mask, values))
    values = tf.reshape(values, (tf.shape(values)[0], -1))
    return tf.reduce_sum(values, 1) / tf.sqrt(
        tf.maximum(tf.cast(tf.shape(values)[1], tf.float32), 1)
    )
