"""LRP and SynFlow against figures by hand, conservation and explicit gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import NETS, example_inputs, randomise

import keras_nisp as kn


def of_layer(channel_map, scores, path):
    (creator,) = [c for c in channel_map.creators if c.layer == path]
    return scores[creator.units]


def chain():
    """2 -> 3 -> 2 -> 2, without biases."""
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(3, activation="relu", use_bias=False, name="a"),
            layers.Dense(2, activation="relu", use_bias=False, name="b"),
            layers.Dense(2, use_bias=False, name="head"),
        ]
    )
    model.get_layer("a").kernel.assign([[1.0, -1, 2], [1, 0, -1]])
    model.get_layer("b").kernel.assign([[1.0, 1], [5, 5], [-1, 3]])
    model.get_layer("head").kernel.assign([[1.0, -2], [1, 4]])
    return model


def test_lrp_by_hand():
    """One sample: a = (2, 0, 1), b = (1, 5), outputs (6, 18): the second is predicted.

    Its relevance of 1 comes from |1 * -2| and |5 * 4|, in proportion; that of b's first unit from
    |2 * 1| and |1 * -1|, of its second from |2 * 1| and |1 * 3|.
    """
    channel_map = kn.trace(chain())
    scores = kn.LRP(np.array([[1.0, 1.0]]))(channel_map)
    b = np.array([2, 20]) / 22
    a = b[0] * np.array([2, 0, 1]) / 3 + b[1] * np.array([2, 0, 3]) / 5
    np.testing.assert_allclose(of_layer(channel_map, scores, "b"), b, rtol=1e-6)
    np.testing.assert_allclose(of_layer(channel_map, scores, "a"), a, rtol=1e-6)


def deep(bias=False, first_pool=layers.MaxPooling2D):
    """Convolutions, pooling and dense layers in a row."""
    settings = {"padding": "same", "activation": "relu", "use_bias": bias}
    return randomise(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(6, 3, name="a", **settings),
                first_pool(2),
                layers.Conv2D(5, 3, name="b", **settings),
                layers.AveragePooling2D(2),
                layers.Flatten(),
                layers.Dense(7, activation="relu", use_bias=bias, name="c"),
                layers.Dense(4, use_bias=bias, activation="softmax", name="head"),
            ]
        )
    )


def test_relevance_is_conserved():
    """In a row without biases each layer has all of it: 1."""
    channel_map = kn.trace(deep())
    scores = kn.LRP(example_inputs(channel_map.model, 100))(channel_map)
    for layer in ("a", "b", "c"):
        np.testing.assert_allclose(of_layer(channel_map, scores, layer).sum(), 1, rtol=1e-5)


def test_relevance_of_a_residual_block():
    """The stream and the branch share it as their values do."""
    inputs = keras.Input((4,))
    x = layers.Dense(4, use_bias=False, name="stem")(inputs)
    y = layers.Dense(3, activation="tanh", use_bias=False, name="inner")(x)
    y = layers.Dense(4, use_bias=False, name="outer")(y)
    head = layers.Dense(3, use_bias=False, name="head")
    model = randomise(keras.Model(inputs, head(layers.Add()([x, y]))))
    sample = np.random.default_rng(0).normal(size=(1, 4)).astype("float32")
    kernel = {layer.name: np.asarray(layer.kernel) for layer in model.layers if layer.weights}
    x = sample[0] @ kernel["stem"]
    t = np.tanh(x @ kernel["inner"])
    y = t @ kernel["outer"]
    best = np.argmax((x + y) @ kernel["head"])
    stream = np.abs((x + y) * kernel["head"][:, best])
    stream /= stream.sum()
    into_y = stream * np.abs(y) / (np.abs(x) + np.abs(y))

    def back(values, kernel, relevance):
        parts = np.abs(values[:, None] * kernel)
        return (parts / parts.sum(0)) @ relevance

    inner = back(t, kernel["outer"], into_y)
    branch = back(x, kernel["inner"], inner)
    channel_map = kn.trace(model)
    scores = kn.LRP(sample)(channel_map)
    np.testing.assert_allclose(of_layer(channel_map, scores, "inner"), inner, rtol=1e-4)
    np.testing.assert_allclose(of_layer(channel_map, scores, "stem"), stream + branch, rtol=1e-4)


def test_masked_steps_have_no_relevance():
    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    x[:, 3:] = 0
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.Masking(),
            layers.Dense(6, name="hidden"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4, name="head"),
        ]
    )
    randomise(model)
    short = keras.Sequential([keras.Input((3, 3)), *model.layers[1:]])
    channel_map, other = kn.trace(model), kn.trace(short)
    scores = of_layer(channel_map, kn.LRP(x)(channel_map), "hidden")
    np.testing.assert_allclose(
        scores, of_layer(other, kn.LRP(x[:, :3])(other), "hidden"), rtol=1e-5
    )


def linear_copy(model):
    """The network of the paper, built layer by layer: |weights|, no biases, no activations."""
    x = inputs = keras.Input(model.input_shape[1:])
    for layer in model.layers:
        config = {**layer.get_config(), "activation": None} if layer.weights else layer.get_config()
        if isinstance(layer, layers.Dense | layers.Conv2D):
            config["use_bias"] = False
        x = type(layer).from_config(config)(x)
    copy = keras.Model(inputs, x)
    for layer in copy.layers:
        if layer.weights:
            layer.kernel.assign(np.abs(model.get_layer(layer.name).kernel))
    return copy


def relative(values):
    return values / values.mean()


def test_synflow_is_the_gradient_on_absolute_weights():
    """All that reads a channel; where layers follow each other that is what makes it."""
    model = deep(bias=True, first_pool=layers.AveragePooling2D)
    copy = linear_copy(model)
    kernels = {name: copy.get_layer(name).kernel for name in ("a", "b", "c", "head")}
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(copy(tf.ones((1, 8, 8, 3))))
    gradients = tape.gradient(total, [kernel.value for kernel in kernels.values()])
    flow = {n: np.abs(g * kernels[n]) for n, g in zip(kernels, gradients, strict=True)}
    channel_map = kn.trace(model)
    scores = kn.SynFlow()(channel_map)
    for name, reader in (("a", "b"), ("c", "head")):
        read = np.moveaxis(flow[reader], -2, 0).reshape(flow[reader].shape[-2], -1).sum(1)
        made = flow[name].reshape(-1, flow[name].shape[-1]).sum(0)
        np.testing.assert_allclose(read, made, rtol=1e-4)
        found = of_layer(channel_map, scores, name)
        np.testing.assert_allclose(found, relative(read), rtol=1e-4)


def test_synflow_by_hand():
    """a passes (1 1 1) |W|: 2, 1 and 3; out of b leave 3 and 5 for each unit that enters."""
    channel_map = kn.trace(chain())
    scores = kn.SynFlow()(channel_map)
    passed, left = np.array([2, 1, 3]), np.array([1 * 3 + 1 * 5, 5 * 3 + 5 * 5, 1 * 3 + 3 * 5])
    np.testing.assert_allclose(of_layer(channel_map, scores, "a"), relative(passed * left))
    into_b = passed @ np.array([[1, 1], [5, 5], [1, 3]])
    np.testing.assert_allclose(of_layer(channel_map, scores, "b"), relative(into_b * [3, 5]))


def test_synflow_in_steps():
    """What feeds removed channels loses what it gave to them."""
    channel_map = kn.trace(chain())
    a, b = (creator.units for creator in channel_map.creators[:2])
    going = np.zeros(channel_map.count, bool)
    going[b[0]] = True
    scores = kn.SynFlow(steps=2).scores(channel_map, lambda scores: going)
    np.testing.assert_allclose(scores[a], relative(np.array([2 * 5, 1 * 25, 3 * 15])), rtol=1e-6)
    assert scores[b[0]] == 0 < scores[b[1]]
    for wrong in (0, 1.5, -1):
        with pytest.raises(ValueError, match="`steps`"):
            kn.SynFlow(wrong)


def test_no_overflow():
    """The flow is 1600 to the power of 100."""
    x = inputs = keras.Input((16,))
    for i in range(100):
        x = layers.Dense(16, use_bias=False, name=f"d{i}")(x)
    model = keras.Model(inputs, layers.Dense(2, name="d100")(x))
    rng = np.random.default_rng(0)
    for weight in model.weights[:-1]:
        weight.assign(rng.uniform(50, 150, weight.shape))
    kernels = [np.asarray(weight, np.float64) for weight in model.weights[:-1]]
    channel_map = kn.trace(model)
    scores = kn.SynFlow()(channel_map)
    for index in (0, 50, 99):
        passed, left = np.ones(16), np.ones(2)
        for kernel in kernels[: index + 1]:
            passed = passed @ kernel / 1600
        for kernel in kernels[:index:-1]:
            left = kernel @ left / 1600
        expected = relative(passed * left)
        np.testing.assert_allclose(of_layer(channel_map, scores, f"d{index}"), expected, rtol=1e-4)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["LRP", "SynFlow", "OptimalBrainSurgeon"])
def test_all_networks(net, name):
    model = randomise(net())
    importance = kn.SynFlow() if name == "SynFlow" else getattr(kn, name)(example_inputs(model, 16))
    channel_map = kn.trace(model)
    scores = importance(channel_map)
    assert all(np.isfinite(scores[group.units]).all() for group in channel_map.groups)
    assert (scores[channel_map.free] >= 0).all()
