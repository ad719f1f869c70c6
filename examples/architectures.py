"""Architectures beyond plain image classifiers, small and in plain Keras."""

import keras
import numpy as np
from keras import layers, ops


def vision_transformer(
    input_shape=(32, 32, 3), classes=10, patch=4, width=64, heads=4, mlp=128, blocks=4
):
    """ViT with learned positions, and a mean over all tokens in place of a class token.

    Args:
        input_shape: of an image; height and width are multiples of `patch`.
        classes: number of classes.
        patch: height and width of a patch.
        width: channels of a token.
        heads: of each attention; a head has `width // heads` channels.
        mlp: hidden channels of each MLP.
        blocks: number of blocks.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(image)
    count = x.shape[1] * x.shape[2]
    x = layers.Reshape((count, width), name="tokens")(x)
    # One pixel of each patch gives the shape: an Embedding of constants alone is in no graph.
    places = ops.zeros_like(image[:, ::patch, ::patch, 0], dtype="int32")
    places = ops.reshape(places, (-1, count)) + np.arange(count)
    positions = layers.Embedding(count, width, name="positions")(places)
    x = layers.Add(name="embedded")([x, positions])
    for block in range(blocks):
        x = _transformer_block(x, heads, mlp, f"block{block}")
    x = layers.LayerNormalization(epsilon=1e-6, name="last_norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="vision_transformer")


def language_model(vocabulary=256, length=128, width=128, heads=4, mlp=512, blocks=4):
    """A decoder that predicts each next token from those before it: a small GPT-2.

    Args:
        vocabulary: number of tokens.
        length: tokens in a text.
        width: channels of a token.
        heads: of each attention; a head has `width // heads` channels.
        mlp: hidden channels of each MLP.
        blocks: number of blocks.
    """
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = layers.Embedding(vocabulary, width, name="embedding")(tokens)
    places = ops.zeros_like(tokens) + np.arange(length)
    x = layers.Add(name="embedded")([x, layers.Embedding(length, width, name="positions")(places)])
    for block in range(blocks):
        x = _transformer_block(x, heads, mlp, f"block{block}", causal=True)
    x = layers.LayerNormalization(epsilon=1e-6, name="last_norm")(x)
    return keras.Model(tokens, layers.Dense(vocabulary, name="logits")(x), name="language_model")


def _transformer_block(x, heads, mlp, name, causal=False):
    width = x.shape[-1]
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(
        y, y, use_causal_mask=causal
    )
    x = layers.Add(name=f"{name}_add1")([x, y])
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm2")(x)
    y = layers.Dense(mlp, activation="gelu", name=f"{name}_mlp")(y)
    y = layers.Dense(width, name=f"{name}_project")(y)
    return layers.Add(name=f"{name}_add2")([x, y])


def text_classifier(vocabulary=10_000, length=100, classes=2, width=64, units=64):
    """A bidirectional and a plain LSTM over words; word 0 is padding and masked.

    Args:
        vocabulary: number of words, the padding included.
        length: words in a text, or `None`.
        classes: number of classes.
        width: channels of a word.
        units: of each LSTM and of the hidden layer.
    """
    words = keras.Input((length,), dtype="int32", name="words")
    x = layers.Embedding(vocabulary, width, mask_zero=True, name="embedding")(words)
    x = layers.Bidirectional(layers.LSTM(units, return_sequences=True), name="both_ways")(x)
    x = layers.LSTM(units, name="lstm")(x)
    x = layers.Dense(units, activation="relu", name="hidden")(x)
    return keras.Model(words, layers.Dense(classes, name="logits")(x), name="text_classifier")


def unet(input_shape=(64, 64, 3), classes=2, width=16, depth=3):
    """U-Net: what comes down is concatenated to what goes up.

    Args:
        input_shape: of an image; height and width are multiples of `2**depth`.
        classes: channels of the map of logits.
        width: channels at full size; twice as many at half of it, and so on.
        depth: how many times the size is halved.
    """
    image = x = keras.Input(input_shape, name="image")
    skips = []
    for level in range(depth):
        skips.append(_double_conv(x, width * 2**level, f"down{level}"))
        x = layers.MaxPooling2D(name=f"down{level}_pool")(skips[-1])
    x = _double_conv(x, width * 2**depth, "bottom")
    for level in reversed(range(depth)):
        name = f"up{level}"
        up = layers.Conv2DTranspose(width * 2**level, 2, strides=2, name=f"{name}_transpose")
        x = layers.Concatenate(name=f"{name}_skip")([skips[level], up(x)])
        x = _double_conv(x, width * 2**level, name)
    return keras.Model(image, layers.Conv2D(classes, 1, name="logits")(x), name="unet")


def _double_conv(x, width, name):
    return _conv(_conv(x, width, name=f"{name}_1"), width, name=f"{name}_2")


def _conv(x, width, kernel=3, strides=1, groups=1, name=None, activation="relu"):
    """Convolution, BatchNormalization and activation, for images, sequences and volumes."""
    convolution = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[len(x.shape) - 2]
    settings = {"padding": "same", "use_bias": False, "name": f"{name}_conv"}
    x = convolution(width, kernel, strides, groups=groups, **settings)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def detector(input_shape=(64, 64, 3), metadata=4, classes=3, width=32, anchors=3):
    """Scores and boxes for the anchors of three levels of a feature pyramid.

    A vector of metadata (of the camera, say) gates the last feature map. The heads are the same
    layers at each level.

    Args:
        input_shape: of an image; height and width are multiples of 16.
        metadata: length of the vector.
        classes: number of classes.
        width: channels of the pyramid; the backbone has up to four times as many.
        anchors: for each position of a level.

    Returns:
        A model with inputs `image` and `metadata` and outputs `scores` and `boxes`.
    """
    image = x = keras.Input(input_shape, name="image")
    vector = keras.Input((metadata,), name="metadata")
    x, stages = _conv(x, width // 2, strides=2, name="stem"), []
    for stage in range(3):
        x = _conv(x, width * 2**stage, strides=2, name=f"stage{stage}")
        stages.append(x)
    gate = layers.Dense(x.shape[-1], activation="sigmoid", name="gate")(vector)
    gate = layers.Reshape((1, 1, x.shape[-1]), name="gate_map")(gate)
    stages[-1] = layers.Multiply(name="gated")([x, gate])
    levels = _feature_pyramid(stages, width)
    outputs = {
        "scores": _head(levels, width, anchors, classes, "scores"),
        "boxes": _head(levels, width, anchors, 4, "boxes"),
    }
    return keras.Model({"image": image, "metadata": vector}, outputs, name="detector")


def _feature_pyramid(stages, width):
    """Coarse features are added to finer ones, from the last stage down."""
    levels = [layers.Conv2D(width, 1, name=f"lateral{i}")(x) for i, x in enumerate(stages)]
    for i in reversed(range(len(levels) - 1)):
        above = layers.UpSampling2D(name=f"above{i}")(levels[i + 1])
        levels[i] = layers.Add(name=f"merged{i}")([levels[i], above])
    return [_conv(x, width, name=f"level{i}") for i, x in enumerate(levels)]


def _head(levels, width, anchors, values, name):
    """`values` for each anchor of all levels, by the same two convolutions."""
    hidden = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"{name}_hidden")
    output = layers.Conv2D(anchors * values, 3, padding="same", name=f"{name}_output")
    flat = layers.Reshape((-1, values), name=f"{name}_flat")
    return layers.Concatenate(1, name=name)([flat(output(hidden(level))) for level in levels])


def shufflenet(input_shape=(32, 32, 3), classes=10, width=72, groups=3, blocks=2, stages=2):
    """ShuffleNet-V1: grouped 1x1 convolutions, between which channels change their group.

    Args:
        input_shape: of an image.
        classes: number of classes.
        width: channels of the first stage, then twice as many. For channels between the grouped
            convolutions to be removable it is `4 * groups**2` times 2 or more: a shuffle then
            sends several whole columns of channels to each group, else it couples them all.
        groups: of the grouped convolutions.
        blocks: in each stage.
        stages: each halves the size.
    """
    image = keras.Input(input_shape, name="image")
    x = _conv(image, width // 2, name="stem")
    for stage in range(stages):
        x = _conv(x, width * 2**stage, strides=2, name=f"stage{stage}")
        for block in range(blocks):
            x = _shuffle_block(x, groups, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="shufflenet")


def _shuffle_block(x, groups, name):
    height, breadth, width = x.shape[1:]
    y = _conv(x, width // 4, 1, groups=groups, name=f"{name}_reduce")
    y = ops.reshape(y, (-1, height, breadth, groups, width // 4 // groups))
    y = ops.transpose(y, (0, 1, 2, 4, 3))
    y = ops.reshape(y, (-1, height, breadth, width // 4))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.BatchNormalization(name=f"{name}_depthwise_bn")(y)
    y = _conv(y, width, 1, groups=groups, name=f"{name}_expand", activation=None)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def volume_cnn(input_shape=(32, 32, 32, 1), classes=2, width=16, stages=3):
    """A 3D network for scans or videos, with a residual block in each stage."""
    volume = x = keras.Input(input_shape, name="volume")
    for stage in range(stages):
        x = _conv(x, width * 2**stage, name=f"stage{stage}_1")
        y = _conv(x, width * 2**stage, name=f"stage{stage}_2", activation=None)
        x = layers.ReLU(name=f"stage{stage}_relu")(layers.Add(name=f"stage{stage}_add")([x, y]))
        x = layers.MaxPooling3D(padding="same", name=f"stage{stage}_pool")(x)
    x = layers.GlobalAveragePooling3D(name="pool")(x)
    return keras.Model(volume, layers.Dense(classes, name="logits")(x), name="volume_cnn")


def audio_cnn(length=8000, classes=10, width=32, stages=4):
    """A 1D network for waveforms: wide strided filters first, then separable convolutions."""
    wave = keras.Input((length, 1), name="wave")
    x = _conv(wave, width, 80, 4, name="stem")
    for stage in range(stages):
        name, settings = f"stage{stage}", {"padding": "same", "use_bias": False}
        x = layers.SeparableConv1D(width * 2**stage, 9, name=f"{name}_conv", **settings)(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.LeakyReLU(0.1, name=f"{name}_relu")(x)
        x = layers.MaxPooling1D(4, padding="same", name=f"{name}_pool")(x)
    mean = layers.GlobalAveragePooling1D(name="mean")(x)
    largest = layers.GlobalMaxPooling1D(name="largest")(x)
    x = layers.Dropout(0.2, name="dropout")(layers.Concatenate(name="pool")([mean, largest]))
    return keras.Model(wave, layers.Dense(classes, name="logits")(x), name="audio_cnn")


def transfer_learning(input_shape=(96, 96, 3), classes=5, alpha=1.0, weights=None):
    """A network of `keras.applications` inside a Sequential, with a classifier of its own."""
    base = keras.applications.MobileNetV2(input_shape, alpha, include_top=False, weights=weights)
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            layers.Rescaling(1 / 127.5, offset=-1, name="rescaling"),
            layers.RandomFlip("horizontal", name="flip"),
            base,
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(classes, name="logits"),
        ],
        name="transfer_learning",
    )
