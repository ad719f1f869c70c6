"""Small networks of two families that the papers' networks do not cover."""

import keras
from keras import layers

from models.blocks import add_relu, basic_branch, classifier, conv_bn, projection


def inception(input_shape=(32, 32, 3), classes=10, modules=3):
    """Modules of four branches (1x1, 3x3, double 3x3, pooling), concatenated.

    Args:
        input_shape: of an image.
        classes: number of logits.
        modules: number of modules; each halves the resolution.

    After Szegedy et al., CVPR 2016, with BatchNormalization; the widths are our own.
    """
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn(inputs, 32, name="stem")
    for module in range(1, modules + 1):
        name = f"module{module}"
        a = conv_bn(x, 16, 1, name=f"{name}_a")
        b = conv_bn(conv_bn(x, 16, 1, name=f"{name}_b1"), 24, name=f"{name}_b2")
        c = conv_bn(conv_bn(x, 8, 1, name=f"{name}_c1"), 16, name=f"{name}_c2")
        c = conv_bn(c, 16, name=f"{name}_c3")
        d = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
        d = conv_bn(d, 8, 1, name=f"{name}_d")
        x = layers.Concatenate(name=f"{name}_concat")([a, b, c, d])
        x = layers.MaxPooling2D(name=f"{name}_down")(x)
    return classifier(inputs, x, classes, "inception")


def squeeze_excite(input_shape=(32, 32, 3), classes=10, widths=(16, 32, 64)):
    """Residual blocks whose branches are gated by squeeze-and-excite.

    Args:
        input_shape: of an image.
        classes: number of logits.
        widths: channels of each block.

    After Hu et al., CVPR 2018.
    """
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn(inputs, widths[0], name="stem")
    for stage, width in enumerate(widths, 1):
        name, strides = f"stage{stage}", 1 if stage == 1 else 2
        y = basic_branch(x, width, strides, name)
        gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(y)
        gate = layers.Conv2D(width // 4, 1, activation="relu", name=f"{name}_reduce")(gate)
        gate = layers.Conv2D(width, 1, activation="sigmoid", name=f"{name}_expand")(gate)
        y = layers.Multiply(name=f"{name}_excite")([y, gate])
        if strides > 1:
            x = projection(x, width, strides, name)
        x = add_relu(y, x, name)
    return classifier(inputs, x, classes, "squeeze_excite")
