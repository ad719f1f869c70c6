"""Pooling: each channel alone."""

import keras
import tensorflow as tf
from keras import layers

from keras_nisp.rules.base import Rule, channel_axis, register_rule, spread


class _Pooling(Rule):
    def trace(self, call, x):
        axis = channel_axis(call.layer, x.rank)
        return spread(call.along(x, axis), axis, x.rank)

    def pool(self, layer, x, padding):
        return keras.ops.average_pool(
            x, layer.pool_size, layer.strides, padding, data_format=layer.data_format
        )


@register_rule(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
class AveragePooling(_Pooling):
    """Each cell of a window counts 1 / size of the window."""

    def absolute(self, call, x):
        return self.pool(call.layer, x, call.layer.padding)


@register_rule(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
class MaxPooling(_Pooling):
    """Each cell of a window counts 1: |max x - max y| <= sum |x - y|."""

    def absolute(self, call, x):
        layer = call.layer
        window = float(tf.reduce_prod(layer.pool_size))
        if layer.padding == "same":
            # An average leaves padding out of its count; here it counts as zeros.
            first = 2 if _first(layer) else 1
            padding = [[0, 0]] * len(x.shape)
            for i, (size, stride) in enumerate(zip(layer.pool_size, layer.strides, strict=True)):
                length = x.shape[first + i]
                total = max((-(-length // stride) - 1) * stride + size - length, 0)
                padding[first + i] = [total // 2, total - total // 2]
            x = tf.pad(x, padding)
        return window * self.pool(layer, x, "valid")


@register_rule(
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D
)
class GlobalAveragePooling(Rule):
    def trace(self, call, x):
        names = call.along(x, channel_axis(call.layer, x.rank))
        rank = len(call.output_shape)
        return spread(names, channel_axis(call.layer, rank), rank)

    def absolute(self, call, x):
        return tf.reduce_mean(x, _spatial(call.layer, x), keepdims=call.layer.keepdims)


@register_rule(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
class GlobalMaxPooling(GlobalAveragePooling):
    def absolute(self, call, x):
        return tf.reduce_sum(x, _spatial(call.layer, x), keepdims=call.layer.keepdims)


def _first(layer) -> bool:
    return layer.data_format == "channels_first"


def _spatial(layer, x) -> list[int]:
    rank = len(x.shape)
    return list(range(2, rank)) if _first(layer) else list(range(1, rank - 1))
