"""Networks of the C-SGD paper and others of their time, for small images, in plain Keras."""

import keras
import numpy as np
from keras import layers


def _conv_bn(x, width, kernel=3, strides=1, name=None, activation="relu"):
    if strides > 1 and kernel > 1:  # centred on every second pixel, as in other frameworks
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(
        width,
        kernel,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def resnet(depth=20, input_shape=(32, 32, 3), classes=10, widths=(16, 32, 64)):
    """ResNet-20, 32, 44, 56, 110 for CIFAR, with 1x1 projections where widths change."""
    if depth % 6 != 2:
        raise ValueError(f"Expected a depth of 6n + 2, such as 20 or 56. Received: {depth}")
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, widths[0], name="stem")
    for stage, width in enumerate(widths, 1):
        for block in range(1, depth // 6 + 1):
            strides, name = 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}"
            y = _conv_bn(x, width, strides=strides, name=f"{name}_1")
            y = _conv_bn(y, width, name=f"{name}_2", activation=None)
            if strides > 1:
                x = _conv_bn(x, width, 1, strides, name=f"{name}_shortcut", activation=None)
            x = layers.Add(name=f"{name}_add")([y, x])
            x = layers.ReLU(name=f"{name}_relu")(x)
    return _classifier(inputs, x, classes, f"resnet{depth}")


def load_resnet(path, depth=20):
    """A CIFAR ResNet with weights of the PyTorch implementation by Y. Idelbayev.

    Its parameter-free shortcuts (every second pixel, zero channels around) become the 1x1
    projections that compute the same.

    Args:
        path: of an .npz file with the PyTorch arrays under their names.
        depth: of the network.
    """
    arrays, model = np.load(path), resnet(depth)
    kernel = {2: lambda a: a.T, 4: lambda a: a.transpose(2, 3, 1, 0)}

    def assign(conv, bn, prefix, number):
        weight = arrays[f"{prefix}conv{number}.weight"]
        model.get_layer(conv).kernel.assign(kernel[4](weight))
        names = ("weight", "bias", "running_mean", "running_var")
        model.get_layer(bn).set_weights([arrays[f"{prefix}bn{number}.{n}"] for n in names])

    assign("stem_conv", "stem_bn", "", 1)
    for stage in (1, 2, 3):
        for block in range(depth // 6):
            ours, theirs = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}."
            for number in (1, 2):
                assign(f"{ours}_{number}_conv", f"{ours}_{number}_bn", theirs, number)
            if stage > 1 and block == 0:
                projection = model.get_layer(f"{ours}_shortcut_conv").kernel
                before, after = projection.shape[-2:]
                identity = np.eye(before, after, (after - before) // 2)
                projection.assign(identity[None, None])
                bn = model.get_layer(f"{ours}_shortcut_bn")
                bn.moving_variance.assign(np.full(after, 1 - bn.epsilon))
    logits = model.get_layer("logits")
    logits.set_weights([kernel[2](arrays["linear.weight"]), arrays["linear.bias"]])
    return model


def densenet(growth=12, blocks=12, input_shape=(32, 32, 3), classes=10):
    """DenseNet-40: three stages of 12 layers, each adding `growth` channels."""
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
    return _classifier(inputs, x, classes, f"densenet{3 * blocks + 4}")


def _bn_relu_conv(x, width, kernel, name):
    x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.Conv2D(width, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)


def vgg16(input_shape=(32, 32, 3), classes=10, scale=1.0):
    """VGG-16 with BatchNormalization for CIFAR: 13 convolutions and one hidden Dense layer."""
    inputs = x = keras.Input(input_shape, name="image")
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for stage, (width, count) in enumerate(stages, 1):
        for index in range(1, count + 1):
            x = _conv_bn(x, int(width * scale), name=f"stage{stage}_{index}")
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(int(512 * scale), activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="vgg16")


def mobilenet(input_shape=(32, 32, 3), classes=10, alpha=1.0):
    """MobileNet-V1: depthwise and pointwise convolutions; strides for small images."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, int(32 * alpha), name="stem")
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strided = (2, 4, 6, 12)
    for index, width in enumerate(widths, 1):
        x = layers.DepthwiseConv2D(
            3,
            strides=2 if index in strided else 1,
            padding="same",
            use_bias=False,
            name=f"block{index}_depthwise",
        )(x)
        x = layers.BatchNormalization(epsilon=1e-5, name=f"block{index}_depthwise_bn")(x)
        x = layers.ReLU(name=f"block{index}_depthwise_relu")(x)
        x = _conv_bn(x, int(width * alpha), 1, name=f"block{index}")
    return _classifier(inputs, x, classes, "mobilenet")


def inception(input_shape=(32, 32, 3), classes=10, modules=3):
    """Modules of four branches (1x1, 3x3, double 3x3, pooling), concatenated."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 32, name="stem")
    for module in range(1, modules + 1):
        name = f"module{module}"
        a = _conv_bn(x, 16, 1, name=f"{name}_a")
        b = _conv_bn(_conv_bn(x, 16, 1, name=f"{name}_b1"), 24, name=f"{name}_b2")
        c = _conv_bn(_conv_bn(x, 8, 1, name=f"{name}_c1"), 16, name=f"{name}_c2")
        c = _conv_bn(c, 16, name=f"{name}_c3")
        d = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
        d = _conv_bn(d, 8, 1, name=f"{name}_d")
        x = layers.Concatenate(name=f"{name}_concat")([a, b, c, d])
        x = layers.MaxPooling2D(name=f"{name}_down")(x)
    return _classifier(inputs, x, classes, "inception")


def squeeze_excite(input_shape=(32, 32, 3), classes=10, widths=(16, 32, 64)):
    """Residual blocks whose branches are gated by squeeze-and-excite."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, widths[0], name="stem")
    for stage, width in enumerate(widths, 1):
        name, strides = f"stage{stage}", 1 if stage == 1 else 2
        y = _conv_bn(x, width, strides=strides, name=f"{name}_1")
        y = _conv_bn(y, width, name=f"{name}_2", activation=None)
        gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(y)
        gate = layers.Conv2D(width // 4, 1, activation="relu", name=f"{name}_reduce")(gate)
        gate = layers.Conv2D(width, 1, activation="sigmoid", name=f"{name}_expand")(gate)
        y = layers.Multiply(name=f"{name}_excite")([y, gate])
        if strides > 1:
            x = _conv_bn(x, width, 1, strides, name=f"{name}_shortcut", activation=None)
        x = layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
    return _classifier(inputs, x, classes, "squeeze_excite")


def _classifier(inputs, x, classes, name):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)
