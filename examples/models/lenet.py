"""LeNet as Caffe defines it."""

import keras
from keras import layers


def lenet5(input_shape=(28, 28, 1), classes=10):
    """LeNet-5 in the form of Caffe's MNIST example.

    Two 5x5 convolutions without an activation, each with a max-pooling, and a hidden layer of
    500 units. NISP prunes it on MNIST.

    Args:
        input_shape: of an image.
        classes: number of logits.

    Published (LeCun et al., 1998; Caffe): 431,080 parameters, 2.293 M multiply-adds.
    """
    inputs = x = keras.Input(input_shape, name="image")
    for index, width in enumerate((20, 50), 1):
        x = layers.Conv2D(width, 5, name=f"conv{index}")(x)
        x = layers.MaxPooling2D(name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="lenet5")
