"""Convolutions: plain, grouped, depthwise, separable and transposed."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.registry import register_rule
from keras_nisp.channels.rule import (
    PlainKernel,
    Rule,
    Window,
    absolute,
    channel_axis,
    positions,
    spread,
)
from keras_nisp.rules.activation import activated


class _Convolution(Rule):
    """What all kinds share: channels enter and leave along the channel axis."""

    does = "creates"
    convolves = True

    def trace(self, call, x):
        axis = channel_axis(call.layer, x.rank)
        outputs = self.outputs(call, call.along(x, axis), x, positions(call.output_shape, axis))
        return activated(call, spread(outputs, axis, x.rank))

    def outputs(self, call, inputs, x, applied) -> np.ndarray:
        """Binds the kernels and gives the names of the output channels (1-D).

        Args:
            inputs: names of the input channels (1-D).
            applied: number of output positions.
        """
        raise NotImplementedError

    def resize(self, call, config, width):
        return {**config, "filters": width(_line(call, call.outputs[0]))}

    def absolute(self, call, x):
        # TensorFlow's convolutions are differentiable on a CPU in channels_last only.
        layer, rank = call.layer, len(x.shape)
        x = self.convolve(layer, _channels_last(layer, x))
        if layer.data_format == "channels_last":
            return x
        return tf.transpose(x, [0, rank - 1, *range(1, rank - 1)])

    def convolve(self, layer, x):
        """The absolute convolution in channels_last."""
        raise NotImplementedError


def _line(call, x) -> np.ndarray:
    """The names along the channel axis of a tensor."""
    return x.line(channel_axis(call.layer, x.rank))


def _settings(layer) -> dict:
    return {
        "strides": tuple(layer.strides),
        "padding": layer.padding,
        "dilation_rate": tuple(layer.dilation_rate),
        "data_format": "channels_last",
    }


def _channels_last(layer, x):
    if layer.data_format == "channels_last":
        return x
    return tf.transpose(x, [0, *range(2, len(x.shape)), 1])


def _window(layer, transposed: bool = False) -> Window:
    sizes = (tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate))
    return Window(*sizes, layer.padding, transposed)


def _causal(layer, x, settings):
    """Keras pads on the left for `padding="causal"` and then convolves with "valid"."""
    if settings["padding"] == "causal":
        left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        x, settings["padding"] = tf.pad(x, [[0, 0], [left, 0], [0, 0]]), "valid"
    return x


def _convolve(x, kernel, settings):
    """A convolution, without the gradient of the kernel where that can be had."""
    if len(x.shape) != 4:
        return keras.ops.conv(x, kernel, **settings)
    forward, backward = tf.raw_ops.Conv2D, tf.raw_ops.Conv2DBackpropInput
    return _without_kernel_gradient(forward, backward, x, kernel, settings)


def _depthwise(x, kernel, settings):
    """A depthwise convolution; likewise."""
    plain = len(set(settings["strides"])) == 1 and max(settings["dilation_rate"]) == 1
    if len(x.shape) != 4 or not plain:
        return keras.ops.depthwise_conv(x, kernel, **settings)
    forward = tf.raw_ops.DepthwiseConv2dNative
    backward = tf.raw_ops.DepthwiseConv2dNativeBackpropInput
    return _without_kernel_gradient(forward, backward, x, kernel, settings)


def _without_kernel_gradient(forward, backward, x, kernel, settings):
    """TensorFlow computes both gradients of a two-dimensional convolution even if only that
    of its input is asked for; the other would be a third of the time of a NISP pass."""
    attributes = {
        "strides": [1, *settings["strides"], 1],
        "padding": settings["padding"].upper(),
        "dilations": [1, *settings["dilation_rate"], 1],
    }

    @tf.custom_gradient
    def convolve(x):
        def gradient(y):
            size = tf.shape(x)
            return backward(input_sizes=size, filter=kernel, out_backprop=y, **attributes)

        return forward(input=x, filter=kernel, **attributes), gradient

    return convolve(x)


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
class Convolution(_Convolution):
    """The number of groups stays: every group loses channels at the same positions. With
    `whole_groups`, or with one input channel in each group (a depthwise convolution), whole groups
    are removed.
    """

    def outputs(self, call, inputs, x, applied):
        layer = call.layer
        groups, depth = layer.groups, layer.kernel.shape[-2]
        if self.drops_groups(call):
            rows = inputs.reshape(groups, depth)
            call.join(rows[:, :1], rows)
            names = np.repeat(rows[:, 0], layer.filters // groups)
            call.bind(layer.kernel, own={-1: names}, positions=applied)
            call.bind(layer.bias, own={0: names})
            return names
        names = call.create(layer.filters)
        if groups > 1:
            inputs, grouped = inputs.reshape(groups, depth), names.reshape(groups, -1)
            call.join(inputs[:1], inputs[1:])
            call.join(grouped[:1], grouped[1:])
            inputs = inputs[0]
        call.bind(layer.kernel, read={-2: inputs}, create={-1: names}, positions=applied)
        call.bind(layer.bias, own={0: names})
        return names

    def groups(self, layer):
        return layer.groups

    def plain_kernels(self, layer):
        plain = PlainKernel(layer.kernel, layer.bias, -2, 0, _window(layer), layer.groups)
        return [plain] if layer.kernel.shape[-2] > 1 or layer.groups == 1 else []

    def drops_groups(self, call) -> bool:
        """Whether whole groups are removed."""
        return call.layer.groups > 1 and (call.whole_groups or call.layer.kernel.shape[-2] == 1)

    def resize(self, call, config, width):
        if self.drops_groups(call):
            depth = call.layer.kernel.shape[-2]
            config["groups"] = width(_line(call, call.inputs[0])) // depth
        return super().resize(call, config, width)

    def convolve(self, layer, x):
        kernel, settings = absolute(layer.kernel), _settings(layer)
        x = _causal(layer, x, settings)
        if layer.groups == 1:
            return _convolve(x, kernel, settings)
        # Convolved group by group: a CPU would need XLA for a grouped convolution.
        parts = zip(tf.split(x, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        if kernel.shape[-2] > 1 or len(x.shape) != 4:
            return tf.concat([keras.ops.conv(x, k, **settings) for x, k in parts], -1)
        shape = (*kernel.shape[:-2], layer.groups, layer.filters // layer.groups)
        return _depthwise(x, tf.reshape(kernel, shape), settings)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
class DepthwiseConvolution(_Convolution):
    """Each channel alone, repeated `depth_multiplier` times."""

    does = "passes"

    def outputs(self, call, inputs, x, applied):
        layer = call.layer
        names = np.repeat(inputs, layer.depth_multiplier)
        call.bind(layer.kernel, own={-2: inputs}, positions=applied)
        call.bind(layer.bias, own={0: names})
        return names

    def resize(self, call, config, width):
        return config

    def convolve(self, layer, x):
        return _depthwise(x, absolute(layer.kernel), _settings(layer))


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
class SeparableConvolution(_Convolution):
    """A depthwise convolution, then a pointwise one that reads its output."""

    def outputs(self, call, inputs, x, applied):
        layer = call.layer
        names = call.create(layer.filters)
        between = np.repeat(inputs, layer.depth_multiplier)
        call.bind(layer.depthwise_kernel, own={-2: inputs}, positions=applied)
        call.bind(layer.pointwise_kernel, read={-2: between}, create={-1: names}, positions=applied)
        call.bind(layer.bias, own={0: names})
        return names

    def plain_kernels(self, layer):
        def between(x):
            settings = _settings(layer)
            x = _causal(layer, _channels_last(layer, x), settings)
            kernel = tf.cast(tf.convert_to_tensor(layer.depthwise_kernel), x.dtype)
            return keras.ops.depthwise_conv(x, kernel, **settings)

        return [PlainKernel(layer.pointwise_kernel, layer.bias, -2, inside=between)]

    def convolve(self, layer, x):
        settings = _settings(layer)
        x = _causal(layer, x, settings)
        kernels = absolute(layer.depthwise_kernel), absolute(layer.pointwise_kernel)
        return keras.ops.separable_conv(x, *kernels, **settings)


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
class TransposedConvolution(_Convolution):
    """The kernel holds output channels before input channels."""

    convolves = False

    def plain_kernels(self, layer):
        return [PlainKernel(layer.kernel, layer.bias, -1, 0, _window(layer, transposed=True))]

    def outputs(self, call, inputs, x, applied):
        layer = call.layer
        names = call.create(layer.filters)
        applied = positions(x.shape, channel_axis(layer, x.rank))
        call.bind(layer.kernel, read={-1: inputs}, create={-2: names}, positions=applied)
        call.bind(layer.bias, own={0: names})
        return names

    def convolve(self, layer, x):
        settings = {**_settings(layer), "output_padding": layer.output_padding}
        return keras.ops.conv_transpose(x, absolute(layer.kernel), **settings)
