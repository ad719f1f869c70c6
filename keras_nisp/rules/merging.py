"""Layers and operators that bring tensors together."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp import graph
from keras_nisp.channels import Traced
from keras_nisp.rules.base import BARRIER, Rule, register_rule


def _join_tensors(call, tensors):
    """Position by position, the names of broadcast tensors become one."""
    rank = tensors[0].rank
    if any(tensor.rank != rank for tensor in tensors):
        return BARRIER.trace(call)
    shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    joined = []
    for tensor in tensors:
        others = np.broadcast_shapes(*(t.names.shape for t in tensors if t is not tensor))
        # One value that serves many channels (a spatial gate) is none of them.
        if any(tensor.shape[i] == 1 < shape[i] and others[i] > 1 for i in range(rank)):
            call.fix(tensor.names, f"serves many channels in '{call.path}'")
        else:
            joined.append(tensor.names)
    for names in joined[1:]:
        call.join(joined[0], names)
    return np.broadcast_arrays(*joined)[0] if joined else tensors[0].names


def _sum(tensors):
    """The bound of an element-wise combination: every operand gets the whole score."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


@register_rule(
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
class Joining(Rule):
    """Element by element: sums, gates, maxima.

    A product passes the score to both factors. An average divides it.
    """

    def trace(self, call, tensors):
        return _join_tensors(call, tensors)

    def absolute(self, call, tensors):
        total = _sum(tensors)
        return total / len(tensors) if isinstance(call.layer, layers.Average) else total


@register_rule(graph.CustomScaleLayer)
class ScaledSum(Joining):
    """`x + scale * y`, in InceptionResNetV2."""

    def absolute(self, call, tensors):
        return tensors[0] + abs(call.layer.scale) * tensors[1]


@register_rule(graph.AddOperation, graph.MultiplyOperation)
class Operator(Rule):
    """`x + y` and `x * y`, with a tensor or a number."""

    def trace(self, call, first, second):
        operands = [first, second]
        tensors = [x for x in operands if isinstance(x, Traced)]
        constants = [x for x in operands if not isinstance(x, Traced)]
        if any(keras.ops.size(x) > 1 for x in constants):
            return BARRIER.trace(call)
        return _join_tensors(call, tensors)

    def absolute(self, call, first, second):
        tensors = [x for x in (first, second) if tf.is_tensor(x)]
        if len(tensors) == 2:
            return _sum(tensors)
        constant = second if tensors[0] is first else first
        if isinstance(call.layer, graph.AddOperation):
            return tensors[0]
        return tensors[0] * tf.abs(tf.cast(constant, tf.float32))


@register_rule(graph.LayerScale)
class LayerScale(Rule):
    """One learnt factor for each channel, in ConvNeXt."""

    def trace(self, call, x):
        call.bind(call.layer.gamma, own={0: call.along(x, -1)})
        return x.names

    def resize(self, call, config, kept):
        return {**config, "projection_dim": kept(call.outputs[0].names)}

    def absolute(self, call, x):
        return x * tf.abs(tf.cast(tf.convert_to_tensor(call.layer.gamma), tf.float32))


@register_rule(layers.Concatenate)
class Concatenate(Rule):
    def trace(self, call, tensors):
        rank = tensors[0].rank
        axis = call.layer.axis % (rank + 1) - 1
        if axis < 0:
            return BARRIER.trace(call)
        extents = [list(tensor.names.shape) for tensor in tensors]
        for extent, tensor in zip(extents, tensors, strict=True):
            extent[axis] = tensor.shape[axis]
        common = [max(extent[i] for extent in extents) for i in range(rank)]
        parts = [
            np.broadcast_to(t.names, [*common[:axis], t.shape[axis], *common[axis + 1 :]])
            for t in tensors
        ]
        return np.concatenate(parts, axis)

    def absolute(self, call, tensors):
        return tf.concat(tensors, call.layer.axis)
