"""GoogLeNet."""

import keras
from keras import layers

from models.blocks import classifier

# Filters of the branches: 1x1; 3x3 behind its reduction; 5x5 behind its reduction; pooling.
MODULES = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


def googlenet(input_shape=(224, 224, 3), classes=1000):
    """GoogLeNet (Inception v1): nine modules of four branches.

    Without the auxiliary classifiers, which serve training only, and without local response
    normalization, which Keras does not have. Patterns select kinds of convolutions in the
    modules: `inception*_reduce` the 1x1 reductions, `inception*_1x1` the plain 1x1 branches.

    Args:
        input_shape: of an image.
        classes: number of logits.

    Published (Szegedy et al., CVPR 2015; Caffe): 6,998,552 parameters, 1.58 G multiply-adds.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.ZeroPadding2D(3, name="conv1_pad")(inputs)
    x = _conv(x, 64, 7, "conv1_7x7", strides=2, padding="valid")
    x = _halve(x, "pool1")
    x = _conv(x, 64, 1, "conv2_3x3_reduce")
    x = _halve(_conv(x, 192, 3, "conv2_3x3"), "pool2")
    for module, widths in MODULES.items():
        x = _inception(x, widths, f"inception{module}")
        if module in ("3b", "4e"):
            x = _halve(x, f"pool{module[0]}")
    return classifier(inputs, x, classes, "googlenet", dropout=0.4)


def _inception(x, widths, name):
    plain, (reduce3, conv3), (reduce5, conv5), proj = widths
    pool = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    branches = [
        _conv(x, plain, 1, f"{name}_1x1"),
        _conv(_conv(x, reduce3, 1, f"{name}_3x3_reduce"), conv3, 3, f"{name}_3x3"),
        _conv(_conv(x, reduce5, 1, f"{name}_5x5_reduce"), conv5, 5, f"{name}_5x5"),
        _conv(pool, proj, 1, f"{name}_pool_proj"),
    ]
    return layers.Concatenate(name=f"{name}_concat")(branches)


def _conv(x, width, kernel, name, strides=1, padding="same"):
    return layers.Conv2D(
        width, kernel, strides=strides, padding=padding, activation="relu", name=name
    )(x)


def _halve(x, name):
    return layers.MaxPooling2D(3, 2, padding="same", name=name)(x)
