"""Activations, dropout, noise and what else works on each element alone."""

import numpy as np
from keras import activations, layers

from keras_nisp import graph
from keras_nisp.rules.base import PassThrough, Rule, register_operations, register_rule

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


# At inference these give what they get.
IDLE = (
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
)
register_rule(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Masking, *IDLE)(PassThrough)


@register_rule(*graph.ACTIVATIONS)
@register_operations(
    *("absolute", "negative", "sign", "signbit", "square", "sqrt", "rsqrt", "cbrt", "reciprocal"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc", "erfinv", "sinc"),
    *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh"),
    *("arccosh", "arctanh", "deg2rad", "rad2deg", "floor", "ceil", "round", "trunc", "clip"),
    *("fabs", "nan_to_num", "i0", "isnan", "isinf", "isfinite", "isneginf", "isposinf", "isreal"),
    *("logical_not", "bitwise_not", "bitwise_invert", "cast", "saturate_cast", "copy"),
    *("convert_to_tensor", "stop_gradient", "conjugate", "real", "imag", "angle"),
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("celu", "elu", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("leaky_relu", "log_sigmoid", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink"),
    *("softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh_shrink"),
    "threshold",
)
class Elementwise(PassThrough):
    """Element by element, with settings that are the same for all of them."""

    def trace(self, call, x, *settings, **others):
        bounds = (getattr(call.layer, key, None) for key in ("x_min", "x_max"))
        if any(np.size(value) > 1 for value in (*settings, *others.values(), *bounds)):
            return call.block("which has a setting for each element")
        return x.names

    def absolute(self, call, x, *settings, **others):
        return x


@register_rule(layers.Rescaling)
class Rescaling(PassThrough):
    """One factor for all channels, or one for each, which shrinks with them."""

    def trace(self, call, x):
        for key in ("scale", "offset"):
            value = getattr(call.layer, key)
            if np.ndim(value) > 1:
                return call.block("which has a constant for each position")
            if np.size(value) > 1:
                call.hold(key, value, {0: call.along(x, -1)})
        return x.names

    def resize(self, call, config, kept):
        for key, binding in call.constants.items():
            units = binding.axes[0]
            counts = [kept(units[i : i + 1]) for i in range(len(units))]
            config[key] = np.repeat(np.ravel(config[key]), counts).tolist()
        return config

    def absolute(self, call, x):
        return x * np.abs(np.asarray(call.layer.scale, np.float32))


@register_rule(layers.PReLU)
class PReLU(Rule):
    """A slope for each channel, or for each position of a channel; importance passes."""

    def trace(self, call, x):
        alpha = call.layer.alpha
        axes = [i for i in range(x.rank) if alpha.shape[i] > 1 and x.names.shape[i] > 1]
        call.bind(alpha, own={axis: call.along(x, axis) for axis in axes})
        return x.names

    def absolute(self, call, x):
        return x
