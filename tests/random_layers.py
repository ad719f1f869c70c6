"""Layers and functions of a user's own that random graphs call.

All of them can be saved; `Narrow` cannot be loaded again, as many layers that people share.
"""

import keras
from keras import layers, ops

import keras_nisp as kn


@keras.saving.register_keras_serializable(package="random_layers")
def bump(x):
    """An activation that Keras does not have."""
    return x * ops.exp(-0.5 * ops.square(x))


@keras.saving.register_keras_serializable(package="random_layers")
def shares(x):
    """An activation that mixes channels."""
    return x / (1.0 + ops.sum(ops.abs(x), axis=-1, keepdims=True))


class Narrow(layers.Layer):
    """Its constructor takes neither a name nor a dtype, and there is no `get_config`."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def compute_output_shape(self, input_shape):
        return input_shape  # which Keras finds out by itself for most inputs, not for all


kn.register_rule(Narrow)(kn.PassThrough)


@keras.saving.register_keras_serializable(package="random_layers")
class Flavoured(layers.Dense):
    """A subclass with a setting of its own, which `**kwargs` let through."""

    def __init__(self, units, flavour=None, **kwargs):
        super().__init__(units, **kwargs)
        self.flavour = flavour

    def get_config(self):
        return {**super().get_config(), "flavour": self.flavour}


@keras.saving.register_keras_serializable(package="random_layers")
class Offset(layers.Layer):
    """Adds a number that it is adapted to, and that `finalize_state` makes of its weight."""

    def build(self, input_shape):
        self.half = self.add_weight(shape=(), initializer="zeros", trainable=False, name="half")
        self.offset = 0.0

    def adapt(self, offset: float) -> None:
        self.half.assign(offset / 2)
        self.finalize_state()

    def finalize_state(self) -> None:
        self.offset = 2 * float(self.half)

    def load_own_variables(self, store) -> None:
        super().load_own_variables(store)
        self.finalize_state()

    def call(self, x):
        return x + self.offset

    def compute_output_shape(self, input_shape):
        return input_shape


kn.register_rule(Offset)(kn.PassThrough)
