"""OptimalBrainSurgeon against least squares, and what it does where they are approximate."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers
from nets import randomise

import keras_nisp as kn

EXACT = {"ridge": 1e-10}


def units_of(channel_map, path):
    (creator,) = [c for c in channel_map.creators if c.layer == path]
    return creator.units


def correlated(count=200, width=6, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 3)) @ rng.normal(size=(3, width))
    return (mixed + 0.5 * rng.normal(size=(count, width)) + 1).astype("float32")


def reading(*readers, width=6):
    """A layer that passes its input on, and what reads it."""
    inputs = keras.Input((width,))
    x = layers.Dense(width, use_bias=False, name="wide")(inputs)
    model = randomise(keras.Model(inputs, [reader(x) for reader in readers]))
    model.get_layer("wide").kernel.assign(np.eye(width))
    return model


def share_lost(x, kernel, gone, constant):
    """What the best kernel on the other channels leaves of a kernel's outputs."""
    if constant:
        x = x - x.mean(0)
    x = x.astype(np.float64)
    outputs, rest = x @ kernel, np.delete(x, gone, 1)
    fitted = rest @ np.linalg.lstsq(rest, outputs, rcond=None)[0]
    return ((outputs - fitted) ** 2).sum() / (outputs**2).sum()


@pytest.mark.parametrize("bias", [True, False])
def test_scores_are_errors_of_least_squares(bias):
    """The first score is the least error of all channels; each is that of all gone so far."""
    x = correlated()
    model = reading(
        layers.Dense(4, use_bias=bias, name="one"), layers.Dense(2, use_bias=bias, name="two")
    )
    kernels = [np.asarray(model.get_layer(name).kernel) for name in ("one", "two")]
    channel_map = kn.trace(model)
    scores = kn.OptimalBrainSurgeon(x, **EXACT)(channel_map)[units_of(channel_map, "wide")]

    def lost(gone):
        return sum(share_lost(x, kernel, list(gone), bias) for kernel in kernels)

    order = np.argsort(scores)
    for count in range(1, len(order)):
        before, gone = order[: count - 1], order[:count]
        errors = [lost([*before, i]) for i in range(len(order)) if i not in before]
        np.testing.assert_allclose(scores[gone[-1]], min(errors), rtol=1e-5)
        np.testing.assert_allclose(scores[gone[-1]], lost(gone), rtol=1e-5)
    np.testing.assert_allclose(scores.max(), 2, rtol=1e-5)  # of two readers, all is gone


def test_one_of_two_that_are_alike_is_free():
    x = correlated()
    x[:, 4] = x[:, 1]
    channel_map = kn.trace(reading(layers.Dense(3, name="head")))
    scores = kn.OptimalBrainSurgeon(x, ridge=1e-6)(channel_map)[units_of(channel_map, "wide")]
    free, other = sorted([scores[1], scores[4]])
    assert free == scores.min() < 1e-5
    assert other > 0.01
    assert scores[scores != free].min() > 1e-3


def test_dead_and_constant_channels_are_free():
    x = correlated()
    x[:, 2], x[:, 3] = 0, 7  # whose mean a bias holds
    for bias, free in ((True, [2, 3]), (False, [2])):
        channel_map = kn.trace(reading(layers.Dense(3, use_bias=bias, name="head")))
        scores = kn.OptimalBrainSurgeon(x)(channel_map)[units_of(channel_map, "wide")]
        assert np.flatnonzero(scores == 0).tolist() == free
    model = reading(layers.Dense(3, name="head"))
    model.get_layer("head").kernel.assign(np.zeros((6, 3)))
    channel_map = kn.trace(model)
    assert (kn.OptimalBrainSurgeon(x)(channel_map)[units_of(channel_map, "wide")] == 0).all()


def test_batch_normalization_weighs_the_outputs():
    """What it multiplies by zero does not count, and it takes up the constant."""
    x = correlated()
    model = reading(lambda x: layers.BatchNormalization(name="bn")(layers.Dense(3, name="r")(x)))
    model.get_layer("bn").gamma.assign([0.0, -2, 0])
    variance = np.asarray(model.get_layer("bn").moving_variance)
    assert variance.std() > 0
    channel_map = kn.trace(model)
    scores = kn.OptimalBrainSurgeon(x, **EXACT)(channel_map)[units_of(channel_map, "wide")]
    kernel = np.asarray(model.get_layer("r").kernel)[:, 1:2]
    first = np.argmin(scores)
    expected = [share_lost(x, kernel, [i], True) for i in range(6)]
    np.testing.assert_allclose(scores[first], min(expected), rtol=1e-4)
    assert first == np.argmin(expected)


def convolved(data_format, groups=1):
    first = data_format == "channels_first"
    inputs = keras.Input((3, 5, 7) if first else (5, 7, 3))
    settings = {"data_format": data_format, "padding": "same"}
    x = layers.Conv2D(8, 3, activation="relu", name="a", **settings)(inputs)
    x = layers.Conv2D(6, 3, activation="relu", name="b", groups=groups, **settings)(x)
    if first:
        x = layers.Permute((2, 3, 1))(x)
    x = layers.Flatten()(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def test_channels_first():
    x = np.random.default_rng(0).normal(size=(20, 5, 7, 3)).astype("float32")
    last, first = convolved("channels_last"), convolved("channels_first")
    first.set_weights(last.get_weights())
    for importance in (kn.OptimalBrainSurgeon, kn.LRP, lambda _: kn.SynFlow()):
        scores = [
            np.concatenate([importance(data)(c)[units_of(c, layer)] for layer in "ab"])
            for c, data in ((kn.trace(last), x), (kn.trace(first), x.transpose(0, 3, 1, 2)))
        ]
        np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-6)


def test_a_kernel_of_several_taps():
    """Second moments of the channels, for each tap: here each position has the same."""
    x = correlated(width=8)
    inputs = keras.Input((5, 8))
    hidden = layers.Dense(8, use_bias=False, name="wide")(inputs)
    outputs = layers.Conv1D(3, 3, name="reader")(hidden)
    flat = layers.Dense(2, name="flat")(layers.Flatten()(hidden))
    x = np.repeat(x[:, None], 5, 1)
    for output, taps in ((outputs, 3), (flat, 5)):
        model = randomise(keras.Model(inputs, output))
        model.get_layer("wide").kernel.assign(np.eye(8))
        channel_map = kn.trace(model)
        scores = kn.OptimalBrainSurgeon(x, **EXACT)(channel_map)[units_of(channel_map, "wide")]
        kernel = np.asarray(model.layers[-1].kernel).reshape(taps, 8, -1)
        kernel = np.concatenate(list(kernel), 1)  # as if each tap had outputs of its own
        expected = min(share_lost(x[:, 0], kernel, [i], True) for i in range(8))
        np.testing.assert_allclose(scores.min(), expected, rtol=1e-4)


def test_a_layer_that_is_called_twice():
    """It reads the values of both calls."""
    left, right = keras.Input((6,)), keras.Input((6,))
    wide, head = layers.Dense(6, use_bias=False, name="wide"), layers.Dense(3, name="head")
    model = randomise(
        keras.Model([left, right], layers.Add()([head(wide(left)), head(wide(right))]))
    )
    wide.kernel.assign(np.eye(6))
    x, y = correlated(seed=1), correlated(seed=2)
    channel_map = kn.trace(model)
    scores = kn.OptimalBrainSurgeon([x, y], **EXACT)(channel_map)[units_of(channel_map, "wide")]
    both, kernel = np.concatenate([x, y]), np.asarray(head.kernel)
    expected = min(share_lost(both, kernel, [i], True) for i in range(6))
    np.testing.assert_allclose(scores.min(), expected, rtol=1e-4)


def test_masked_steps_do_not_count():
    x = correlated().reshape(40, 5, 6)
    counted = x[:, :3].reshape(-1, 6)
    x[:, 3:] = 0
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            layers.Masking(),
            layers.Dense(6, use_bias=False, name="wide"),
            layers.Dense(3, name="head"),
        ]
    )
    randomise(model)
    model.get_layer("wide").kernel.assign(np.eye(6))
    channel_map = kn.trace(model)
    scores = kn.OptimalBrainSurgeon(x, **EXACT)(channel_map)[units_of(channel_map, "wide")]
    kernel = np.asarray(model.get_layer("head").kernel)
    expected = min(share_lost(counted, kernel, [i], True) for i in range(6))
    np.testing.assert_allclose(scores.min(), expected, rtol=1e-4)


def test_wide_groups_in_batches():
    """Several channels at a time: each score is still the error of all that are gone by then, and
    of two that are alike only one is free."""
    width = 520
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3000, 40)) @ rng.normal(size=(40, width))).astype("float32")
    x += rng.normal(size=x.shape).astype("float32")
    x[:, :3] = x[:, 3:6]
    channel_map = kn.trace(reading(layers.Dense(5, name="head"), width=width))
    importance = kn.OptimalBrainSurgeon(x, 1e-6, max_samples=3000)
    scores = importance(channel_map)[units_of(channel_map, "wide")]
    kernel, order = np.asarray(channel_map.model.get_layer("head").kernel), np.argsort(scores)
    assert set(order[:3] % 3) == {0, 1, 2}
    assert (np.sort(order[:3]) < 6).all()
    for count in (4, 5, 9, 100, 500):
        expected = share_lost(x, kernel, order[:count], True)
        np.testing.assert_allclose(scores[order[count - 1]], expected, rtol=1e-2)


ENDINGS = {
    "attention": lambda x: layers.MultiHeadAttention(2, 4, name="end")(x, x),
    "grouped queries": lambda x: layers.GroupQueryAttention(4, 4, 2, name="end")(x, x),
    "GRU": lambda x: layers.GRU(6, name="end")(x),
    "both directions": lambda x: layers.Bidirectional(layers.LSTM(4))(x),
    "dot": lambda x: layers.Dot(-1)([x, layers.Dense(8)(x)]),
    "additive": lambda x: layers.AdditiveAttention(name="end")([x, x]),
    "separable": lambda x: layers.SeparableConv1D(5, 3, name="end")(x),
    "concatenated": lambda x: layers.Concatenate()(
        [layers.Flatten()(x), layers.GlobalMaxPooling1D()(layers.Dense(3)(x))]
    ),
}


@pytest.mark.parametrize("name", [*ENDINGS])
@pytest.mark.parametrize("importance", [kn.OptimalBrainSurgeon, kn.LRP])
def test_layers_that_read_in_other_ways(name, importance):
    inputs = keras.Input((6, 3))
    x = layers.Dense(8, activation="relu", name="wide")(inputs)
    x = layers.Flatten()(ENDINGS[name](x))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    data = np.random.default_rng(0).normal(size=(40, 6, 3)).astype("float32")
    channel_map = kn.trace(model)
    scores = importance(data)(channel_map)
    for group in channel_map.groups:
        assert np.isfinite(scores[group.units]).all()
        assert np.ptp(scores[group.units]) > 0 or len(group.units) == 1
    plan = kn.plan_pruning(model, importance(data), ratio=0.4)
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    """Sums over many positions stay finite, and scores are nearly those of float32."""
    x = np.random.default_rng(0).uniform(1, 2, (4, 64, 64, 2)).astype("float32")
    scores = {}
    for policy in ("float32", dtype):
        model = keras.Sequential(
            [
                keras.Input((64, 64, 2)),
                layers.Conv2D(6, 3, activation="relu", name="a", dtype=policy),
                layers.BatchNormalization(dtype=policy),
                layers.Conv2D(3, 1, name="b", dtype=policy),
                layers.GlobalAveragePooling2D(dtype="float32"),
            ]
        )
        randomise(model)
        rng = np.random.default_rng(0)
        for layer in (model.layers[0], model.layers[2]):
            layer.kernel.assign(rng.normal(size=layer.kernel.shape))
        channel_map = kn.trace(model)
        scores[policy] = [
            importance(channel_map)[units_of(channel_map, "a")]
            for importance in (kn.OptimalBrainSurgeon(x, 0.1), kn.LRP(x), kn.SynFlow())
        ]
    for found, expected in itertools.zip_longest(scores[dtype], scores["float32"]):
        np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.01 * expected.max())


@pytest.mark.parametrize("importance", [kn.OptimalBrainSurgeon, kn.LRP])
def test_bad_data(importance):
    model = reading(layers.Dense(3, name="head"))
    with pytest.raises((TypeError, ValueError), match=r"calibration|data|samples"):
        kn.plan_pruning(model, importance(None), ratio=0.5)
    model.get_layer("wide").kernel.assign(np.eye(6) * 1e30)
    x = np.full((4, 6), 1e30, "float32")
    with pytest.raises(ValueError, match=r"NaN or infinity.*overflow"):
        kn.plan_pruning(model, importance(x), ratio=0.5)
    with pytest.raises(ValueError, match="`ridge`"):
        kn.OptimalBrainSurgeon(x, ridge=0)
