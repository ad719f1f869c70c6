"""Activations, dropout, noise and what else works on each element alone."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import activations, layers

from keras_nisp.channels.registry import register_operations, register_rule
from keras_nisp.channels.rule import PassThrough, Rule
from keras_nisp.errors import first_line
from keras_nisp.keras_graph import keras_layers
from keras_nisp.keras_graph.masks import carry_mask

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


# Functions of TensorFlow that people give as activations; they cannot be called symbolically.
ELEMENTWISE |= {
    *(tf.nn.relu, tf.nn.relu6, tf.nn.leaky_relu, tf.nn.elu, tf.nn.selu, tf.nn.silu, tf.nn.swish),
    *(tf.nn.gelu, tf.nn.softplus, tf.nn.softsign, tf.nn.sigmoid, tf.nn.tanh, tf.identity),
    *(tf.sigmoid, tf.tanh, tf.math.sigmoid, tf.math.tanh, tf.math.softplus, tf.exp, tf.abs),
    *(tf.square, tf.sin, tf.cos),
}


CLAMPS = (activations.linear, activations.relu, activations.relu6)


class Activated(Rule):
    """What ends with an activation. A softmax is taken over those that are kept."""

    def masked(self, call, keep, x):
        # By what enters the softmax: of a share that is rounded to zero nothing would be left.
        with _linear(call.layer):
            logits = call.infer(x)
        return carry_mask(logits, activations.softmax(left_out(logits, keep[0])))


@contextlib.contextmanager
def _linear(layer):
    """In it a layer has no activation."""
    own, layer.activation = layer.activation, activations.linear
    try:
        yield
    finally:
        layer.activation = own


def left_out(x: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """What enters a softmax that gives nothing to channels that are removed."""
    return tf.where(keep > 0, x, tf.constant(x.dtype.min / 2, x.dtype))


def activated(call, names, shape=None, key="activation", owner=None):
    """The names behind an activation of a layer: the same, fixed if it may mix them.

    Args:
        call: the layer's call.
        names: what enters the activation.
        shape: its shape, by default that of the layer's output.
        key: which of the layer's attributes holds the activation.
        owner: what has that attribute, if not the layer.
    """
    activation = getattr(call.layer if owner is None else owner, key, None)
    if activation is None or any(activation is function for function in ELEMENTWISE):
        return names
    if activation is activations.softmax and isinstance(call.rule, Activated):
        # A duplicated channel changes the denominator, so merging is not exact.
        call.softmax = call.mixes_channels = call.sums_channels = names.shape[-1] > 1
        if call.softmax:
            call.tracer.rivals(call, names)
        return names
    shape = call.output_shape if shape is None else shape
    title = getattr(activation, "__name__", type(activation).__name__)
    title = f"activation '{title}' of '{call.path}'"
    try:
        result, calls = _follow(call, activation, call.tracer.traced(names, shape, call.batch))
    except Exception as error:  # whatever a function of users raises on names; it is told
        reason = f"{title} is not known to be element-wise ({first_line(error)})"
        return call.fix(names, reason, unknown=title)
    unknown = any(inner.rule.warns for inner in calls)
    # What a function computes with is no part of the layer, and keeps its size.
    outside = any(c.weights for c in calls)
    if outside and isinstance(activation, keras.Operation):  # for whose sizes a layer has no config
        reason = f"{title} has weights: call it as a layer of its own"
        return call.fix(names, reason, unknown=title)
    apart = all(map(_keeps_channels_apart, calls)) and np.array_equal(result, names)
    if outside or not apart:
        return call.fix(names, f"{title} is not element-wise", unknown=title if unknown else None)
    return names


def _follow(call, activation, x):
    """The names that an activation gives, and the calls that it consists of."""
    if isinstance(activation, keras.Operation):
        if not getattr(activation, "built", True):
            raise ValueError("it has no weights yet: call the model once, on any data")
        inner = call.inside(activation, [x], [x.shape])
        if inner.rule.does != "passes":
            return None, [inner]
        return np.asarray(inner.ask("trace", x)), [inner]
    inputs = keras.Input(x.shape, dtype=call.layer.compute_dtype, name="x")
    model = keras.Model(inputs, activation(inputs), name="activation")
    (output,), calls = call.tracer.follow(model, [x])
    return output.names, calls


def _keeps_channels_apart(call) -> bool:
    """Whether a call leaves each channel alone, whatever the number of channels."""
    mixes = call.mixes_channels or call.sums_channels
    return call.rule.does in ("passes", "joins") and not mixes and not call.constants


@register_rule(layers.Activation)
class Activation(Activated, PassThrough):
    """Each element alone, or a softmax, which is taken over the channels that are kept."""

    def trace(self, call, x):
        return activated(call, x.names)

    def clamps(self, layer):
        return layer.activation in CLAMPS


@register_rule(
    layers.Identity,
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
    keras_layers.StochasticDepth,
)
class Idle(PassThrough):
    """Returns its input unchanged in inference."""

    idle = elementwise = True

    def affine(self, layer, args):
        return 1, 0


@register_rule(layers.Masking)
class Masking(PassThrough):
    """Time steps become zero; channels lie along the last axis."""

    elementwise = True

    def trace(self, call, x):
        call.along(x, -1)  # time steps, which the mask tells apart, are no channels
        return x.names

    def affine(self, layer, args):
        return 1, 0


@register_rule(layers.LeakyReLU, layers.ELU)
class Nonlinear(PassThrough):
    elementwise = True


@register_rule(layers.ReLU)
class ReLU(Nonlinear):
    def clamps(self, layer):
        return not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6)


@register_rule(*keras_layers.ACTIVATIONS)
@register_operations(
    *("absolute", "negative", "sign", "signbit", "square", "sqrt", "rsqrt", "cbrt", "reciprocal"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc", "erfinv", "sinc"),
    "lgamma",
    *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh"),
    *("arccosh", "arctanh", "deg2rad", "rad2deg", "floor", "ceil", "round", "trunc", "clip"),
    *("fabs", "nan_to_num", "i0", "isnan", "isinf", "isfinite", "isneginf", "isposinf", "isreal"),
    *("logical_not", "bitwise_not", "bitwise_invert", "conjugate", "real", "imag", "angle"),
    *("celu", "elu", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("leaky_relu", "log_sigmoid", "selu", "sigmoid", "silu", "soft_shrink"),
    *("softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh_shrink"),
    "threshold",
)
class Elementwise(PassThrough):
    """Element by element, with the same settings for all elements."""

    elementwise = True

    def trace(self, call, x, *settings, **others):
        bounds = (getattr(call.layer, key, None) for key in ("x_min", "x_max"))
        if any(np.size(value) > 1 for value in (*settings, *others.values(), *bounds)):
            return call.fix_all("which has a setting for each element")
        return x.names

    def absolute(self, call, x, *settings, **others):
        return x


@register_operations("zeros_like", "ones_like", "full_like", "empty_like")
class Constant(Elementwise):
    """The result does not depend on the values of the tensor: no importance passes."""

    def absolute(self, call, x, *settings, **others):
        return tf.ones_like(x)


@register_operations("relu", "relu6")
class Clamp(Elementwise):
    """Clips values."""

    def clamps(self, layer):
        return True


@register_operations("cast", "saturate_cast", "copy", "convert_to_tensor", "stop_gradient")
class Copy(Elementwise):
    """The same values."""

    def trace(self, call, x, *settings, **others):
        call.points_at = [x.points_at]
        return super().trace(call, x, *settings, **others)

    def affine(self, layer, args):
        return 1, 0


@register_rule(layers.Rescaling)
class Rescaling(PassThrough):
    """One factor for all channels, or one for each, which shrinks with them."""

    elementwise = rescales = True

    def affine(self, layer, args):
        return layer.scale, layer.offset

    def trace(self, call, x):
        for key in ("scale", "offset"):
            value = getattr(call.layer, key)
            if np.ndim(value) > 1:
                return call.fix_all("which has a constant for each position")
            if np.size(value) > 1:
                call.bind_constant(key, value, {0: call.along(x, -1)})
        return x.names

    def resize(self, call, config, width):
        for key, binding in call.constants.items():
            units = binding.axes[0]
            counts = [width(units[i : i + 1]) for i in range(len(units))]
            config[key] = np.repeat(binding.variable, counts).tolist()  # as a config holds it
        return config

    def absolute(self, call, x):
        return x * np.abs(np.asarray(call.layer.scale, np.float32))


@register_rule(layers.PReLU)
class PReLU(Rule):
    """A slope for each channel, or for each position of a channel; importance passes."""

    elementwise = True

    def trace(self, call, x):
        alpha = call.layer.alpha
        axes = [i for i in range(x.rank) if alpha.shape[i] > 1 and x.varies(i)]
        call.bind(alpha, own={axis: call.along(x, axis) for axis in axes})
        return x.names

    def absolute(self, call, x):
        return x
