"""Channels that are chosen by their values: experts of a mixture, to which tokens are sent.

A choice returns indices, which point at channels (`Traced.points_at`). After a removal it is made
among the kept channels, and indices count only these.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_operations
from keras_nisp.channels.rule import Rule
from keras_nisp.keras_graph.keras_layers import operation_class
from keras_nisp.rules.combining import join_tensors
from keras_nisp.rules.reduction import extreme

ARGMAX = operation_class("argmax")
COMPARED = "which compares indices of channels"


class _Choice(Rule):
    """Among the channels that are kept. Indices pass no importance on."""

    mixes_channels = True

    def choose(self, call, x, axis: int, count: int = 1) -> np.ndarray | None:
        """Says that so many of the channels along an axis (batch axis not counted) are chosen.

        Returns:
            Their names; `None` if the axis holds none.
        """
        call.mixes_channels = call.sums_channels = x.varies(axis)
        if not call.mixes_channels:
            return None
        call.tracer.rivals(call, x.line(axis), count)
        return x.line(axis)

    def kept_first(self, x, keep, axis: int, worst) -> tuple[tf.Tensor, tf.Tensor]:
        """Channels along an axis with those that are removed at the end, where of equals the first
        is chosen, and where each of them was.

        Args:
            x: what is chosen from.
            keep: of its channels.
            axis: along which, the batch axis counted.
            worst: what removed ones are.
        """
        others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
        order = tf.argsort(-tf.reduce_max(keep, others), stable=True)
        some = tf.reduce_max(keep, axis, keepdims=True) > 0  # of nothing there is no best
        x = tf.where(some, tf.where(keep > 0, x, worst), tf.zeros_like(x))
        return tf.gather(x, order, axis=axis), order

    def others(self, call, x, axis: int, keepdims: bool) -> np.ndarray:
        """The names of what comes out: those along the axes that are not chosen along."""
        if x.names.shape[axis] == 1:
            return x.names if keepdims else np.squeeze(x.names, axis)
        lines = {i: x.line(i) for i in x.varying if i != axis}
        if not keepdims:
            lines = {i - (i > axis): line for i, line in lines.items()}
        return call.grid(lines) if lines else call.single(f"is chosen by '{call.path}'")


@register_operations("top_k")
class TopK(_Choice):
    """The k largest of the kept channels; at least k must stay. Indices pass no importance on."""

    moves_batch = True

    def trace(self, call, x):
        if (last := x.own_axis(-1)) is None:
            return call.fix_all("which runs along the batch axis")
        if x.points_at is not None:
            return call.fix_all(COMPARED)
        if x.batch_axis and x.varies(last):
            return call.fix_all("which moves channels depending on values")
        call.points_at = [None, self.choose(call, x, last, call.layer.k)]
        names = self.others(call, x, last, keepdims=True)
        return [names, names]

    def absolute(self, call, x):
        mean = tf.reduce_mean(x, -1, keepdims=True)
        values = tf.repeat(mean, call.layer.k, -1)
        return [values, tf.zeros_like(values)]

    def masked(self, call, keep, x):
        x, order = self.kept_first(x, keep[0], -1, extreme(x, -1))
        values, indices = call.infer(x)
        return values, tf.cast(tf.gather(order, indices), indices.dtype)


@register_operations("argmax", "argmin")
class Best(_Choice):
    """The index of the best of the kept channels. Indices pass no importance on."""

    moves_batch = True

    def trace(self, call, x):
        if (axis := call.layer.axis) is None or (own := x.own_axis(axis)) is None:
            return call.fix_all("which reduces the batch axis")
        if x.points_at is not None:
            return call.fix_all(COMPARED)
        if x.batch_axis and x.varies(own):
            return call.fix_all("which reduces channels")
        call.points_at = [self.choose(call, x, own)]
        return self.others(call, x, own, call.layer.keepdims)

    def absolute(self, call, x):
        return tf.zeros((x.shape[0], *call.output_shape))

    def masked(self, call, keep, x):
        sign = -1 if type(call.layer) is ARGMAX else 1
        x, order = self.kept_first(x, keep[0], call.layer.axis, extreme(x, sign))
        indices = call.infer(x)
        return tf.cast(tf.gather(order, indices), indices.dtype)


@register_operations("one_hot")
class OneHot(Rule):
    """One channel for each channel that the indices point at. Indices pass no importance on."""

    does = "moves"

    def trace(self, call, x):
        layer = call.layer
        if not isinstance(x, Traced) or x.points_at is None:
            return call.fix_all("which turns values into indices")
        if layer.sparse or layer.num_classes != len(x.points_at):
            return call.fix_all("which has other classes than there are channels to choose among")
        if (at := layer.axis % (x.rank + 2) - 1) < 0:
            return call.fix_all("which puts channels before the batch axis")
        call.points_at = [None]
        lines = {i + (i >= at): x.line(i) for i in x.varying}
        return call.grid({**lines, at: x.points_at})

    def resize(self, call, config, width):
        return {**config, "num_classes": width(call.inputs[0].points_at)}

    def absolute(self, call, x):
        return tf.zeros((x.shape[0], *call.output_shape))


@register_operations("take_along_axis")
class TakeAlongAxis(Rule):
    """The values at the positions, or of the channels, that indices point at. Importance spreads
    evenly."""

    does = "moves"
    moves_batch = True

    def trace(self, call, x, indices):
        if not isinstance(x, Traced):
            return call.fix_all("which looks constants up")
        axis = None if call.layer.axis is None else x.own_axis(call.layer.axis)
        if axis is None:
            return call.fix_all("which runs along the batch axis")
        lines = {i: x.line(i) for i in x.varying}
        along = lines.pop(axis, None)
        if along is None:
            return self._positions(call, x, indices, axis)
        if isinstance(indices, Traced) and indices.points_at is not None and not lines:
            return self._chosen(call, along, x, indices)
        if not lines:
            return call.fix_all("which moves channels depending on values")
        call.fix(along, f"may each be taken by '{call.path}'")
        others = call.tracer.traced(call.grid(lines), x.shape)
        others.batch_axis = x.batch_axis
        return self._positions(call, others, indices, axis)

    def _chosen(self, call, along, x, indices):
        """Of channels those that indices point at."""
        if indices.varying or x.batch_axis or indices.batch_axis:
            return call.fix_all("whose indices hold channels")
        call.join(along, indices.points_at)
        call.points_at = [None]
        return call.single(f"is chosen by '{call.path}'")

    def _positions(self, call, x, indices, axis: int):
        """All channels of those positions that indices say."""
        if not isinstance(indices, Traced):
            places = [x.axis_in_tensor(i) for i in x.varying]
            if any(np.shape(indices)[place] > 1 for place in places):
                return call.fix_all("which looks channels up by an array")
            return x.names
        alike = (indices.rank, indices.batch_axis) == (x.rank, x.batch_axis)
        if not alike or indices.varies(axis):
            return call.fix_all("which is told what to move by a tensor of other axes")
        # One place stands for all along the axis, of which the two have different numbers.
        shapes = [(*t.shape[:axis], 1, *t.shape[axis + 1 :]) for t in (x, indices)]
        pairs = zip((x, indices), shapes, strict=True)
        return join_tensors(call, [dataclasses.replace(t, shape=shape) for t, shape in pairs])[0]

    def absolute(self, call, x, indices):
        mean = tf.reduce_mean(x, call.layer.axis, keepdims=True)
        (output,) = call.outputs
        return tf.broadcast_to(mean, output.with_batch(x.shape[call.inputs[0].batch_axis]))
