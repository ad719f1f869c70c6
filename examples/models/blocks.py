"""What the networks are built of."""

import keras
from keras import layers


def conv_bn(x, width, kernel=3, strides=1, name=None, activation="relu"):
    """Convolution without bias, BatchNormalization, activation.

    Args:
        x: a tensor.
        width: number of filters.
        kernel: size of the kernel.
        strides: of the convolution.
        name: beginning of the layers' names.
        activation: name of the activation, or None.
    """
    if strides > 1 and kernel > 1:  # centered on every second pixel, as in other frameworks
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(
        width,
        kernel,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def basic_branch(x, width, strides, name):
    """The two 3x3 convolutions of a basic residual block; the first may have strides."""
    x = conv_bn(x, width, strides=strides, name=f"{name}_1")
    return conv_bn(x, width, name=f"{name}_2", activation=None)


def projection(x, width, strides, name):
    """A shortcut by 1x1 convolution."""
    return conv_bn(x, width, 1, strides, name=f"{name}_shortcut", activation=None)


def add_relu(branch, shortcut, name):
    """The end of a residual block."""
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([branch, shortcut]))


def classifier(inputs, x, classes, name, dropout=0.0):
    """The model that ends in global average pooling and a Dense layer."""
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)
