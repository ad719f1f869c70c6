"""Kernels of attention, of recurrent layers and of separable convolutions are refitted."""

import keras
import numpy as np
import pytest
from keras import layers
from nets import by_einsum, example_inputs, randomise

import keras_nisp as kn
from keras_nisp.keras_graph import calling

TINY = 1e-9


def twice(weight, axis):
    """Every second channel along an axis becomes twice the one before."""
    value = np.moveaxis(weight.numpy(), axis, -1)
    value[..., 1::2] = 2 * value[..., ::2]
    weight.assign(np.moveaxis(value, -1, axis))


def every_second(*paths):
    """An importance by which every second channel of these creators goes."""

    def scores(channel_map):
        result = np.ones(channel_map.count)
        for creator in channel_map.creators:
            if creator.layer in paths:
                result[creator.units[1::2]] = 0
        return result

    return scores


def refitted(model, plan, x, **kwargs):
    """The small model before the repair and after."""
    small = kn.rebuild(model, plan)
    return small, kn.recalibrate(kn.rebuild(model, plan), x, model, plan, **kwargs)


def error(model, small, x):
    want, got = (np.asarray(net(x, training=False)) for net in (model, small))
    return ((want - got) ** 2).mean() / want.var()


def behind(layer, shape=(7, 3), width=6, ends=None):
    """A network in which a layer reads what `a` makes; every second channel of `a` is redundant."""
    inputs = keras.Input(shape)
    x = layers.Dense(width, name="a")(inputs)
    x = layer(x)
    outputs = layers.Dense(2, name="head")(x if ends is None else ends(x))
    model = randomise(keras.Model(inputs, outputs))
    for weight in model.get_layer("a").weights:
        twice(weight, -1)
    if hasattr(layer, "depthwise_kernel"):  # channels that are alike stay so
        kernel = layer.depthwise_kernel.numpy()
        kernel[..., 1::2, :] = kernel[..., ::2, :]
        layer.depthwise_kernel.assign(kernel)
    return model


def self_attention(kind, **settings):
    attention = kind(name="attention", **settings)
    return lambda x: attention(x, x)


READERS = {
    "einsum": lambda: by_einsum,
    "attention": lambda: self_attention(layers.MultiHeadAttention, num_heads=2, key_dim=3),
    "unbiased": lambda: self_attention(
        layers.MultiHeadAttention, num_heads=2, key_dim=3, use_bias=False
    ),
    "simple": lambda: layers.SimpleRNN(4, return_sequences=True),
    "lstm": lambda: layers.LSTM(4),
    "gru": lambda: layers.GRU(4),
    "old gru": lambda: layers.GRU(4, reset_after=False),
    "both ways": lambda: layers.Bidirectional(layers.LSTM(4)),
    "stacked": lambda: layers.RNN([layers.LSTMCell(4), layers.LSTMCell(3)]),
    "separable": lambda: layers.SeparableConv1D(4, 3, depth_multiplier=2),
}


@pytest.mark.parametrize("reader", READERS)
def test_redundant_channels_are_made_up_for_without_loss(reader):
    model = behind(READERS[reader]())
    x = example_inputs(model, 200)
    plan = kn.plan_pruning(model, every_second("a"), ratios={"a": 0.5})
    assert plan.creators[0].kept == 3
    before, after = refitted(model, plan, x, ridge=TINY)
    other = example_inputs(model, 100, seed=2)
    assert error(model, after, other) < 1e-7
    assert error(model, before, other) > 1e-3


@pytest.mark.parametrize("kind", ["grouped", "separable"])
def test_in_images(kind):
    settings = {"padding": "same", "strides": 2, "name": kind}
    layer = layers.Conv2D(6, 3, groups=2, **settings)
    if kind == "separable":
        layer = layers.SeparableConv2D(5, 3, **settings)
    model = behind(layer, (8, 8, 3), 8, layers.GlobalAveragePooling2D())
    x = example_inputs(model, 200)
    plan = kn.plan_pruning(model, every_second("a"), ratios={"a": 0.5})
    before, after = refitted(model, plan, x, ridge=TINY)
    other = example_inputs(model, 100, seed=2)
    assert error(model, after, other) < 1e-7
    assert error(model, before, other) > 1e-3


def test_queries_keys_and_values_of_different_tensors():
    """Each kernel is fitted on what it reads, however the call is written."""
    inputs = [keras.Input((5, 3)), keras.Input((7, 3)), keras.Input((7, 3))]
    q, v, k = (layers.Dense(6, name=n)(x) for n, x in zip("qvk", inputs, strict=True))
    seen = keras.ops.ones((5, 7), "bool")
    x = layers.MultiHeadAttention(2, 3, name="attention")(
        q, value=v, key=k, attention_mask=keras.ops.broadcast_to(seen, (1, 5, 7))
    )
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    for name in "qvk":
        for weight in model.get_layer(name).weights:
            twice(weight, -1)
    x = example_inputs(model, 200)
    plan = kn.plan_pruning(model, every_second(*"qvk"), ratios=dict.fromkeys("qvk", 0.5))
    before, after = refitted(model, plan, x, ridge=TINY)
    other = example_inputs(model, 100, seed=2)
    assert error(model, after, other) < 1e-7
    assert error(model, before, other) > 1e-3


def heads_alike():
    """Attention whose second head gives twice what the first one does."""
    inputs = keras.Input((7, 4))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    attention = model.get_layer("attention")
    for dense in (attention._query_dense, attention._key_dense, attention._value_dense):
        kernel, bias = dense.kernel.numpy(), dense.bias.numpy()
        kernel[:, 1], bias[1] = kernel[:, 0], bias[0]
        if dense is attention._value_dense:
            kernel[:, 1], bias[1] = 2 * kernel[:, 1], 2 * bias[1]
        dense.kernel.assign(kernel)
        dense.bias.assign(bias)
    return model


def test_a_head_of_einsum_is_made_up_for_by_another():
    inputs = keras.Input((7, 4))
    outputs = layers.Dense(2, name="head")(layers.ReLU()(by_einsum(inputs)))
    model = randomise(keras.Model(inputs, outputs))
    for name in ("query", "key", "value"):
        for weight in model.get_layer(name).weights:
            twice(weight, -2) if name == "value" else alike(weight)
    x, other = (example_inputs(model, 200, seed=seed) for seed in (1, 2))
    plan = kn.plan_pruning(model, every_second("query:heads"), ratios={"query:heads": 0.5})
    before, after = refitted(model, plan, x, ridge=TINY)
    assert after.get_layer("output").kernel.shape == (1, 3, 4)
    assert error(model, after, other) < 1e-7
    assert error(model, before, other) > 1e-3


def alike(weight):
    """The second head of a kernel or bias becomes the first one."""
    value = weight.numpy()
    value[..., 1, :] = value[..., 0, :]
    weight.assign(value)


def test_a_head_is_made_up_for_by_another():
    model = heads_alike()
    x, other = (example_inputs(model, 200, seed=seed) for seed in (1, 2))
    plan = kn.plan_pruning(model, every_second("attention:heads"), ratios={"attention:heads": 0.5})
    before, after = refitted(model, plan, x, ridge=TINY)
    assert after.get_layer("attention").num_heads == 1
    assert error(model, after, other) < 1e-7
    assert error(model, before, other) > 1e-3


@pytest.mark.parametrize(
    "attention",
    [
        lambda: layers.MultiHeadAttention(3, 4, name="attention"),
        lambda: layers.GroupQueryAttention(3, 4, 2, name="attention"),
    ],
    ids=["each its own", "in pairs"],
)
def test_output_projection_is_the_least_squares(attention):
    """Of heads and value channels that are left, on what all of them gave."""
    attention = attention()
    inputs = keras.Input((6, 5))
    model = randomise(keras.Model(inputs, attention(inputs, inputs)))
    x = example_inputs(model, 300)
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.4)
    _, small = refitted(model, plan, x, ridge=TINY)
    layer = small.get_layer("attention")
    read = []
    for batch in np.split(x, 3):
        got = calling.entering(layer._output_dense, layer, batch, batch)
        read.append(np.asarray(got, np.float64).reshape(-1, got.shape[-2] * got.shape[-1]))
    read = np.concatenate(read)
    given = np.hstack([read, np.ones((len(read), 1))])
    wanted = np.asarray(model(x, training=False)).reshape(len(read), -1)
    best = np.linalg.lstsq(given, wanted, rcond=None)[0]
    kernel = layer._output_dense.kernel.numpy().reshape(read.shape[1], -1)
    np.testing.assert_allclose(kernel, best[:-1], atol=2e-3)
    np.testing.assert_allclose(layer._output_dense.bias, best[-1], atol=2e-3)


@pytest.mark.parametrize("reader", ["attention", "lstm", "separable"])
def test_better_on_other_data(reader):
    inputs = keras.Input((7, 3))
    x = layers.Dense(16, activation="relu", name="a")(inputs)
    x = READERS[reader]()(x)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    x, other = (example_inputs(model, 400, seed=seed) for seed in (1, 2))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    before, after = refitted(model, plan, x)
    means = refitted(model, plan, x, compensate="mean")[1]
    losses = [error(model, small, other) for small in (after, means, before)]
    assert losses[0] < min(losses[1:])


def test_attention_that_is_called_twice_keeps_its_output_projection():
    inputs = keras.Input((7, 4))
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    x = attention(inputs, inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(attention(x, x))))
    x = example_inputs(model, 50)
    before, after = refitted(model, kn.plan_pruning(model, kn.Random(), ratio=0.4), x)
    kernels = [net.get_layer("attention")._output_dense.kernel for net in (before, after)]
    np.testing.assert_array_equal(*kernels)
    assert all(np.isfinite(weight.numpy()).all() for weight in after.weights)
