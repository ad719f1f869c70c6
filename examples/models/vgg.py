"""VGG with BatchNormalization, for small images."""

import keras
from keras import layers

from models.blocks import conv_bn


def vgg(stages, hidden=(512,), input_shape=(32, 32, 3), classes=10, name="vgg"):
    """Stages of 3x3 convolutions, each ended by max-pooling, then Dense layers.

    Args:
        stages: width and number of convolutions of each stage.
        hidden: units of the Dense layers before the classifier.
        input_shape: of an image.
        classes: number of logits.
        name: of the model.

    After Simonyan and Zisserman, ICLR 2015, with BatchNormalization behind each convolution.
    """
    inputs = x = keras.Input(input_shape, name="image")
    for stage, (width, count) in enumerate(stages, 1):
        for index in range(1, count + 1):
            x = conv_bn(x, width, name=f"stage{stage}_{index}")
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for index, units in enumerate(hidden, 1):
        x = layers.Dense(units, activation="relu", name=f"hidden{index}")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def vgg16(input_shape=(32, 32, 3), classes=10, scale=1.0):
    """VGG-16 for CIFAR: 13 convolutions and one hidden Dense layer of 512 units.

    Args:
        input_shape: of an image.
        classes: number of logits.
        scale: factor of all widths.

    Published (Li et al., ICLR 2017): 15.0 M parameters, 313 M multiply-adds.
    """
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    stages = [(int(width * scale), count) for width, count in stages]
    return vgg(stages, (int(512 * scale),), input_shape, classes, name="vgg16")
