"""Normalisation layers."""

import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.registry import register_rule, rule_of
from keras_nisp.channels.rule import Normalisation, PassThrough, Rule, absolute, spread
from keras_nisp.rules.reduction import holds_channels


@register_rule(layers.BatchNormalization)
class BatchNormalization(Rule):
    """Each channel alone: importance is multiplied by |gamma| / sqrt(variance + epsilon)."""

    def trace(self, call, x, mask=None):
        layer, axis = call.layer, _channel_axis(call.layer.axis, x.rank)
        names = call.along(x, axis)
        for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
            call.bind(variable, own={0: names})
        return spread(names, axis, x.rank)

    def absolute(self, call, x, mask=None):
        layer = call.layer
        factor = tf.math.rsqrt(absolute(layer.moving_variance) + layer.epsilon)
        if layer.scale:
            factor *= absolute(layer.gamma)
        return x * _laid_along(factor, layer.axis, len(x.shape))

    def normalisation(self, layer):
        statistics = layer.moving_mean, layer.moving_variance
        return Normalisation(*statistics, layer.gamma, layer.beta, layer.epsilon, layer.axis)

    def input_statistics(self, layer, rank):
        statistics = layer.moving_mean, layer.moving_variance
        return tuple(np.asarray(_laid_along(s + 0, layer.axis, rank)) for s in statistics)


class _Statistics(Rule):
    """Over channels: statistics are taken over fewer of them after a removal.

    The deviation depends on the data; as one scalar for all channels it is left out
    of the importance, like the Lipschitz constants in the paper.
    """

    mixes_channels = True

    def trace(self, call, x):
        axes = self.axes(call, x.rank)
        call.mixes_channels = holds_channels(x, axes)
        held = {i: axis for i, axis in enumerate(axes) if x.varies(axis)}
        for variable in self.vectors(call.layer):
            call.bind(variable, own={i: x.line(axis) for i, axis in held.items()})
        return x.names

    def axes(self, call, rank) -> list[int]:
        """The axes over which statistics are taken, batch axis not counted."""
        return [_channel_axis(int(axis), rank) for axis in np.ravel(call.layer.axis)]

    def vectors(self, layer) -> tuple:
        """The scale, and the offset."""
        return layer.gamma, layer.beta

    def absolute(self, call, x):
        scale = self.vectors(call.layer)[0]
        return x if scale is None else x * self.laid_out(call, absolute(scale))

    def laid_out(self, call, vector):
        """A scale or offset in a shape that broadcasts to the batched input."""
        shape, axes = call.inputs[0].shape, self.axes(call, call.inputs[0].rank)
        return tf.reshape(vector, [1, *(n if i in axes else 1 for i, n in enumerate(shape))])

    def masked(self, call, keep, x):
        axes = [axis + 1 for axis in self.axes(call, call.inputs[0].rank)]
        dtype, x = x.dtype, tf.cast(x, _precise(x.dtype))
        y = self.normalise(call.layer, x, tf.cast(keep[0], x.dtype) * tf.ones_like(x[:1]), axes)
        return tf.cast(self._affine(call, y), dtype)

    def _affine(self, call, y):
        """Times the scale, plus the offset."""
        scale, offset = (
            None if vector is None else self.laid_out(call, tf.cast(vector + 0, y.dtype))
            for vector in self.vectors(call.layer)
        )
        y = y if scale is None else y * scale
        return y if offset is None else y + offset

    def normalise(self, layer, x, keep, axes):
        """The input over its deviation, both taken where `keep` is 1."""
        raise NotImplementedError


def _precise(dtype: tf.DType) -> tf.DType:
    """The type in which statistics are taken, as Keras does it."""
    return tf.float32 if dtype.size < 4 else dtype


def _mean(x, keep, axes):
    """The mean of what is kept; 0 inside of heads that are not."""
    return tf.math.divide_no_nan(
        tf.reduce_sum(x * keep, axes, True), tf.reduce_sum(keep, axes, True)
    )


@register_rule(layers.LayerNormalization)
class LayerNormalization(_Statistics):
    """Mean and variance over the channels that are kept; importance is multiplied by |gamma|."""

    def normalise(self, layer, x, keep, axes):
        mean = _mean(x, keep, axes)
        variance = _mean((x - mean) ** 2, keep, axes)
        centred = x if layer.rms_scaling else x - mean
        return centred * tf.math.rsqrt(variance + layer.epsilon)


@register_rule(layers.RMSNormalization)
class RMSNormalization(_Statistics):
    """Root mean square over the channels that are kept; importance is multiplied by |scale|."""

    def vectors(self, layer):
        return layer.scale, None

    def normalise(self, layer, x, keep, axes):
        return x * tf.math.rsqrt(_mean(x * x, keep, axes) + layer.epsilon)


@register_rule(layers.GroupNormalization)
class GroupNormalization(_Statistics):
    """Every group loses the same number of channels. With one channel in each group, whole groups
    are removed, which is exact."""

    def trace(self, call, x):
        axis, groups = self.axes(call, x.rank)[0], call.layer.groups
        names = call.along(x, axis)
        alone = groups == len(names)
        call.mixes_channels = not alone and x.varies(axis)
        if not alone:
            rows = names.reshape(groups, -1)
            call.join(rows[:1], rows[1:])
        for variable in self.vectors(call.layer):
            call.bind(variable, own={0: names})
        return spread(names, axis, x.rank)

    def resize(self, call, config, width):
        x = call.inputs[0]
        names = x.line(self.axes(call, x.rank)[0])
        return {**config, "groups": width(names)} if config["groups"] == len(names) else config

    def masked(self, call, keep, x):
        axis, groups = self.axes(call, call.inputs[0].rank)[0] + 1, call.layer.groups
        dtype, x = x.dtype, tf.cast(x, _precise(x.dtype))
        keep = tf.cast(keep[0], x.dtype) * tf.ones_like(x[:1])
        shape = tf.shape(x)
        apart = tf.concat([shape[1:axis], [groups, shape[axis] // groups], shape[axis + 1 :]], 0)
        axes = [i for i in range(1, len(x.shape) + 1) if i != axis]
        x, keep = (tf.reshape(t, tf.concat([tf.shape(t)[:1], apart], 0)) for t in (x, keep))
        mean = _mean(x, keep, axes)
        variance = _mean((x - mean) ** 2, keep, axes)
        y = (x - mean) * tf.math.rsqrt(variance + call.layer.epsilon)
        return tf.cast(self._affine(call, tf.reshape(y, shape)), dtype)


@register_rule(layers.UnitNormalization)
class UnitNormalization(PassThrough):
    """A norm over the kept channels equals that of all channels with zeros."""

    mixes_channels = sums_channels = True

    def trace(self, call, x):
        axes = [_channel_axis(int(axis), x.rank) for axis in np.ravel(call.layer.axis)]
        call.mixes_channels = call.sums_channels = holds_channels(x, axes)
        return x.names


@register_rule(layers.SpectralNormalization)
class SpectralNormalization(Rule):
    """In inference it equals the layer that it wraps. Its vector lies along that layer's output."""

    does = "creates"

    def trace(self, call, *args, **kwargs):
        inner = self.inner(call)
        names = inner.rule.trace(inner, *args, **kwargs)
        kernel = call.tracer.bindings.get(id(call.layer.kernel))
        last = len(call.layer.kernel.shape) - 1
        reason = None
        if inner.softmax:
            reason = "whose layer ends with a softmax: call that as a layer of its own"
        elif kernel is None or last not in kernel.axes:
            reason = "whose kernel has no outputs on its last axis"
        if reason is not None:
            call.fix(names, f"leaves '{call.path}', {reason}")
            return call.fix_all(reason)
        call.reads, call.mixes_channels = inner.reads, inner.mixes_channels
        call.bind(call.layer.vector_u, own={1: kernel.axes[last]})
        return names

    def plain_kernels(self, layer):
        return rule_of(layer.layer).plain_kernels(layer.layer)

    def inner(self, call):
        """The call of the wrapped layer."""
        inner = call.inside(call.layer.layer, call.inputs, call.output_shapes)
        inner.outputs = call.outputs
        return inner

    def resize(self, call, config, width):
        inner, wrapped = self.inner(call), config["layer"]
        wrapped["config"] = inner.rule.resize(inner, wrapped["config"], width)
        return config

    def absolute(self, call, *args, **kwargs):
        inner = self.inner(call)
        return inner.rule.absolute(inner, *args, **kwargs)


@register_rule(layers.Normalization)
class Normalization(PassThrough):
    """Standardizes model inputs, whose channels stay anyway."""

    does = "fixes"
    rescales = True

    def input_statistics(self, layer, rank):
        if layer.mean is None or layer.invert:
            return None
        return np.asarray(layer.mean), np.asarray(layer.variance)

    def trace(self, call, x):
        return call.fix(x.names, f"'{call.path}' has a constant for each channel")


def _channel_axis(axis: int, rank: int) -> int:
    """An axis of a Keras layer without the batch axis."""
    return axis % (rank + 1) - 1


def _laid_along(vector, axis: int, rank: int):
    return tf.reshape(vector, [-1 if i == axis % rank else 1 for i in range(rank)])
