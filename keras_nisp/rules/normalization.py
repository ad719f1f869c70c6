"""Normalisation layers."""

import tensorflow as tf
from keras import layers

from keras_nisp.rules.base import PassThrough, Rule, absolute, register_rule, spread


@register_rule(layers.BatchNormalization)
class BatchNormalization(Rule):
    """Each channel alone: importance is multiplied by |gamma| / sqrt(variance + epsilon)."""

    def trace(self, call, x):
        layer, axis = call.layer, _channel_axis(call.layer.axis, x.rank)
        names = call.along(x, axis)
        for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
            call.bind(variable, own={0: names})
        return spread(names, axis, x.rank)

    def absolute(self, call, x):
        layer = call.layer
        factor = tf.math.rsqrt(absolute(layer.moving_variance) + layer.epsilon)
        if layer.scale:
            factor *= absolute(layer.gamma)
        rank = len(x.shape)
        return x * tf.reshape(factor, [-1 if i == layer.axis % rank else 1 for i in range(rank)])


@register_rule(layers.LayerNormalization)
class LayerNormalization(Rule):
    """Over the channels: statistics are taken over fewer of them after a removal.

    The deviation depends on the data; as one scalar for all channels it is left out
    of the importance, like the Lipschitz constants in the paper.
    """

    mixes_channels = True

    def trace(self, call, x):
        layer = call.layer
        axes = [_channel_axis(axis, x.rank) for axis in _as_list(layer.axis)]
        if axes != [x.rank - 1]:
            return call.fix(x.names, f"'{call.path}' normalises over several axes")
        names = call.along(x, -1)
        for variable in (layer.gamma, layer.beta):
            call.bind(variable, own={0: names})
        return spread(names, -1, x.rank)

    def absolute(self, call, x):
        return x * absolute(call.layer.gamma) if call.layer.gamma is not None else x

    def masked(self, call, keep, x):
        layer = call.layer
        count = tf.reduce_sum(keep, -1, keepdims=True)
        mean = tf.reduce_sum(x * keep, -1, keepdims=True) / count
        variance = tf.reduce_sum(keep * (x - mean) ** 2, -1, keepdims=True) / count
        y = (x - mean) * tf.math.rsqrt(variance + layer.epsilon)
        if layer.gamma is not None:
            y *= tf.convert_to_tensor(layer.gamma)
        if layer.beta is not None:
            y += tf.convert_to_tensor(layer.beta)
        return y


@register_rule(layers.Normalization)
class Normalization(PassThrough):
    """Standardises model inputs, whose channels stay anyway."""

    def trace(self, call, x):
        return call.fix(x.names, f"'{call.path}' has a constant for each channel")


def _channel_axis(axis: int, rank: int) -> int:
    """An axis of a Keras layer without the batch axis."""
    return axis % (rank + 1) - 1


def _as_list(axis) -> list[int]:
    return list(axis) if isinstance(axis, (list, tuple)) else [axis]
