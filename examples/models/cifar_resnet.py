"""ResNets for CIFAR, and a converter for trained weights."""

import keras
import numpy as np

from models.blocks import add_relu, basic_branch, classifier, conv_bn, projection


def cifar_resnet(
    depth=20, shortcut="projection", input_shape=(32, 32, 3), classes=10, widths=(16, 32, 64)
):
    """ResNet-20, 32, 44, 56, 110 or 164: three stages of basic blocks.

    C-SGD's ResNet-164 is this one, with 27 basic blocks in each stage; other papers give the name
    to a network of bottlenecks.

    Args:
        depth: 6n + 2 for n blocks in each stage.
        shortcut: what is added where a stage changes the shape: "projection", a 1x1 convolution
            with BatchNormalization, or "padded", every second pixel between channels of zeros,
            which has no parameters.
        input_shape: of an image.
        classes: number of logits.
        widths: channels in each stage.

    Published (He et al., CVPR 2016; "padded"): 0.27 M, 0.46 M, 0.66 M, 0.85 M and 1.7 M parameters
    for depths 20, 32, 44, 56 and 110. C-SGD's "projection" at depth 56: 125.8 M multiply-adds.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"Expected a depth of 6n + 2, such as 20 or 56. Received: {depth}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"Expected a shortcut of {tuple(SHORTCUTS)}. Received: {shortcut!r}")
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn(inputs, widths[0], name="stem")
    for stage, width in enumerate(widths, 1):
        for block in range(1, depth // 6 + 1):
            strides, name = 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}"
            branch = basic_branch(x, width, strides, name)
            if strides > 1:
                x = SHORTCUTS[shortcut](x, width, strides, name)
            x = add_relu(branch, x, name)
    return classifier(inputs, x, classes, f"resnet{depth}")


def _padded(x, width, strides, name):
    missing = width - x.shape[-1]
    before = missing // 2
    x = x[:, ::strides, ::strides]
    return keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (before, missing - before)))


SHORTCUTS = {"projection": projection, "padded": _padded}


def preprocess_cifar(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1], standardized by channel as the published weights expect them."""
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ((images - mean) / deviation).astype("float32")


def load_cifar_resnet(path, depth=None, shortcut="padded"):
    """A CIFAR ResNet with weights of the PyTorch implementation by Y. Idelbayev.

    Its shortcuts are "padded". A "projection" gets the weights that compute the same.

    Args:
        path: of an .npz file with the PyTorch arrays under their names.
        depth: of the network; by default that of the file.
        shortcut: see `cifar_resnet`.
    """
    with np.load(path) as file:
        arrays = dict(file)
    blocks = sum(key.startswith("layer1.") and key.endswith("conv1.weight") for key in arrays)
    model = cifar_resnet(depth or 6 * blocks + 2, shortcut)
    for layer in model.layers:
        if layer.name.endswith("_shortcut_conv"):
            layer.set_weights([_identity(layer.kernel.shape)])
        elif layer.name.endswith("_shortcut_bn"):
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 1 - layer.epsilon))
        elif layer.weights:
            layer.set_weights(_weights_of(layer.name, arrays))
    return model


def _weights_of(name: str, arrays) -> list[np.ndarray]:
    """The arrays that a layer of ours has in the file.

    `stem_conv` is `conv1` there, `stage2_block1_1_bn` is `layer2.0.bn1`, `logits` is `linear`.
    """
    if name == "logits":
        return [arrays["linear.weight"].T, arrays["linear.bias"]]
    *block, kind = name.split("_")
    prefix, number = "", 1
    if block != ["stem"]:
        stage, block, number = block
        prefix = f"layer{stage[len('stage') :]}.{int(block[len('block') :]) - 1}."
    theirs = f"{prefix}{kind}{number}"
    if kind == "conv":
        return [arrays[f"{theirs}.weight"].transpose(2, 3, 1, 0)]
    return [arrays[f"{theirs}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")]


def _identity(shape) -> np.ndarray:
    """The 1x1 kernel that puts channels between others of zeros."""
    *_, before, after = shape
    return np.eye(before, after, (after - before) // 2).reshape(shape)
