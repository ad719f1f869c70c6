"""Activations, dropout, noise and what else works on each element alone."""

import keras
from keras import activations, layers

from keras_nisp import graph
from keras_nisp.rules.base import PassThrough, register_rule

# Everything in keras.activations that mixes no elements; softmax, log_softmax,
# sparsemax and glu are left out.
ELEMENTWISE = {
    activations.celu,
    activations.elu,
    activations.exponential,
    activations.gelu,
    activations.hard_shrink,
    activations.hard_sigmoid,
    activations.hard_silu,
    activations.hard_tanh,
    activations.leaky_relu,
    activations.linear,
    activations.log_sigmoid,
    activations.mish,
    activations.relu,
    activations.relu6,
    activations.selu,
    activations.sigmoid,
    activations.silu,
    activations.soft_shrink,
    activations.softplus,
    activations.softsign,
    activations.sparse_plus,
    activations.sparse_sigmoid,
    activations.squareplus,
    activations.tanh,
    activations.tanh_shrink,
    activations.threshold,
}


def fix_unless_elementwise(call, names):
    """Fixes names that enter a layer's `activation`, if it may mix them."""
    activation = getattr(call.layer, "activation", None)
    if activation is not None and activation not in ELEMENTWISE:
        title = getattr(activation, "__name__", type(activation).__name__)
        call.fix(names, f"activation '{title}' of '{call.path}' is not known to be element-wise")
    return names


@register_rule(layers.Activation)
class Activation(PassThrough):
    def trace(self, call, x):
        return fix_unless_elementwise(call, x.names)


@register_rule(layers.Softmax)
class Softmax(PassThrough):
    def trace(self, call, x):
        return call.fix(x.names, f"'{call.path}' mixes channels")


register_rule(
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Identity,
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
    graph.StochasticDepth,
)(PassThrough)


@register_rule(layers.Rescaling)
class Rescaling(PassThrough):
    """One factor for all channels passes; one for each would have to shrink with them."""

    def trace(self, call, x):
        if keras.ops.ndim(call.layer.scale) or keras.ops.ndim(call.layer.offset):
            call.fix(x.names, f"'{call.path}' has a constant for each channel")
        return x.names
