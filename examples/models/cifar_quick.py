"""Cifar-net as Caffe defines it."""

import keras
from keras import layers


def cifar_quick(input_shape=(32, 32, 3), classes=10):
    """Cifar-net in the form of Caffe's "cifar10_quick".

    Three 5x5 convolutions, one max-pooling and two average-poolings, and a Dense layer of 64
    units without an activation. NISP prunes it on CIFAR-10.

    Args:
        input_shape: of an image.
        classes: number of logits.

    Published (Caffe): 145,578 parameters.
    """
    inputs = x = keras.Input(input_shape, name="image")
    # Caffe rounds the sizes of pooled maps up; so does padding "same", which leaves the
    # padded cells out of the average, as Caffe does.
    pooling = {"pool_size": 3, "strides": 2, "padding": "same"}
    x = layers.Conv2D(32, 5, padding="same", name="conv1")(x)
    x = layers.ReLU(name="relu1")(layers.MaxPooling2D(**pooling, name="pool1")(x))
    for index, width in enumerate((32, 64), 2):
        x = layers.Conv2D(width, 5, padding="same", activation="relu", name=f"conv{index}")(x)
        x = layers.AveragePooling2D(**pooling, name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(64, name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="cifar_quick")
