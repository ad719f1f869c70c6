"""ResNets for ImageNet."""

import keras
from keras import layers

from models.blocks import add_relu, basic_branch, classifier, conv_bn, projection

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BOTTLENECKS = (50,)


def resnet(depth=50, stride_on="3x3", input_shape=(224, 224, 3), classes=1000):
    """ResNet-18, ResNet-34 (basic blocks) or ResNet-50 (bottlenecks).

    Shortcuts are 1x1 projections where the shape changes, identities elsewhere.

    Args:
        depth: 18, 34 or 50.
        stride_on: the convolution of a bottleneck that halves the resolution: "3x3" as in
            torchvision, or the first "1x1" as in the paper. Basic blocks have no such choice.
        input_shape: of an image.
        classes: number of logits.

    Published (He et al., CVPR 2016; torchvision) for depths 18, 34 and 50: 11.69 M, 21.80 M and
    25.56 M parameters; 1.81 G, 3.66 G and 4.09 G multiply-adds, 3.86 G with the stride on the 1x1.
    """
    if depth not in BLOCKS:
        raise ValueError(f"Expected a depth of {tuple(BLOCKS)}. Received: {depth}")
    if stride_on not in ("3x3", "1x1"):
        raise ValueError(f"Expected stride_on to be '3x3' or '1x1'. Received: {stride_on!r}")
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn(inputs, 64, 7, 2, name="stem")
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, count in enumerate(BLOCKS[depth], 1):
        width = 32 * 2**stage
        for block in range(1, count + 1):
            strides, name = 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}"
            if depth in BOTTLENECKS:
                branch = _bottleneck_branch(x, width, strides, name, stride_on)
            else:
                branch = basic_branch(x, width, strides, name)
            if branch.shape != x.shape:
                x = projection(x, branch.shape[-1], strides, name)
            x = add_relu(branch, x, name)
    return classifier(inputs, x, classes, f"resnet{depth}")


def _bottleneck_branch(x, width, strides, name, stride_on):
    first, second = (strides, 1) if stride_on == "1x1" else (1, strides)
    x = conv_bn(x, width, 1, first, name=f"{name}_1")
    x = conv_bn(x, width, 3, second, name=f"{name}_2")
    return conv_bn(x, 4 * width, 1, name=f"{name}_3", activation=None)
