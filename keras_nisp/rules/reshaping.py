"""Layers that move values: names make the same movement."""

import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.rules.base import Rule, register_rule
from keras_nisp.rules.pooling import _Pooling


class Moving(Rule):
    """The layer itself moves importance; `move` does the same to names."""

    def trace(self, call, x):
        return self.move(call, np.broadcast_to(x.names, x.shape))

    def move(self, call, names):
        raise NotImplementedError

    def absolute(self, call, x):
        return call.layer(x)


@register_rule(layers.Flatten)
class Flatten(Moving):
    def move(self, call, names):
        if call.layer.data_format == "channels_first" and names.ndim > 1:
            names = np.moveaxis(names, 0, -1)
        return names.reshape(-1)


@register_rule(layers.Reshape)
class Reshape(Moving):
    """The new target shape is measured: along axes on which names vary, what is kept."""

    def move(self, call, names):
        return names.reshape(call.output_shape)

    def resize(self, call, config, kept):
        names = call.outputs[0].names
        target = list(config["target_shape"])
        for axis, size in enumerate(names.shape):
            if size > 1 and target[axis] != -1:
                index = [0] * names.ndim
                index[axis] = slice(None)
                target[axis] = kept(names[tuple(index)])
        return {**config, "target_shape": tuple(target)}


@register_rule(layers.Permute)
class Permute(Moving):
    def move(self, call, names):
        return names.transpose([axis - 1 for axis in call.layer.dims])


@register_rule(
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
)
class Spatial(_Pooling):
    """Pads, crops or repeats positions; channels stay where they are."""

    def absolute(self, call, x):
        if getattr(call.layer, "interpolation", "nearest") != "nearest":
            return tf.cast(call.layer(x), tf.float32)
        return call.layer(x)
