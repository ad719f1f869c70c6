"""Every family of layers and operations between two others, against the oracle."""

import functools
import inspect
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from marked import slow
from nets import example_inputs, random_plan, randomise

import keras_nisp as kn
from keras_nisp.surgery.rebuilding import rebuild_traced
from keras_nisp.surgery.verification import verify_traced

EXACT = 1e-5
FUNCTIONS = [getattr(keras.activations, name) for name in ("relu", "relu6", "gelu", "tanh")]
SHAPES = {"sequence": (6, 5), "image": (7, 6, 3), "vector": (9,), "volume": (4, 5, 6, 2)}


def lstm_with_states(x):
    y, h, c = layers.LSTM(6, return_state=True, name="encoder")(x)
    y = layers.RepeatVector(4)(y)
    y = layers.LSTM(6, return_sequences=True, name="decoder")(y, initial_state=[h, c])
    return y + layers.Dense(6)(x)[:, :4]


def stacked_cells(x):
    cells = [layers.LSTMCell(6), layers.GRUCell(7), layers.SimpleRNNCell(5)]
    return layers.RNN(cells, return_sequences=True)(x)


def attention_of_two(x):
    return layers.MultiHeadAttention(3, 4, value_dim=5, name="attention")(
        layers.Dense(7)(x), layers.Dense(8)(x), layers.Dense(6)(x)
    )


def gated_attention(x):
    if "use_gate" not in inspect.signature(layers.MultiHeadAttention).parameters:
        pytest.skip("an older Keras")
    return layers.GroupQueryAttention(4, 4, 2, use_gate=True)(
        layers.MultiHeadAttention(2, 4, value_dim=5, use_gate=True)(x, x), layers.Dense(6)(x)
    )


def attention_by_hand(x):
    query, key, value = (layers.Dense(8, name=name)(x) for name in "qkv")
    heads = [ops.reshape(t, (-1, 6, 2, 4)) for t in (query, key, value)]
    query, key, value = (ops.transpose(t, (0, 2, 1, 3)) for t in heads)
    logits = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 2.0
    y = ops.matmul(ops.softmax(logits), value)
    return ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, 6, 8))


def queries_in_front(x, take_apart):
    """Queries, keys and values from one kernel, moved before the batch axis, as timm's ViT does."""
    y = ops.reshape(layers.Dense(24, name="qkv")(x), (-1, 6, 3, 2, 4))
    query, key, value = take_apart(ops.transpose(y, (2, 0, 3, 1, 4)))
    logits = ops.matmul(query * 0.5, ops.transpose(key, (0, 1, 3, 2)))
    y = ops.matmul(ops.softmax(logits), value)
    return ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, 6, 8))


def weighted_in_front(x):
    """Instances, stacked before the batch axis, and weights that add up to 1 over them."""
    embedded = [layers.Dense(5, activation="tanh")(x[:, i]) for i in range(3)]
    weights = ops.softmax(ops.stack([layers.Dense(1)(y) for y in embedded]), axis=0)
    return ops.mean(ops.stack([weights[i] * y for i, y in enumerate(embedded)]), axis=0)


def mixer(x):
    """A layer along the tokens: channels pass, each alone."""
    y = layers.Dense(5, name="tokens")(ops.transpose(layers.LayerNormalization()(x), (0, 2, 1)))
    y = layers.Dense(6, name="tokens_back")(ops.gelu(y))
    return x + ops.transpose(y, (0, 2, 1))


def windows(x):
    """Window partition, a shift, and back, as in Swin."""
    x = layers.Conv2D(6, 1, padding="same")(x)[:, :6, :6]
    x = ops.roll(x, (-1, -1), axis=(1, 2))
    x = ops.reshape(x, (-1, 2, 3, 2, 3, 6))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 9, 6))
    x = layers.Dense(4, name="inside")(x)
    x = ops.reshape(x, (-1, 2, 2, 3, 3, 4))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 6, 6, 4))


def shuffle(x):
    """Grouped convolution and channel shuffle, as in ShuffleNet."""
    x = layers.Conv2D(12, 1, groups=3, name="grouped")(layers.Conv2D(12, 1)(x))
    x = ops.reshape(x, (-1, 7, 6, 3, 4))
    x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 7, 6, 12))
    return layers.Conv2D(9, 1, groups=3, name="regrouped")(x)


def ghost(x):
    x = layers.Conv2D(6, 1, name="primary")(x)
    x = ops.concatenate([x, layers.DepthwiseConv2D(3, padding="same")(x)], axis=-1)
    return x[..., :9]


def zero_padded_shortcut(x):
    """ResNet's shortcut without parameters: striding, then channels of zeros."""
    x = layers.Conv2D(4, 3, padding="same", name="narrow")(x)
    y = layers.Conv2D(8, 3, strides=2, padding="same", name="wide")(x)
    return ops.relu(y + ops.pad(x[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [2, 2]]))


def spatial_attention(x):
    x = layers.Conv2D(8, 1)(x)
    maps = ops.concatenate([ops.mean(x, -1, keepdims=True), ops.max(x, -1, keepdims=True)], -1)
    return x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(maps)


def inner_model(x):
    y = inputs = keras.Input(x.shape[2:])
    y = layers.Dense(6, activation="relu")(y)
    inner = keras.Model(inputs, layers.BatchNormalization()(layers.Dense(5)(y)), name="inner")
    return layers.TimeDistributed(inner)(x)


def masked_words(x):
    tokens = ops.cast(ops.abs(x[..., 0]) * 3, "int32")
    y = layers.Embedding(12, 8, mask_zero=True)(tokens)
    y = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(y)
    return layers.GRU(6)(y)


def cross(x):
    y, z = layers.Dense(6)(x), layers.Dense(6)(x)
    return layers.Dot(axes=(2, 2))([y, z])


CASES = {
    "lstm": ("sequence", lambda x: layers.LSTM(6)(x)),
    "gru": ("sequence", lambda x: layers.GRU(6, return_sequences=True)(x)),
    "gru, reset before": ("sequence", lambda x: layers.GRU(6, reset_after=False)(x)),
    "simple rnn": ("sequence", lambda x: layers.SimpleRNN(6, go_backwards=True)(x)),
    "lstm without bias": ("sequence", lambda x: layers.LSTM(6, use_bias=False)(x)),
    "rnn of a cell": ("sequence", lambda x: layers.RNN(layers.GRUCell(6))(x)),
    "stacked cells": ("sequence", stacked_cells),
    "encoder and decoder": ("sequence", lstm_with_states),
    "bidirectional": ("sequence", lambda x: layers.Bidirectional(layers.LSTM(5))(x)),
    "bidirectional, sum": (
        "sequence",
        lambda x: layers.Bidirectional(layers.GRU(5, return_sequences=True), merge_mode="sum")(x),
    ),
    "conv lstm": (
        "volume",
        lambda x: layers.ConvLSTM2D(5, 3, padding="same", return_sequences=True)(x),
    ),
    "conv lstm 1d": ("image", lambda x: layers.ConvLSTM1D(5, 2, strides=2)(x)),
    "embedding with a mask": ("sequence", masked_words),
    "time distributed": ("image", lambda x: layers.TimeDistributed(layers.Conv1D(5, 2))(x)),
    "time distributed model": ("image", inner_model),
    "attention": ("sequence", attention_of_two),
    "self attention": (
        "sequence",
        lambda x: x + layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True),
    ),
    "attention over an image": (
        "image",
        lambda x: layers.MultiHeadAttention(2, 3, attention_axes=(1, 2), output_shape=7)(x, x),
    ),
    "grouped query attention": (
        "sequence",
        lambda x: layers.GroupQueryAttention(4, 6, 3)(layers.Dense(8)(x), layers.Dense(8)(x)),
    ),
    "gated attention": ("sequence", gated_attention),
    "attention by hand": ("sequence", attention_by_hand),
    "dot attention": (
        "sequence",
        lambda x: layers.Attention(use_scale=True)([layers.Dense(6)(x), layers.Dense(6)(x), x]),
    ),
    "concat attention": (
        "sequence",
        lambda x: layers.Attention(score_mode="concat")([layers.Dense(6)(x), layers.Dense(6)(x)]),
    ),
    "additive attention": (
        "sequence",
        lambda x: layers.AdditiveAttention()([layers.Dense(6)(x), layers.Dense(6)(x), x]),
    ),
    "dot product attention": (
        "sequence",
        lambda x: ops.dot_product_attention(
            *(ops.expand_dims(layers.Dense(6)(x), 2) for _ in range(3)), scale=0.4
        ),
    ),
    "einsum dense": (
        "sequence",
        lambda x: layers.EinsumDense("abc,cd->abd", (6, 7), bias_axes="d")(x),
    ),
    "einsum dense, heads": (
        "sequence",
        lambda x: layers.EinsumDense("...hd,hdo->...o", 7, bias_axes="o")(
            layers.EinsumDense("...c,chd->...hd", (2, 4), bias_axes="hd")(x)
        ),
    ),
    "einsum dense, bias of a head": (
        "sequence",
        lambda x: layers.EinsumDense("abc,chd->abhd", (6, 2, 8), bias_axes="h")(x),
    ),
    "functions of activations": (
        "image",
        lambda x: sum(f(layers.Conv2D(6, 1)(x)) for f in FUNCTIONS),
    ),
    "settings": (
        "image",
        lambda x: ops.clip(layers.Conv2D(6, 1)(x), -1, 1) + ops.full_like(x[..., :1], 2.0),
    ),
    "einsum": (
        "sequence",
        lambda x: ops.einsum("btc,bsc->bts", layers.Dense(6)(x), layers.Dense(6)(x)),
    ),
    "einsum with a constant": (
        "sequence",
        lambda x: ops.einsum("btc,cd->btd", layers.Dense(6)(x), np.eye(6, 4, 1, "float32")),
    ),
    "dot": ("sequence", cross),
    "dot, normalised": (
        "vector",
        lambda x: layers.Dot(1, normalize=True)([layers.Dense(6)(x), layers.Dense(6)(x)]),
    ),
    "unit norm": ("sequence", lambda x: layers.UnitNormalization()(layers.Dense(6)(x))),
    "rms norm": ("sequence", lambda x: layers.RMSNormalization()(layers.Dense(6)(x))),
    "layer norm": (
        "image",
        lambda x: layers.LayerNormalization(axis=[1, 2, 3])(layers.Conv2D(6, 1)(x)),
    ),
    "group norm": ("image", lambda x: layers.GroupNormalization(3)(layers.Conv2D(12, 1)(x))),
    "instance norm": ("image", lambda x: layers.GroupNormalization(-1)(layers.Conv2D(6, 1)(x))),
    "spectral norm": ("image", lambda x: layers.SpectralNormalization(layers.Conv2D(6, 3))(x)),
    "prelu": ("image", lambda x: layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(6, 1)(x))),
    "prelu of positions": ("image", lambda x: layers.PReLU()(layers.Conv2D(6, 1)(x))),
    "softmax": ("image", lambda x: layers.Softmax()(layers.Conv2D(6, 1)(x))),
    "softmax over positions": ("sequence", lambda x: layers.Softmax(axis=1)(layers.Dense(6)(x))),
    "rescaling": ("image", lambda x: layers.Rescaling([1.0, 2, 3, 4], 0.5)(layers.Conv2D(4, 1)(x))),
    "rescaling by arrays": (
        "image",
        lambda x: layers.Rescaling(np.arange(1.0, 5), np.ones(4))(layers.Conv2D(4, 1)(x)),
    ),
    "resizing": ("image", lambda x: layers.Resizing(5, 9)(layers.Conv2D(6, 1)(x))),
    "augmentation": ("image", lambda x: layers.RandomRotation(0.1)(layers.Conv2D(6, 1)(x))),
    "adaptive pooling": (
        "image",
        lambda x: layers.AdaptiveMaxPooling2D(2)(layers.AdaptiveAveragePooling2D(4)(x)),
    ),
    "pooling operations": (
        "image",
        lambda x: ops.max_pool(ops.average_pool(layers.Conv2D(6, 1)(x), 2, 1), (2, 2)),
    ),
    "constant factor": (
        "image",
        lambda x: (
            layers.Conv2D(4, 1)(x) * np.arange(4.0, dtype="float32") + np.ones((4,), "float32")
        ),
    ),
    "constant of positions": (
        "sequence",
        lambda x: (
            layers.Dense(4)(x) + np.random.default_rng(0).normal(size=(1, 6, 4)).astype("float32")
        ),
    ),
    "where": ("image", lambda x: ops.where(x[..., :1] > 0, layers.Conv2D(4, 1)(x), 0.5)),
    "take": ("image", lambda x: ops.take(layers.Conv2D(6, 1)(x), [5, 0, 2, 2], axis=-1)),
    "one channel": ("image", lambda x: layers.Conv2D(6, 1)(x)[..., 2] * 2.0),
    "split": (
        "image",
        lambda x: sum(f * t for f, t in enumerate(ops.split(layers.Conv2D(9, 1)(x), 3, -1))),
    ),
    "split, uneven": (
        "image",
        lambda x: ops.concatenate(ops.split(layers.Conv2D(9, 1)(x), [2, 5], -1)[::-1], -1),
    ),
    "flip": ("image", lambda x: ops.flip(layers.Conv2D(6, 1)(x), -1) + layers.Conv2D(6, 1)(x)),
    "stack": ("sequence", lambda x: ops.stack([layers.Dense(4)(x), layers.Dense(4)(x)], -1)),
    "tile and repeat": (
        "sequence",
        lambda x: ops.repeat(ops.tile(layers.Dense(4)(x), (1, 2, 2)), 2, -1),
    ),
    "repeat vector": ("vector", lambda x: layers.RepeatVector(3)(layers.Dense(5)(x))),
    "pixel shuffle": ("image", lambda x: ops.depth_to_space(layers.Conv2D(12, 1)(x), 2)),
    "space to depth": (
        "image",
        lambda x: ops.space_to_depth(layers.Conv2D(5, 2, padding="same")(x)[:, :6], 2),
    ),
    "queries in front": ("sequence", lambda x: queries_in_front(x, lambda y: (y[0], y[1], y[2]))),
    "queries in front, unstacked": ("sequence", lambda x: queries_in_front(x, ops.unstack)),
    "queries in front, split": (
        "sequence",
        lambda x: queries_in_front(x, lambda y: [ops.squeeze(t, 0) for t in ops.split(y, 3)]),
    ),
    "weighted in front": ("sequence", weighted_in_front),
    "mixer": ("sequence", mixer),
    "moveaxis": ("image", lambda x: ops.moveaxis(layers.Conv2D(5, 1)(x), -1, 1)),
    "sum over channels": ("image", lambda x: ops.sum(layers.Conv2D(5, 1)(x), -1)),
    "reductions": ("image", lambda x: ops.std(ops.max(layers.Conv2D(5, 1)(x), 1, True), (1, 2))),
    "global pooling by hand": ("image", lambda x: ops.mean(layers.Conv2D(5, 1)(x), (1, 2))),
    "windows": ("image", windows),
    "shuffle": ("image", shuffle),
    "ghost": ("image", ghost),
    "zero-padded shortcut": ("image", zero_padded_shortcut),
    "spatial attention": ("image", spatial_attention),
}
# Layers whose channels stay: one gate for many channels, what meets positions.
HELD = {"spatial attention": 1, "weighted in front": 3, "mixer": 1}
INEXACT = {
    "mixer",
    *("rms norm", "layer norm", "group norm", "unit norm", "softmax", "spatial attention"),
    "dot, normalised",
}


@functools.cache  # tests leave it as it is, and train a copy
def between(name):
    """A model with a layer before and behind the case."""
    kind, function = CASES[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPES[kind])
    x = layers.Dense(6 if name != "adaptive pooling" else 5, activation="tanh", name="before")(
        inputs
    )
    try:
        x = function(x)
    except AttributeError as error:  # an older Keras
        pytest.skip(str(error))
    x = layers.Dense(4, name="behind")(x)
    outputs = layers.Dense(3, name="head")(layers.Flatten()(x))
    return randomise(keras.Model(inputs, outputs, name="between"))


@pytest.mark.parametrize("name", CASES)
def test_removal(name, tmp_path):
    model = between(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = random_plan(model, 1)
    small = kn.rebuild(model, plan)
    result = kn.verify(small, model, plan, tolerance=EXACT)
    assert result.ok, result
    assert bool(plan.inexact) == (name in INEXACT)
    assert small.count_params() == plan.after.parameters < plan.before.parameters
    assert kn.profile(small).total == plan.after
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    x = example_inputs(model)
    np.testing.assert_array_equal(small(x, training=False), loaded(x, training=False))
    free = [kn.trace(net).free for net in (small, loaded)]
    np.testing.assert_array_equal(*free)  # arguments come back as lists, and hold no more


@pytest.mark.parametrize("name", CASES)
def test_channels_are_free(name):
    """What a rule follows can be removed: only the head is held as a whole, and what is listed."""
    model = between(name)
    plan = random_plan(model)
    held = {row.layer: row.reasons for row in plan.creators if row.group < 0}
    assert len(held) == 1 + HELD.get(name, 0), held


@pytest.mark.parametrize("name", CASES)
def test_importance_passes(name):
    """NISP gives a finite score to all that may be removed."""
    model = between(name)
    channel_map = kn.trace(model)
    scores = kn.NISP(example_inputs(model, 16))(channel_map)
    for group in channel_map.groups:
        assert np.isfinite(scores[group.units]).all(), channel_map.creators[group.creators[0]].layer


@pytest.mark.parametrize("name", CASES)
def test_merge(name):
    """Channels whose cluster is at its mean become one."""
    model = between(name)
    plan = kn.plan_merging(model, ratio=0.5, clustering="even")
    channel_map = plan.trace(model)
    unit_map = plan.unit_map(channel_map)
    small = rebuild_traced(channel_map, unit_map)
    result = verify_traced(channel_map, unit_map, small, tolerance=EXACT)
    assert result.ok, result
    assert small.count_params() == plan.after.parameters < plan.before.parameters


@pytest.mark.parametrize(
    "name", ["lstm", "self attention", "shuffle", slow("bidirectional"), slow("windows")]
)
def test_masked_training_ends_in_the_pruned_model(name):
    model = between.__wrapped__(name)
    x, y = example_inputs(model, 32), np.zeros((32, 3))
    model.compile("adam", "mse", run_eagerly=True)
    pruner = kn.NISPPruner(x, ratio=0.4, verbose=0)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[pruner])
    expected = model(x, training=False)
    np.testing.assert_allclose(pruner.pruned_model(x, training=False), expected, atol=1e-5)
    assert pruner.pruned_model.count_params() < model.count_params()


def resnext_block():
    inputs = keras.Input((7, 6, 3))
    x = layers.Conv2D(12, 1, name="reduce")(inputs)
    x = layers.Conv2D(18, 3, groups=6, padding="same", activation="relu", name="grouped")(x)
    x = layers.Conv2D(5, 1, name="expand")(x)
    return randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


@pytest.mark.parametrize("merge", [False, True])
def test_whole_groups(merge, tmp_path):
    model, settings = resnext_block(), {"whole_groups": "grouped", "exclude": "expand"}
    if merge:
        plan = kn.plan_merging(model, ratio=0.5, clustering="even", **settings)
    else:
        plan = kn.plan_pruning(model, kn.NISP(example_inputs(model)), ratio=0.5, **settings)
    plan.save(tmp_path / "plan.json")
    plan = kn.Plan.load(tmp_path / "plan.json")
    small = kn.rebuild(model, plan, force=True, verbose=0)
    grouped = small.get_layer("grouped")
    assert (grouped.groups, grouped.filters) == (3, 9)
    assert small.get_layer("reduce").filters == 6
    assert kn.verify(small, model, plan, tolerance=EXACT).ok
    assert small.count_params() == plan.after.parameters


def test_groups_lose_as_many_channels_by_default():
    model = resnext_block()
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, exclude="expand", verbose=0)
    grouped = small.get_layer("grouped")
    assert (grouped.groups, grouped.kernel.shape[-2:]) == (6, (1, 12))


def test_whole_groups_must_name_a_grouped_convolution():
    with pytest.raises(ValueError, match=r"whole_groups.*grouped convolution"):
        kn.plan_pruning(resnext_block(), kn.Random(), ratio=0.5, whole_groups="reduce")


def test_heads_alone():
    """Channels that no tensor shows have names for `ratios` and `widths`."""
    model = between("self attention")
    name = next(layer.name for layer in model.layers if "attention" in layer.name)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratios={f"{name}:heads": 0.5})
    layer = kn.rebuild(model, plan).get_layer(name)
    assert (layer.num_heads, layer.key_dim, layer.value_dim) == (1, 3, 3)
    plan = kn.plan_pruning(model, kn.Magnitude(), widths={f"{name}:key": 1})
    small = kn.rebuild(model, plan)
    assert small.get_layer(name).key_dim == 1
    assert kn.verify(small, model, plan, tolerance=EXACT).ok


@pytest.mark.parametrize("name", ["time distributed", "windows", "embedding with a mask"])
def test_responses_of_folded_positions_and_masks(name):
    """Importances and clusterings that look at data take positions as those of their sample."""
    model = between(name)
    x = example_inputs(model, 16)
    for importance in (
        *(kn.LayerByLayer(x), kn.Taylor((x, np.zeros((16, 3))), loss="mse")),
        *(kn.LRP(x), kn.SynFlow(), kn.OptimalBrainSurgeon(x)),
    ):
        plan = kn.plan_pruning(model, importance, ratio=0.5)
        assert plan.params_reduction > 0
    plan = kn.plan_merging(model, ratio=0.5, clustering="activations", calibration=x)
    small = kn.rebuild(model, plan, force=True, verbose=0)
    assert kn.verify(small, model, plan, tolerance=EXACT).ok


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "attention", "split", "constant factor"])
def test_widening_with_copies(name):
    model = between(name)
    wide = kn.widen(model, 2, init="preserve")
    x = example_inputs(model)
    np.testing.assert_allclose(wide(x), model(x), atol=1e-5)
    assert wide.count_params() > 2 * model.count_params()


@pytest.mark.parametrize(("name", "message"), [("dot", "adds up"), ("shuffle", "another way")])
def test_widening_that_cannot_preserve(name, message):
    with pytest.raises(ValueError, match=message):
        kn.widen(between(name), 2, init="preserve")
    assert kn.widen(between(name), 2).count_params() > 0


def test_stateful_lstm():
    inputs = keras.Input(batch_shape=(2, 6, 5))
    x = layers.LSTM(6, stateful=True, return_sequences=True)(layers.Dense(6)(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    plan = random_plan(model)
    small = kn.rebuild(model, plan)
    x = example_inputs(model, 2)
    first, second = small(x), small(x)
    assert np.abs(first - second).max() > 1e-6
    for layer in small.layers:
        if isinstance(layer, layers.RNN):
            assert layer.units < 6
            layer.reset_state()
    np.testing.assert_allclose(small(x), first, atol=1e-6)


def test_settings_for_each_channel_hold_them():
    inputs = keras.Input((5,))
    x = ops.clip(layers.Dense(4)(inputs), np.zeros(4, "float32"), np.arange(4, dtype="float32"))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x)))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert [row.kept for row in plan.creators] == [4, 3, 2]
    assert "a setting for each element" in plan.creators[0].reasons[0]


def test_costs_count_positions_in_the_batch_axis():
    """A layer for each time step costs what the same layer along the sequence costs."""
    folded = keras.Sequential(
        [keras.Input((6, 5)), layers.TimeDistributed(layers.Dense(4, name="inner"))]
    )
    along = keras.Sequential([keras.Input((6, 5)), layers.Dense(4)])
    received = [kn.profile(model).layers for model in (folded, along)]
    (inner,) = [cost for path, cost in received[0].items() if path.endswith("inner")]
    assert inner.flops == next(iter(received[1].values())).flops == 6 * 5 * 4
    assert inner.memory == next(iter(received[1].values())).memory == 6 * 4 * 4
