"""Small networks, one for each thing that can happen to channels, and their oracle."""

import keras
import numpy as np
from keras import layers

import keras_nisp as kn


def plain():
    return keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="a"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2, padding="same"),
            layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False, name="b"),
            layers.BatchNormalization(scale=False),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="gelu", name="c"),
            layers.Dense(5, name="head"),
        ],
        name="plain",
    )


def residual():
    x = inputs = keras.Input((11, 11, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    for i in range(2):
        y = layers.BatchNormalization()(x)
        y = layers.ReLU()(y)
        y = layers.Conv2D(6, 3, padding="same", name=f"inner{i}")(y)
        y = layers.Conv2D(8, 1, name=f"outer{i}")(y)
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x), name="residual")


def branches():
    """Inception: concatenation, then a sum that couples it."""
    inputs = keras.Input((10, 10, 3))
    a = layers.Conv2D(4, 1, name="a")(inputs)
    b = layers.Conv2D(6, 3, padding="same", name="b")(inputs)
    c = layers.MaxPooling2D(3, 1, padding="same")(inputs)
    x = layers.Concatenate()([a, b, c])
    y = layers.Conv2D(13, 3, padding="same", name="d")(x)
    x = layers.ReLU()(x + y)
    x = layers.AveragePooling2D(3, 2, padding="same")(x)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, layers.Dense(4)(x), name="branches")


def squeeze_excite():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="expand")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(4, 1, activation="silu", name="squeeze")(s)
    s = layers.Conv2D(16, 1, activation="sigmoid", name="excite")(s)
    x = layers.Multiply()([x, s])
    x = layers.Conv2D(6, 1, name="project")(x)
    gate = layers.Conv2D(1, 1, activation="hard_sigmoid", name="spatial_gate")(x)
    x = layers.Multiply()([x, gate])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="squeeze_excite")


def grouped():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, name="a")(inputs)
    x = layers.Conv2D(18, 3, groups=3, padding="same", name="grouped")(x)
    x = layers.Conv2D(36, 3, groups=18, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2, name="separable")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="grouped")


def transposed():
    """A decoder: dense features reshaped to a map, skip connection, upsampling."""
    inputs = keras.Input((12,))
    x = layers.Dense(4 * 4 * 6, name="project")(inputs)
    x = skip = layers.Reshape((4, 4, 6))(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="up1")(x)
    x = layers.ELU()(x)
    x = layers.Concatenate()([x, layers.UpSampling2D(2)(skip)])
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Cropping2D(((1, 0), (0, 1)))(x)
    x = layers.Conv2D(5, 3, name="mix")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="image")(x), name="transposed")


def nested():
    """A shared nested model with pruned inputs, in a larger one, with two inputs and outputs."""
    part_inputs = keras.Input((None, None, 6))
    y = layers.Conv2D(6, 3, padding="same", name="conv")(part_inputs)
    y = layers.Add()([part_inputs, layers.BatchNormalization(name="bn")(y)])
    part = keras.Model(part_inputs, y, name="part")
    tail = keras.Sequential([layers.Conv2D(7, 1, name="conv"), layers.ReLU()], name="tail")
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((6, 6, 1), name="right")
    a = part(layers.Conv2D(6, 3, name="a")(left))
    b = part(layers.Conv2D(6, 1, name="b")(right))
    x = tail(layers.Add(name="both")([a, b]))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = {"one": layers.Dense(3, name="one")(x), "two": layers.Dense(2, name="two")(x)}
    return keras.Model({"left": left, "right": right}, outputs, name="nested")


def shared():
    """One layer called twice, on different channels."""
    inputs = keras.Input((7, 7, 2))
    a, b = layers.Conv2D(5, 1, name="a")(inputs), layers.Conv2D(5, 3, padding="same")(inputs)
    conv = layers.Conv2D(6, 3, name="twice")
    x = layers.Maximum()([conv(a), conv(b)])
    x = layers.Average()([x, layers.Conv2D(6, 3, name="c")(inputs)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="shared")


def layer_norm():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="a")(inputs)
    x = layers.LayerNormalization()(x)
    x = layers.Dense(12, activation="gelu", name="b")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="layer_norm")


def channels_first():
    inputs = keras.Input((3, 20, 20))
    first = {"data_format": "channels_first"}
    x = layers.Conv2D(6, 3, padding="same", name="a", **first)(inputs)
    x = layers.BatchNormalization(axis=1)(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="dw", **first)(x)
    y = layers.Conv2D(6, 1, name="b", **first)(y)
    x = layers.Concatenate(axis=1)([layers.Add()([x, y]), inputs])
    x = layers.MaxPooling2D(2, **first)(x)
    x = layers.Conv2D(5, 1, name="c", **first)(x)
    y = layers.GlobalAveragePooling2D(**first)(x)
    x = layers.Flatten(**first)(x)
    x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Dense(3)(x), name="channels_first")


def one_dimensional():
    inputs = keras.Input((20, 4))
    x = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="relu", name="a")(inputs)
    x = layers.SeparableConv1D(6, 3, name="b")(x)
    x = layers.AveragePooling1D(2)(x)
    x = layers.Permute((2, 1))(x)
    x = layers.Permute((2, 1))(x)
    x = layers.Conv1DTranspose(5, 3, strides=2, name="c")(x)
    x = layers.GlobalMaxPooling1D()(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="one_dimensional")


def three_dimensional():
    inputs = keras.Input((5, 6, 5, 2))
    x = layers.Conv3D(6, 2, name="a")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling3D(2)(x)
    x = layers.Conv3D(4, 1, name="b")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3)(x), name="three_dimensional")


NETS = [
    plain,
    residual,
    branches,
    squeeze_excite,
    grouped,
    transposed,
    nested,
    shared,
    layer_norm,
    channels_first,
    one_dimensional,
    three_dimensional,
]


def saturating(scale, words=0):
    """Twenty layers; with large weights they are chaotic. It may look up the first of `words`."""
    rng = np.random.default_rng(1)
    x = inputs = keras.Input((1,), dtype="int32") if words else keras.Input((16,))
    if words:
        x = layers.Flatten()(layers.Embedding(words, 16)(x))
    for _ in range(20):
        x = layers.Dense(32, activation="tanh", use_bias=False)(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    for weight in model.weights:
        weight.assign(rng.normal(0, scale, weight.shape))
    return model


def randomise(model, seed=0):
    """Random weights and BatchNorm statistics: fresh ones are the identity and hide errors."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.rsplit("/", 1)[-1] in ("gamma", "moving_variance", "variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif len(weight.shape) == 1 or not np.any(weight):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights
    return model


def by_einsum(x, heads=2, size=3, width=4):
    """Attention as keras-hub writes it."""
    length = x.shape[1]
    query, key, value = (
        layers.EinsumDense("btm,mhc->bthc", (length, heads, size), bias_axes="hc", name=name)(x)
        for name in ("query", "key", "value")
    )
    scores = keras.ops.softmax(keras.ops.einsum("bqhc,bkhc->bhqk", query, key))
    x = keras.ops.einsum("bhqk,bkhc->bqhc", scores, value)
    output = layers.EinsumDense("bqhc,hcm->bqm", (length, width), bias_axes="m", name="output")
    return output(x, training=False)


def random_plan(model, seed=0, low=0.3, high=0.6, **kwargs):
    """A random share of every group, at random."""
    rng = np.random.default_rng(seed)
    channel_map = kn.trace(model, kwargs.get("input_shape"))
    ratios = {
        channel_map.creators[group.creators[0]].layer: float(rng.uniform(low, high))
        for group in channel_map.groups
    }
    return kn.plan_pruning(model, kn.Random(seed), ratios=ratios, **kwargs)


def example_inputs(model, count=4, seed=0):
    """Random inputs in the model's own structure."""
    rng = np.random.default_rng(seed)
    return keras.tree.map_structure(
        lambda t: rng.normal(size=(count, *(d or 8 for d in t.shape[1:]))).astype("float32"),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )
