"""Layers that mix or add up channels leave out what is removed while a model trains.

The masked model is what `fit` evaluates: `pruned_model` has the loss of the last epoch.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_nisp as kn

DENSE = {"activation": "relu"}


def normalised(norm):
    def net():
        x = inputs = keras.Input((6,))
        x = norm()(layers.Dense(16, name="a", **DENSE)(x))
        x = layers.Dropout(0.2)(x)
        return inputs, layers.Dense(12, name="b", **DENSE)(x)

    return net


def by_hand():
    x = inputs = keras.Input((6,))
    x = layers.Dense(16, name="a")(x)
    x = x * ops.rsqrt(ops.mean(x * x, axis=-1, keepdims=True) + 1e-3)
    return inputs, layers.Dense(12, name="b", **DENSE)(x)


def channel_gate():
    """The largest and the mean channel make a gate (spatial attention)."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="a", **DENSE)(inputs)
    gate = [ops.max(x, axis=-1, keepdims=True), ops.mean(x, axis=-1, keepdims=True)]
    x = x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(ops.concatenate(gate, -1))
    return inputs, layers.GlobalAveragePooling2D()(x)


def distribution():
    """The expected value of a softmax over bins (DFL): a product with a constant."""
    inputs = keras.Input((6,))
    bins = ops.softmax(layers.Dense(16, name="a")(inputs), axis=-1)
    return inputs, layers.Dense(4)(ops.matmul(bins, ops.reshape(ops.arange(16.0), (16, 1))))


def siamese():
    """Euclidean distance, a cosine and a dot product of two embeddings by one layer."""
    inputs = keras.Input((6,))
    embed = layers.Dense(16, name="a", **DENSE)
    first, second = embed(inputs), embed(layers.Dense(6, name="other")(inputs))
    distance = ops.sqrt(ops.sum((first - second) ** 2, axis=-1, keepdims=True) + 1e-6)
    cosine = layers.Dot(-1, normalize=True)([first, second])
    return inputs, layers.Concatenate()([distance, cosine, layers.Dot(-1)([first, second])])


def transformer():
    x = inputs = keras.Input((5, 6))
    x = layers.Dense(16, name="a")(x)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 8, dropout=0.2, name="mha")(y, y)
    y = layers.RMSNormalization()(x)
    x = x + layers.Dense(16, name="up")(layers.Dense(24, name="b", activation="gelu")(y))
    y = layers.TimeDistributed(layers.LayerNormalization())(x)
    weights = layers.Attention(score_mode="dot")([y, y])
    return inputs, layers.GlobalAveragePooling1D()(weights)


def groups():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(12, 3, name="a")(x)
    x = layers.ReLU()(layers.GroupNormalization(3)(x))
    x = layers.Conv2D(8, 3, name="b")(x)
    x = layers.UnitNormalization()(layers.BatchNormalization(momentum=0.8)(x))
    return inputs, layers.GlobalAveragePooling2D()(x)


NETS = [
    normalised(layers.LayerNormalization),
    by_hand,
    channel_gate,
    distribution,
    siamese,
    transformer,
    groups,
]


def built(net, **kwargs):
    keras.utils.set_random_seed(4)
    inputs, features = net()
    model = keras.Model(inputs, layers.Dense(3, name="head")(features))
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        if "kernel" not in weight.path:
            weight.assign(weight + rng.normal(0, 0.2, weight.shape))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, **{"jit_compile": False, **kwargs})
    x = rng.normal(size=(40, *model.input_shape[1:])).astype("float32") + 0.3
    return model, x, rng.integers(0, 3, 40)


def fit(model, x, y, pruner, **kwargs):
    settings = {"epochs": 2, "batch_size": 8, "verbose": 0, "validation_data": (x, y)}
    return model.fit(x, y, callbacks=[pruner], **{**settings, **kwargs}).history["val_loss"][-1]


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__qualname__.split(".")[0])
def test_pruned_model_has_the_loss_of_the_masked_one(net):
    model, x, y = built(net)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.4, verbose=0)
    loss = fit(model, x, y, pruner)
    assert pruner.pruned_model.evaluate(x, y, 8, verbose=0) == pytest.approx(loss, rel=2e-5)
    assert any(row.removed for row in pruner.plan.creators)
    small = pruner.pruned_model
    np.testing.assert_allclose(model(x), small(x), atol=2e-5 * np.abs(small(x)).max())
    assert kn.verify(small, model, pruner.plan).ok
    assert kn.verify(kn.rebuild(model, pruner.plan), model, pruner.plan).ok
    pruner.release()
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_an_embedding_that_is_read_both_ways():
    """Its lookup adds up nothing, its product with the features does; both have one `call`."""
    inputs = keras.Input((5,), dtype="int32")
    embed = layers.ReversibleEmbedding(20, 16, name="items")
    x = layers.LayerNormalization()(layers.Dense(16, name="a", **DENSE)(embed(inputs)))
    model = keras.Model(inputs, embed(x, reverse=True))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).integers(0, 20, (40, 5))
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.4, verbose=0)
    loss = fit(model, x, x, pruner)
    assert pruner.pruned_model.evaluate(x, x, 8, verbose=0) == pytest.approx(loss, rel=2e-5)
    assert any(row.removed for row in pruner.plan.creators)
    np.testing.assert_allclose(model(x), pruner.pruned_model(x), atol=1e-4)


@pytest.mark.parametrize("on_inputs", [False, True])
def test_layer_on_different_channels_is_measured(on_inputs):
    """One softmax layer at two places has one `call` for both: what it does not hold is said, where
    one of the places has no channels that may go as well."""

    def net():
        inputs, softmax = keras.Input((8,)), layers.Softmax(name="both")
        heads = [softmax(layers.Dense(8, name="a")(inputs))]
        heads += [softmax(inputs if on_inputs else layers.Dense(8, name="b")(inputs))]
        return inputs, layers.Concatenate()(heads)

    model, x, y = built(net, run_eagerly=True)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5, verbose=0)
    with pytest.warns(UserWarning, match="'both' mixes channels.*differ by [0-9.e-]+ of their"):
        fit(model, x, y, pruner)
    own = built(net)[0]
    assert pruner.pruned_model.count_params() < own.count_params()


def test_what_the_model_itself_gives_afterwards(capsys):
    model, x, y = built(NETS[0], run_eagerly=True)
    fit(model, x, y, kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5))
    assert "does not: save `pruned_model`" in capsys.readouterr().out
