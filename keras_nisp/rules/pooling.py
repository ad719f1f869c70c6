"""Pooling: each channel alone."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.registry import named_layers, register_operations, register_rule
from keras_nisp.channels.rule import Rule, channel_axis, spread


class _Pooling(Rule):
    def trace(self, call, x):
        axis = channel_axis(call.layer, x.rank)
        return spread(call.along(x, axis), axis, x.rank)

    def pool(self, layer, x, padding):
        window = _window(layer, len(x.shape) - 2)
        return keras.ops.average_pool(x, *window, padding, data_format=layer.data_format)


def _window(layer, spatial: int) -> tuple[tuple, tuple]:
    """Size and strides; operations may hold one number for all axes, and no strides."""
    size = layer.pool_size
    strides = size if layer.strides is None else layer.strides
    return tuple(np.broadcast_to(size, spatial)), tuple(np.broadcast_to(strides, spatial))


@register_rule(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
@register_operations("average_pool")
class AveragePooling(_Pooling):
    """Each cell of a window counts 1 / size of the window."""

    def absolute(self, call, x):
        return self.pool(call.layer, x, call.layer.padding)


@register_rule(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
@register_operations("max_pool")
class MaxPooling(_Pooling):
    """Each cell of a window counts 1: |max x - max y| <= sum |x - y|."""

    def absolute(self, call, x):
        layer = call.layer
        sizes, strides = _window(layer, len(x.shape) - 2)
        if layer.padding == "same":
            # An average leaves padding out of its count; here it counts as zeros.
            first = 2 if _first(layer) else 1
            padding = [[0, 0]] * len(x.shape)
            for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
                length = x.shape[first + i]
                total = max((-(-length // stride) - 1) * stride + size - length, 0)
                padding[first + i] = [total // 2, total - total // 2]
            x = tf.pad(x, padding)
        return float(np.prod(sizes)) * self.pool(layer, x, "valid")


@register_rule(*named_layers(*(f"AdaptiveAveragePooling{n}D" for n in (1, 2, 3))))
@register_operations("adaptive_average_pool")
class AdaptiveAveragePooling(_Pooling):
    def absolute(self, call, x):
        return call.infer(x)


@register_rule(*named_layers(*(f"AdaptiveMaxPooling{n}D" for n in (1, 2, 3))))
@register_operations("adaptive_max_pool")
class AdaptiveMaxPooling(_Pooling):
    """Scores are averaged over all positions, which is an approximation."""

    def absolute(self, call, x):
        mean = tf.reduce_mean(x, _spatial(call.layer, x), keepdims=True)
        size = np.prod(call.inputs[0].shape) / np.prod(call.outputs[0].shape)
        return tf.broadcast_to(mean * size, (x.shape[0], *call.output_shape))


@register_rule(
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D
)
class GlobalAveragePooling(Rule):
    def trace(self, call, x, mask=None):
        names = call.along(x, channel_axis(call.layer, x.rank))
        rank = len(call.output_shape)
        return spread(names, channel_axis(call.layer, rank), rank)

    def absolute(self, call, x, mask=None):
        return tf.reduce_mean(x, _spatial(call.layer, x), keepdims=call.layer.keepdims)


@register_rule(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
class GlobalMaxPooling(GlobalAveragePooling):
    def absolute(self, call, x, mask=None):
        return tf.reduce_sum(x, _spatial(call.layer, x), keepdims=call.layer.keepdims)


def _first(layer) -> bool:
    return layer.data_format == "channels_first"


def _spatial(layer, x) -> list[int]:
    rank = len(x.shape)
    return list(range(2, rank)) if _first(layer) else list(range(1, rank - 1))
