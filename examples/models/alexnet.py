"""AlexNet."""

import keras
from keras import layers


def alexnet(grouped=True, input_shape=(227, 227, 3), classes=1000):
    """AlexNet in the form of Caffe: five convolutions and three Dense layers.

    The local response normalization behind the first two convolutions is left out: Keras has no
    such layer, and it has neither parameters nor multiply-adds of a convolution.

    Args:
        grouped: conv2, conv4 and conv5 have two groups, from the time when the network was spread
            over two GPUs.
        input_shape: of an image.
        classes: number of logits.

    Published (Krizhevsky et al., NIPS 2012; Caffe): 60,965,224 parameters and 724 M multiply-adds;
    without groups 62,378,344 and 1,135 M.
    """
    groups = 2 if grouped else 1
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(96, 11, strides=4, activation="relu", name="conv1")(inputs)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = _conv(x, 256, 5, groups, "conv2")
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = _conv(x, 384, 3, 1, "conv3")
    x = _conv(x, 384, 3, groups, "conv4")
    x = _conv(x, 256, 3, groups, "conv5")
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc6", "fc7"):
        x = layers.Dense(4096, activation="relu", name=name)(x)
        x = layers.Dropout(0.5, name=f"{name}_dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="alexnet")


def _conv(x, width, kernel, groups, name):
    return layers.Conv2D(
        width, kernel, padding="same", groups=groups, activation="relu", name=name
    )(x)
