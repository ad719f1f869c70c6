"""LeNet and Cifar-net as Caffe defines them."""

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
