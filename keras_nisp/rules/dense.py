"""Dense layers."""

import tensorflow as tf
from keras import layers

from keras_nisp.rules.activation import fix_unless_elementwise
from keras_nisp.rules.base import Rule, absolute, positions, register_rule, spread


@register_rule(layers.Dense)
class Dense(Rule):
    """Reads the last axis and creates a new one, at every position of the others."""

    def trace(self, call, x):
        layer = call.layer
        inputs, outputs = call.along(x, -1), call.create(layer.units)
        applied = positions(call.output_shape, -1)
        call.bind(layer.kernel, read={0: inputs}, create={1: outputs}, positions=applied)
        call.bind(layer.bias, own={0: outputs})
        fix_unless_elementwise(call, outputs)
        return spread(outputs, -1, x.rank)

    def resize(self, call, config, kept):
        return {**config, "units": kept(call.outputs[0].names)}

    def absolute(self, call, x):
        return tf.tensordot(x, absolute(call.layer.kernel), 1)
