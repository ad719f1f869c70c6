"""MobileNet-V1."""

import keras
from keras import layers

from models.blocks import classifier, conv_bn

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDED = (2, 4, 6, 12)


def mobilenet(alpha=1.0, input_shape=(224, 224, 3), classes=1000):
    """MobileNet-V1: 13 blocks of a depthwise and a pointwise convolution.

    Args:
        alpha: factor of all widths.
        input_shape: of an image. Images of less than 64 pixels are not halved by the stem.
        classes: number of logits.

    Published (Howard et al., arXiv 1704.04861): 4.23 M parameters, 568 M multiply-adds.
    """
    inputs = keras.Input(input_shape, name="image")
    strides = 2 if min(input_shape[:2]) >= 64 else 1
    x = conv_bn(inputs, int(32 * alpha), strides=strides, name="stem")
    for index, width in enumerate(WIDTHS, 1):
        x = _depthwise_bn(x, 2 if index in STRIDED else 1, f"block{index}_depthwise")
        x = conv_bn(x, int(width * alpha), 1, name=f"block{index}")
    return classifier(inputs, x, classes, "mobilenet")


def _depthwise_bn(x, strides, name):
    x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
