"""DenseNet for CIFAR."""

import keras
from keras import layers

from models.blocks import classifier


def densenet(growth=12, blocks=12, input_shape=(32, 32, 3), classes=10):
    """DenseNet-40: three stages of layers that each add channels to all earlier ones.

    Args:
        growth: channels that a layer adds.
        blocks: layers in each stage.
        input_shape: of an image.
        classes: number of logits.

    Published (Huang et al., CVPR 2017): 1.0 M parameters.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem_conv")(inputs)
    for stage in range(1, 4):
        for block in range(1, blocks + 1):
            y = _bn_relu_conv(x, growth, 3, f"stage{stage}_layer{block}")
            x = layers.Concatenate(name=f"stage{stage}_concat{block}")([x, y])
        if stage < 3:
            x = _bn_relu_conv(x, x.shape[-1], 1, f"transition{stage}")
            x = layers.AveragePooling2D(2, name=f"transition{stage}_pool")(x)
    x = layers.ReLU(name="last_relu")(layers.BatchNormalization(epsilon=1e-5, name="last_bn")(x))
    return classifier(inputs, x, classes, f"densenet{3 * blocks + 4}")


def _bn_relu_conv(x, width, kernel, name):
    x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.Conv2D(width, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
