"""Reductions, and operations that run along an axis."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_operations, register_rule
from keras_nisp.channels.rule import PassThrough, Rule
from keras_nisp.rules.activation import left_out
from keras_nisp.rules.combining import meet


def reduced_axes(call, x) -> list[int] | None:
    """The axes that an operation reduces, batch axis not counted; `None` if that is one."""
    axis = _axis(call.layer)
    axes = [x.own_axis(int(a)) for a in (range(x.rank + 1) if axis is None else np.ravel(axis))]
    return None if None in axes else axes


def _axis(layer):
    """Which axes an operation reduces; `moments` calls them so."""
    return layer.axes if hasattr(layer, "axes") else layer.axis


def holds_channels(x, axes) -> bool:
    """Whether the names of a tensor vary along any of these axes."""
    return any(x.varies(axis) for axis in axes)


class _Reduction(Rule):
    """Positions are reduced; a reduction over channels makes one value of them all.

    Importance spreads over all that is reduced, undivided unless it is a mean.
    """

    moves_batch = True

    def trace(self, call, x):
        axes = reduced_axes(call, x)
        call.mixes_channels = call.sums_channels = False
        if axes is None:
            return call.fix_all("which reduces the batch axis")
        if holds_channels(x, axes):
            reason = "which reduces channels" if x.batch_axis else self.over_channels(call)
            if reason:
                return call.fix_all(reason)
            call.reads = True
            left = _left(call, x, axes)
            reason = f"is computed from all channels by '{call.path}'"
            return call.grid(left) if left else call.single(reason)
        if getattr(call.layer, "keepdims", False):
            return x.names
        return np.squeeze(x.names, tuple(axes))

    def over_channels(self, call) -> str | None:
        """Says how channels count, or gives the reason why they must stay."""
        return "which reduces channels"

    def absolute(self, call, x):
        keepdims = getattr(call.layer, "keepdims", False)
        return tf.reduce_sum(x, _listed(_axis(call.layer)), keepdims=keepdims)


def _left(call, x, axes) -> dict[int, np.ndarray]:
    """What lies along the axes that are not reduced."""
    left = [i for i in range(x.rank) if i not in axes]
    kept = getattr(call.layer, "keepdims", False)
    return {i if kept else n: x.line(i) for n, i in enumerate(left) if x.varies(i)}


def _listed(axis):
    return axis if axis is None or np.ndim(axis) == 0 else list(axis)


@register_operations("sum", "nansum")
class Sum(_Reduction):
    sums_channels = True

    def over_channels(self, call):
        call.sums_channels = True


@register_operations("mean", "nanmean")
class Mean(_Reduction):
    """Over channels the mean is taken over the kept ones."""

    mixes_channels = True

    def over_channels(self, call):
        call.mixes_channels = True

    def absolute(self, call, x):
        return tf.reduce_mean(x, _listed(call.layer.axis), keepdims=call.layer.keepdims)

    def masked(self, call, keep, x):
        axis, keep = _listed(call.layer.axis), tf.cast(keep[0], x.dtype)
        share = tf.reduce_mean(tf.broadcast_to(keep, tf.shape(x)), axis, call.layer.keepdims)
        return tf.math.divide_no_nan(call.infer(x * keep), share)


def extreme(x: tf.Tensor, sign: int) -> tf.Tensor:
    """What no value of a tensor is beyond."""
    if x.dtype.is_floating:
        return tf.constant(sign * np.inf, x.dtype)
    return tf.constant(x.dtype.max if sign > 0 else x.dtype.min, x.dtype)


@register_operations("max", "amax", "nanmax", "min", "amin", "nanmin")
class Extreme(_Reduction):
    """Over channels it is the extreme of the kept ones."""

    mixes_channels = True

    def over_channels(self, call):
        call.mixes_channels = True

    def masked(self, call, keep, x):
        largest = type(call.layer).__name__.lower().endswith("max")
        y = call.infer(tf.where(keep[0] > 0, x, extreme(x, -1 if largest else 1)))
        kept = tf.broadcast_to(keep[0], tf.shape(x))  # of all that is removed there is no extreme
        kept = tf.reduce_max(kept, _listed(call.layer.axis), call.layer.keepdims)
        return tf.where(kept > 0, y, tf.zeros_like(y))


@register_operations(
    *("all", "any", "prod", "nanprod", "std", "nanstd", "var", "nanvar", "median", "nanmedian"),
    *("ptp", "logsumexp", "count_nonzero", "norm", "nanargmax", "nanargmin"),
    *("quantile", "nanquantile", "percentile", "nanpercentile", "average"),
)
class PositionsOnly(_Reduction):
    """Passes over positions; over channels, it fixes them."""

    def trace(self, call, x, *others):
        if not isinstance(x, Traced) or any(isinstance(other, Traced) for other in others):
            return call.fix_all("which takes more than one tensor")
        if any(map(np.ndim, others)):
            return call.fix_all("which takes an array")
        return super().trace(call, x)

    def absolute(self, call, x, *others):
        return super().absolute(call, x)


@register_operations("moments")
class Moments(PositionsOnly):
    """Mean and variance, each as a tensor."""

    def trace(self, call, x):
        names = super().trace(call, x)
        return names if isinstance(names, list) else [names, names]

    def absolute(self, call, x):
        return [super().absolute(call, x)] * 2


@register_rule(layers.Softmax)
@register_operations("softmax")
class Softmax(Rule):
    """Over positions names pass; over channels it is taken over the kept ones."""

    mixes_channels = moves_batch = True

    def trace(self, call, x, mask=None):
        axes = reduced_axes(call, x)
        if axes is None:
            return call.fix_all("which runs along the batch axis")
        # A duplicated channel changes the denominator, so merging is not exact.
        call.mixes_channels = call.sums_channels = holds_channels(x, axes)
        if x.batch_axis and call.mixes_channels:
            return call.fix_all("which mixes channels")
        for axis in x.varying:
            meet(call, mask, x.line(axis), axis, x.rank)
        return x.names

    def absolute(self, call, x, mask=None):
        return x

    def masked(self, call, keep, x, mask=None):
        x = left_out(x, keep[0])
        return call.infer(x) if mask is None else call.infer(x, mask=mask)


@register_operations("log_softmax", "sparsemax", "cumsum", "cumprod", "nancumsum", "nancumprod")
@register_operations("sort", "argsort", "normalize", "diff")
class AlongAxis(PassThrough):
    """Passes if the axis holds no channels; otherwise it fixes them."""

    def trace(self, call, x):
        axes = reduced_axes(call, x)
        if axes is None or holds_channels(x, axes):
            return call.fix_all("which mixes channels")
        return x.names

    def absolute(self, call, x):
        lengths = keras.tree.map_structure(lambda t: t.shape, call.outputs)
        if lengths[0] == call.inputs[0].shape:
            return x
        mean = tf.reduce_mean(x, _listed(call.layer.axis), keepdims=True)
        return tf.broadcast_to(mean, (x.shape[0], *lengths[0]))
