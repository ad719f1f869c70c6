"""Keras masks reach every layer in walks as they do in the model, and what is masked counts
nowhere."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import randomise

import keras_nisp as kn
from keras_nisp.data.collecting import collect
from keras_nisp.importance.base import run
from keras_nisp.importance.final_response import collect_responses, find_final_responses

TOKENS = np.array([[1, 2, 0, 0], [3, 1, 2, 0], [1, 0, 0, 0], [4, 3, 2, 1]])
X = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32")
X[:3, 2:] = 0


def sequence(*steps):
    return keras.Sequential([keras.Input((4, 8)), *steps])


# What follows `Embedding(mask_zero=True)`. A keyword keeps Keras from noting the mask in the graph.
CHAINS = {
    "noted": lambda e: layers.LSTM(3)(layers.Dense(3)(e)),
    "not noted": lambda e: layers.LSTM(3)(layers.Dense(3)(e), training=False),
    "sum": lambda e: layers.LSTM(3)(layers.Add()([layers.Dense(8)(e), e]), training=False),
    "nested": lambda e: sequence(layers.LSTM(3))(e),
    "attention": lambda e: layers.LSTM(2)(layers.MultiHeadAttention(2, 3)(e, e), training=False),
    "taken off": lambda e: layers.LSTM(2)(
        layers.Add()([layers.MultiHeadAttention(1, 4)(e, e), e]), training=False
    ),
    "dot attention": lambda e: layers.GlobalAveragePooling1D()(
        layers.Attention()([layers.Dense(4)(e), layers.Dense(4)(e)])
    ),
    "bidirectional": lambda e: layers.LSTM(2)(
        layers.Bidirectional(layers.GRU(3, return_sequences=True))(e, training=False),
        training=False,
    ),
    "time distributed": lambda e: layers.LSTM(2)(
        layers.TimeDistributed(layers.Dense(3))(e, training=False), training=False
    ),
    "noted by time distributed": lambda e: layers.LSTM(2)(
        layers.TimeDistributed(layers.Dense(3))(layers.GRU(6, return_sequences=True)(e))
    ),
    "by name": lambda e: layers.LSTM(3)(
        layers.BatchNormalization()(inputs=layers.Dense(6)(inputs=e))
    ),
    "normalised": lambda e: layers.LSTM(3)(
        layers.LayerNormalization()(layers.Dense(6)(e)), training=False
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_walks_and_oracles_see_masks(chain):
    inputs = keras.Input((4,), dtype="int32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says of each nested model that it knows no masks
        hidden = CHAINS[chain](layers.Embedding(10, 8, mask_zero=True)(inputs))
        model = randomise(keras.Model(inputs, layers.Dense(2)(hidden)))
        channel_map, given = kn.trace(model), [tf.constant(TOKENS, tf.int32)]
        expected = np.asarray(model(TOKENS, training=False))
        plain = run(channel_map, given)
        copied = run(channel_map, given, lambda call, index, tensor: tf.identity(tensor))
        np.testing.assert_allclose(plain, expected, atol=1e-6)
        np.testing.assert_allclose(copied, expected, atol=1e-6)
        plan = kn.plan_pruning(model, kn.NISP(TOKENS), ratio=0.5)
        assert kn.verify(kn.rebuild(model, plan), model, plan, TOKENS).relative < 1e-5
        merging = kn.plan_merging(model, ratio=0.5, clustering="even")
        merged = kn.rebuild(model, merging, force=True, verbose=0)
        assert kn.verify(merged, model, merging, TOKENS).ok


def test_time_distributed_is_taken_apart_with_a_mask():
    """As much goes as without one: what it wraps is a layer like others."""

    def tagger(masked):
        inputs = keras.Input((4,), dtype="int32")
        x = layers.LSTM(16, return_sequences=True)(
            layers.Embedding(20, 8, mask_zero=masked)(inputs)
        )
        x = layers.TimeDistributed(layers.Dense(16, activation="relu"))(x)
        return keras.Model(inputs, layers.TimeDistributed(layers.Dense(5))(x))

    left = []
    for masked in (False, True):
        model = tagger(masked)
        left.append(kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0).count_params())
    assert left[0] == left[1] < 0.3 * model.count_params()


def test_time_distributed_gives_its_mask_to_what_takes_one(tmp_path, rng):
    """Steps inside of each time step; the mask is given by name, and to a `Dense` in vain."""
    inputs, mask = keras.Input((3, 5, 4)), keras.Input((3, 5), dtype="bool")
    x = layers.TimeDistributed(layers.LSTM(8))(layers.Dense(6)(inputs), mask=mask)
    x = layers.TimeDistributed(layers.Dense(4))(x, mask=keras.ops.any(mask, -1))
    x = layers.GlobalAveragePooling1D()(layers.Dense(6)(x))
    model = keras.Model([inputs, mask], layers.Dense(2)(x))
    data = [rng.normal(size=(8, 3, 5, 4)).astype("float32"), rng.random((8, 3, 5)) > 0.4]
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, data).ok
    assert small.count_params() < 0.5 * model.count_params()
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(loaded(data), small(data), atol=1e-6)
    everything = [data[0], np.ones_like(data[1])]
    assert np.abs(np.asarray(small(data)) - np.asarray(small(everything))).max() > 1e-3


def tagger(**settings):
    """Masked steps, a hidden layer, an output at each step."""
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.Masking(),
            layers.Dense(5, name="hidden", **settings),
            layers.Dense(1, use_bias=False, name="head"),
        ]
    )
    return randomise(model)


def test_taylor_by_hand():
    """Steps that are masked are not in the loss, and so not in scores."""
    model = tagger()
    y = np.random.default_rng(1).normal(size=(6, 4, 1))
    channel_map = kn.trace(model)
    hidden = np.asarray(X @ model.get_layer("hidden").kernel + model.get_layer("hidden").bias)
    head = model.get_layer("head").kernel.numpy()
    counts = np.any(X != 0, -1, keepdims=True)
    gradient = 2 * (hidden @ head - y) * counts / counts.sum() @ head.T
    expected = 6 * np.abs((gradient * hidden).sum(1)).mean(0)
    units = channel_map.creators[0].units
    for loss in ("mse", keras.losses.MeanSquaredError()):
        np.testing.assert_allclose(kn.Taylor((X, y), loss)(channel_map)[units], expected, rtol=1e-4)
    model.compile("sgd", "mse", jit_compile=False)
    np.testing.assert_allclose(kn.Taylor((X, y))(channel_map)[units], expected, rtol=1e-4)


def test_responses_are_means_over_the_steps_that_count():
    model = tagger(use_bias=True)
    channel_map = kn.trace(model)
    (final,) = find_final_responses(channel_map)
    units, responses = collect_responses(channel_map, final, collect(X, model).batches())
    hidden = X @ model.get_layer("hidden").kernel.numpy() + model.get_layer("hidden").bias.numpy()
    expected = np.stack([row[np.any(x != 0, -1)].mean(0) for row, x in zip(hidden, X, strict=True)])
    order = [channel_map.creators[0].units.tolist().index(unit) for unit in units]
    np.testing.assert_allclose(responses, expected[:, order], rtol=1e-4)


@pytest.mark.parametrize("keywords", [{}, {"training": False}, {"explicit": True}])
def test_batch_normalization_counts_what_training_counts(keywords):
    """Recalibration gives what training converges to."""
    inputs = keras.Input((4, 3))
    x = layers.Dense(5, name="hidden")(layers.Masking()(inputs))
    if keywords.pop("explicit", False):
        keywords = {"mask": keras.ops.any(keras.ops.not_equal(inputs, 0), -1)}
    x = layers.BatchNormalization(name="bn", momentum=0.5)(x, **keywords)
    model = randomise(keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x))))
    norm = model.get_layer("bn")
    kn.recalibrate(model, X)
    renewed = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    hidden = X @ model.get_layer("hidden").kernel.numpy() + model.get_layer("hidden").bias.numpy()
    hidden = hidden[np.any(X != 0, -1)]
    np.testing.assert_allclose(renewed[0], hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(renewed[1], hidden.var(0), rtol=1e-4)
    if "training" not in keywords:  # such a layer is never trained
        for _ in range(30):
            model(X, training=True)
        np.testing.assert_allclose(norm.moving_mean, renewed[0], atol=1e-4)
        np.testing.assert_allclose(norm.moving_variance, renewed[1], rtol=1e-3)


@pytest.mark.parametrize("compensate", ["mean", "linear"])
def test_compensation_fits_the_steps_that_count(compensate):
    """What masked steps hold, however large, changes nothing."""
    results = []
    for padding in (0.0, 100.0):
        keras.utils.set_random_seed(0)
        model = randomise(
            keras.Sequential(
                [
                    keras.Input((4,), dtype="int32"),
                    layers.Embedding(5, 3, mask_zero=True, name="tokens"),
                    layers.Dense(8, activation="relu"),
                    layers.Dense(6, name="reader"),
                    layers.GlobalAveragePooling1D(),
                ]
            )
        )
        table = model.get_layer("tokens").embeddings
        table.assign(np.concatenate([np.full((1, 3), padding), table[1:]]))
        plan = kn.plan_pruning(model, kn.Random(), ratio=0.4, exclude="tokens")
        small = kn.recalibrate(kn.rebuild(model, plan), TOKENS, model, plan, compensate=compensate)
        results.append(np.concatenate([w.ravel() for w in small.get_layer("reader").get_weights()]))
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
