"""Attention made of `EinsumDense` and operations: whole heads, groups of them, channels inside."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import randomise

import keras_nisp as kn

LENGTH, WIDTH, DIM = 7, 16, 4


def rotated(x):
    """Pairs of channels, turned by an angle that grows with the position."""
    angles = np.arange(LENGTH)[:, None] / 10.0 ** np.arange(DIM // 2)
    angles = np.concatenate([angles, angles], -1)[None, :, None].astype("float32")
    first, second = ops.split(x, 2, axis=-1)
    return x * np.cos(angles) + ops.concatenate([-second, first], -1) * np.sin(angles)


def scores_by_einsum(query, key, value, mask):
    scores = ops.einsum("bquh,bkuh->buqk", query, key) * DIM**-0.5
    scores = layers.Softmax()(ops.where(mask, scores, -1e9))
    return ops.einsum("buqk,bkuh->bquh", layers.Dropout(0.1)(scores), value)


def scores_by_matmul(query, key, value, mask):
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) - 9.0 * (1 - mask))
    return ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))


def fused(query, key, value, mask):
    return ops.dot_product_attention(query, key, value, mask=mask, scale=DIM**-0.5)


def grouped(query, key, value, mask):
    """Query heads, laid out by the key heads that they meet."""
    query = ops.reshape(query, (-1, LENGTH, 2, 2, DIM))
    scores = ops.softmax(ops.einsum("bqkgh,bskh->bkgqs", query, key))
    y = ops.einsum("bkgqs,bskh->bqkgh", scores, value)
    return ops.reshape(y, (-1, LENGTH, 4, DIM))


def alibi(query, key, value, mask):
    slopes = np.arange(1, 5, dtype="float32").reshape(1, 4, 1, 1)
    distance = np.arange(LENGTH, dtype="float32") * slopes
    scores = ops.softmax(ops.einsum("bquh,bkuh->buqk", query, key) - distance)
    return ops.einsum("buqk,bkuh->bquh", scores, value)


def block(
    x, attend=scores_by_einsum, pairs=4, turn=False, norm=False, flat=False, repeat=True, name=""
):
    def project(heads, part):
        shape = (LENGTH, heads, DIM)
        made = layers.EinsumDense("bqm,muh->bquh", shape, bias_axes="uh", name=f"{part}{name}")
        return made(x)

    query, key, value = project(4, "query"), project(pairs, "key"), project(pairs, "value")
    if norm:
        query, key = layers.RMSNormalization()(query), layers.RMSNormalization()(key)
    if turn:
        query, key = rotated(query), rotated(key)
    if repeat and pairs < 4:
        key, value = (ops.repeat(t, 4 // pairs, axis=2) for t in (key, value))
    mask = np.tril(np.ones((LENGTH, LENGTH)))[None, None]
    y = attend(query, key, value, mask if attend is scores_by_matmul else mask > 0)
    if flat:
        return layers.Dense(WIDTH, name="output")(ops.reshape(y, (-1, LENGTH, 4 * DIM)))
    return layers.EinsumDense(
        "bquh,uhm->bqm", (LENGTH, WIDTH), bias_axes="m", name=f"output{name}"
    )(y)


def network(**settings):
    inputs = keras.Input((LENGTH, 6))
    x = layers.Dense(WIDTH, name="stream")(inputs)
    x = x + block(layers.LayerNormalization()(x), **settings)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


@pytest.fixture
def data(rng):
    return rng.normal(size=(16, LENGTH, 6)).astype("float32")


FORMS = {
    "einsum": {},
    "matmul": {"attend": scores_by_matmul},
    "fused": {"attend": fused},
    "repeated": {"pairs": 2},
    "repeated, turned": {"pairs": 2, "turn": True},
    "turned, fused": {"turn": True, "attend": fused},
    "fused groups": {"pairs": 2, "attend": fused},
    "reshaped groups": {"pairs": 2, "attend": grouped, "repeat": False},
    "alibi": {"attend": alibi},
    "normalised": {"norm": True},
    "flat": {"flat": True},
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_heads_and_channels_inside_of_them_go(settings, data):
    model = network(**settings)
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    kept = {row.layer: row.kept for row in plan.creators}
    pairs = settings.get("pairs", 4)
    assert kept["query:heads"] == 2
    assert kept["key:heads"] == kept["value:heads"] == pairs // 2
    assert kept["query"] == kept["key"] == kept["value"] == 2
    scores = [score for group in plan.groups for score in group.scores]
    assert np.isfinite(scores).all()
    assert min(scores) >= 0
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, data, tolerance=1e-5).ok
    assert small.count_params() == plan.after.parameters


def test_groups_of_heads_go_as_a_whole(data):
    model = network(pairs=2)
    channel_map = kn.trace(model)
    heads = {c.layer: c.units for c in channel_map.creators if c.layer.endswith(":heads")}
    np.testing.assert_array_equal(heads["query:heads"], np.repeat(heads["key:heads"], 2))
    np.testing.assert_array_equal(heads["key:heads"], heads["value:heads"])


def test_pairs_of_channels_that_are_turned_go_together():
    for turn, wanted in ((False, DIM), (True, DIM // 2)):
        key = next(c.units for c in kn.trace(network(turn=turn)).creators if c.layer == "key")
        assert len(np.unique(key)) == wanted


def test_heads_stay_where_they_meet_positions(data):
    inputs = keras.Input((LENGTH, 6))
    x = layers.EinsumDense("bqm,muh->bquh", (LENGTH, 4, 8), name="made")(inputs)
    x = layers.Conv2D(5, 1)(x)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    kept = {row.layer: row.kept for row in plan.creators}
    assert (kept["made:heads"], kept["made"]) == (4, 4)
    assert "works along another axis" in plan.explain("made:heads")
    assert kn.verify(kn.rebuild(model, plan), model, plan, data, tolerance=1e-5).ok


def test_what_serves_heads_and_meets_the_channels_inside_of_them():
    """Angles of positions hold no channels: heads may go, what is inside of them may not."""
    inputs, positions = keras.Input((LENGTH, WIDTH)), keras.Input((LENGTH, 2), dtype="int32")
    x = layers.EinsumDense("btc,chd->bthd", (None, 4, DIM), name="heads")(inputs)
    rows = ops.cast(positions[..., 0], "float32")
    angles = ops.einsum("bt,d->btd", rows, 0.1 ** np.arange(DIM))
    x = x * ops.expand_dims(ops.cos(angles), 2)
    model = keras.Model(
        [inputs, positions], layers.EinsumDense("bthd,hdo->bto", (None, 3), name="out")(x)
    )
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert small.get_layer("heads").kernel.shape == (WIDTH, 2, DIM)
    assert kn.verify(small, model, plan).ok


def test_kernels_of_their_own_for_each_head(data):
    inputs = keras.Input((LENGTH, 6))
    x = layers.EinsumDense("bqm,muh->bquh", (LENGTH, 4, 8), name="made")(inputs)
    x = layers.EinsumDense("bquh,uho->bquo", (LENGTH, 4, 5), bias_axes="uo", name="each")(x)
    x = layers.EinsumDense("bquo,uom->bqm", (LENGTH, 9), name="output")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert small.get_layer("each").kernel.shape == (2, 4, 3)
    assert kn.verify(small, model, plan, data, tolerance=1e-5).ok


IMPORTANCES = [kn.Magnitude, kn.SynFlow, kn.Random, kn.LRP, kn.Taylor, kn.OptimalBrainSurgeon]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_other_importances_score_heads(importance, data, rng):
    model = network(pairs=2, attend=fused)
    if importance in (kn.LRP, kn.OptimalBrainSurgeon):
        importance = importance(data)
    elif importance is kn.Taylor:
        importance = importance((data, rng.normal(size=(16, LENGTH, 3))), loss="mse")
    else:
        importance = importance()
    plan = kn.plan_pruning(model, importance, ratio=0.5)
    assert {row.layer: row.kept for row in plan.creators}["key:heads"] == 1
    assert kn.verify(kn.rebuild(model, plan), model, plan, data, tolerance=1e-5).ok


@pytest.mark.parametrize(
    "budget", [{"flops_reduction": 0.4}, {"ratio": 0.5, "allocation": "global"}]
)
def test_budgets_count_what_goes_with_heads(budget, data):
    model = network(pairs=2)
    plan = kn.plan_pruning(model, kn.NISP(data), **budget)
    small = kn.rebuild(model, plan)
    assert small.count_params() == plan.after.parameters
    assert kn.profile(small).total.flops == plan.after.flops
    assert kn.verify(small, model, plan, data, tolerance=1e-5).ok


def test_widths_by_damage_and_repair(data):
    model = network(pairs=2, flat=True)
    plan = kn.plan_pruning(model, kn.NISP(data), params_reduction=0.4, allocation="predicted")
    small = kn.recalibrate(kn.rebuild(model, plan), data, model, plan)
    assert small.count_params() == plan.after.parameters


def test_files_of_model_and_plan(data, tmp_path):
    model = network(pairs=2, attend=grouped, repeat=False)
    kn.plan_pruning(model, kn.NISP(data), ratio=0.5).save(tmp_path / "plan.json")
    plan = kn.plans.plan.Plan.load(tmp_path / "plan.json")
    small = kn.rebuild(model, plan)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(data), small(data))


def test_heads_can_be_excluded_and_named(data):
    model = network(pairs=2)
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5, exclude="key:heads")
    kept = {row.layer: row.kept for row in plan.creators}
    assert (kept["query:heads"], kept["key:heads"], kept["query"]) == (4, 2, 2)
    plan = kn.plan_pruning(model, kn.NISP(data), ratios={"query:heads": 0.5})
    kept = {row.layer: row.kept for row in plan.creators}
    assert (kept["query:heads"], kept["value:heads"], kept["query"]) == (2, 1, 4)


def test_heads_are_not_widened_nor_merged(data):
    model = network(pairs=2)
    wide = kn.widen(model, 2, init="preserve")
    np.testing.assert_allclose(wide(data), model(data), atol=1e-4)
    assert wide.get_layer("query").kernel.shape[1:] == (4, DIM)
    assert kn.trace(wide).count > 0


def test_a_pruner_masks_heads_while_a_model_trains(data, rng):
    model = network(pairs=2)
    model.compile("adam", "mse")
    pruner = kn.NISPPruner(data, ratio=0.5)
    y = rng.normal(size=(16, LENGTH, 3))
    model.fit(tf.data.Dataset.from_tensor_slices((data, y)).batch(8), epochs=2, verbose=0,
              shuffle=False, callbacks=[pruner])  # fmt: skip
    small = pruner.finish()
    assert small.get_layer("query").kernel.shape[1:] == (2, 2)


def test_products_of_attention_count_as_flops():
    counts = [kn.profile(network(attend=a)).total.flops for a in (scores_by_einsum, fused)]
    projections = LENGTH * (6 * WIDTH + 4 * WIDTH * WIDTH + 3 * WIDTH)
    assert counts == [projections + 2 * LENGTH * LENGTH * WIDTH] * 2
    x = inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(20, 8)(x)
    x = layers.MultiHeadAttention(2, 3, value_dim=5)(x, x)
    projections = LENGTH * 8 * 2 * (3 + 3 + 5 + 5)
    wanted = LENGTH * 8 + projections + LENGTH * LENGTH * 2 * (3 + 5)
    assert kn.profile(keras.Model(inputs, x)).total.flops == wanted


def product(name):
    """A product whose channels stay, with the multiply-adds that it takes for a sample."""
    x, y = keras.Input((4, 3, 5)), keras.Input((1, 5, 2))
    if name == "broadcast":
        return [x, y], keras.ops.matmul(x, y), 4 * 3 * 5 * 2
    if name == "diagonal":
        return [x], keras.ops.einsum("abcd,ed->abce", x, np.ones((7, 5))), 4 * 3 * 5 * 7
    if name == "without an arrow":
        return [x], keras.ops.einsum("abcd,de", x, np.ones((5, 7))), 4 * 3 * 5 * 7
    query, keys = keras.Input((4, 2, 5)), np.ones((1, 6, 2, 5), "float32")
    return [query], keras.ops.dot_product_attention(query, keys, keys), 2 * 4 * 6 * 2 * 5


@pytest.mark.parametrize("name", ["broadcast", "diagonal", "without an arrow", "attention"])
def test_products_whose_channels_stay_count_as_flops(name):
    inputs, output, wanted = product(name)
    assert kn.profile(keras.Model(inputs, output)).total.flops == wanted


@pytest.mark.parametrize(
    "function",
    [
        lambda x: keras.ops.conv(x, np.ones((3, 3, 3, 4), "float32")),
        lambda x: keras.ops.tensordot(x, np.ones((3, 2), "float32"), 1),
        lambda x: keras.ops.dot(x, np.ones((3, 2), "float32")),
    ],
    ids=["conv", "tensordot", "dot"],
)
def test_operations_whose_products_are_not_counted_are_named(function):
    inputs = keras.Input((8, 8, 3))
    x = function(inputs)
    (note,) = kn.profile(keras.Model(inputs, x)).notes
    assert note.startswith("FLOPs do not count what these compute: '")
    assert "parameters" not in note


def test_attention_along_some_axes_counts_those():
    inputs = keras.Input((6, 5, 8))
    flops = {}
    for axes in (None, (1,), (2,)):
        y = layers.MultiHeadAttention(2, 3, attention_axes=axes)(inputs, inputs)
        flops[axes] = kn.profile(keras.Model(inputs, y)).total.flops
    projections = 4 * 30 * 8 * 6
    assert flops[None] == projections + 2 * 30 * 30 * 6
    assert flops[1,] == projections + 2 * 5 * 6 * 6 * 6
    assert flops[2,] == projections + 2 * 6 * 5 * 5 * 6


ALL = tf.constant(np.tril(np.ones((1, 4, LENGTH, LENGTH), bool)))


@pytest.mark.parametrize("shape", [(4, LENGTH, LENGTH), (4, 1, 1), (LENGTH, LENGTH)])
@pytest.mark.parametrize("how", ["mask", "bias"])
def test_constants_without_a_batch_axis_meet_heads(how, shape, rng):
    """As NumPy broadcasts them: from the last axis."""
    inputs = keras.Input((LENGTH, 8))
    query, key, value = (
        ops.reshape(layers.Dense(WIDTH)(inputs), (-1, LENGTH, 4, 4)) for _ in range(3)
    )
    if how == "bias":
        given = rng.normal(size=shape).astype("float32")
        y = ops.dot_product_attention(query, key, value, bias=given, scale=0.5)
    else:
        query, key, value = (ops.transpose(y, (0, 2, 1, 3)) for y in (query, key, value))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        y = ops.matmul(layers.Softmax()(scores, mask=np.tril(np.ones(shape, bool))), value)
        y = ops.transpose(y, (0, 2, 1, 3))
    model = keras.Model(inputs, layers.Dense(3)(ops.reshape(y, (-1, LENGTH, WIDTH))))
    plan = kn.plan_pruning(randomise(model), kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
    heads = 4 if shape[0] == 4 else 2  # of which half of the channels inside go
    assert small.layers[1].units == 2 * heads


def masked_by(mask, layer):
    """Attention with a mask for each head, one for all, or one that is computed."""
    inputs, more = keras.Input((LENGTH, 8)), []
    x = layers.Dense(WIDTH)(inputs)
    if mask == "heads":
        more = [keras.Input((4, LENGTH, LENGTH), dtype="bool")]
    elif mask == "one":
        more = [keras.Input((1, LENGTH, LENGTH), dtype="bool")]
    elif mask == "computed":
        pairs = layers.Dense(4, name="gate")(ops.expand_dims(x, 1) + ops.expand_dims(x, 2))
        mask = ops.transpose(pairs, (0, 3, 1, 2)) > 0
    given = more[0] if more else ALL if mask == "constant" else mask
    if layer == "softmax":
        made = (ops.reshape(layers.Dense(WIDTH)(x), (-1, LENGTH, 4, 4)) for _ in range(3))
        query, key, value = (ops.transpose(y, (0, 2, 1, 3)) for y in made)
        scores = layers.Softmax()(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), mask=given)
        y = ops.reshape(ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3)), (-1, LENGTH, WIDTH))
    elif layer == "group":
        y = layers.GroupQueryAttention(4, 4, 2, name="group")(x, x, attention_mask=given)
    else:
        y = layers.MultiHeadAttention(4, 4, name="heads")(x, x, attention_mask=given)
    return randomise(keras.Model([inputs, *more], layers.Dense(3)(y)))


@pytest.mark.parametrize("layer", ["heads", "group", "softmax"])
@pytest.mark.parametrize("mask", ["heads", "one", "constant", "computed"])
def test_heads_and_their_masks(mask, layer, rng):
    model = masked_by(mask, layer)
    data = [rng.normal(size=(8, *x.shape[1:])) for x in model.inputs]
    data = [data[0].astype("float32"), *(x > -0.5 for x in data[1:])]
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, data).ok
    if mask in ("heads", "constant") and layer != "softmax":
        inner = f"{layer}:heads"
        assert not next(row for row in plan.creators if row.layer == inner).removed
        assert "meets in" in plan.explain(inner)
    if mask == "computed":  # with its heads
        assert small.get_layer("gate").units == 2
    if mask == "one" and layer == "heads":
        assert small.get_layer("heads").num_heads == 2


def laid_out(x, mode):
    """Attention of Dense layers, whose channels are laid out as heads: as most people write it."""
    heads, dim = 4, WIDTH // 4
    shape = (-1, LENGTH, heads, dim)
    if mode == "one kernel":
        x = ops.reshape(layers.Dense(3 * WIDTH, name="qkv")(x), (-1, LENGTH, 3, heads, dim))
        x = ops.transpose(x, (0, 2, 3, 1, 4))
        query, key, value = x[:, 0], x[:, 1], x[:, 2]
    elif mode == "split":
        x = ops.split(layers.Dense(3 * WIDTH, name="qkv")(x), 3, axis=-1)
        query, key, value = (ops.transpose(ops.reshape(t, shape), (0, 2, 1, 3)) for t in x)
    else:
        made = [layers.Dense(WIDTH, name=name)(x) for name in ("query", "key", "value")]
        query, key, value = (layers.Reshape(shape[1:])(t) for t in made)
        query, key, value = (layers.Permute((2, 1, 3))(t) for t in (query, key, value))
    scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * dim**-0.5)
    y = ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))
    return layers.Dense(WIDTH, name="output")(ops.reshape(y, (-1, LENGTH, WIDTH)))


@pytest.mark.parametrize("mode", ["layers", "split", "one kernel"])
def test_heads_of_dense_layers(mode, data, tmp_path):
    inputs = keras.Input((LENGTH, 6))
    x = layers.Dense(WIDTH, name="stream")(inputs)
    x = x + laid_out(layers.LayerNormalization()(x), mode)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    kept = {row.layer: row.kept for row in plan.creators}
    wanted = {"query": 4, "key": 4, "value": 4} if mode == "layers" else {"qkv": 12}
    assert {name: kept[name] for name in wanted} == wanted  # 2 of 4 channels in 2 of 4 heads
    scores = [score for group in plan.groups for score in group.scores]
    assert np.isfinite(scores).all()
    assert min(scores) >= 0
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, data, tolerance=1e-5).ok
    plan.save(tmp_path / "plan.json")
    assert kn.rebuild(model, kn.Plan.load(tmp_path / "plan.json")).count_params() == (
        small.count_params()
    )


def test_what_is_laid_out_and_no_attention_has_no_heads(data):
    inputs = keras.Input((LENGTH, 6))
    x = layers.Reshape((LENGTH, 4, 4))(layers.Dense(16, name="made")(inputs))
    x = layers.Reshape((LENGTH, 16))(ops.relu(x))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    assert plan.creators[0].kept == 8
    assert plan.groups[0].units == 4


@pytest.mark.skipif(not hasattr(layers, "ReversibleEmbedding"), reason="of Keras 3.14")
def test_residual_stream_of_a_language_model_with_tied_embeddings(rng, tmp_path):
    tokens = inputs = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(20, WIDTH, name="tokens")
    x = embedding(tokens) * WIDTH**0.5
    for index in range(2):
        x = x + block(layers.RMSNormalization()(x), fused, pairs=2, turn=True, name=index)
        y = layers.RMSNormalization()(x)
        y = layers.Dense(24, activation="silu")(y) * layers.Dense(24)(y)
        x = x + layers.Dense(WIDTH)(y)
    model = keras.Model(inputs, embedding(layers.RMSNormalization()(x), reverse=True))
    randomise(model)
    data = rng.integers(0, 20, (16, LENGTH))
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert small.get_layer("tokens").embeddings.shape == (20, WIDTH // 2)
    assert small.output_shape == model.output_shape
    assert small.count_params() < 0.35 * model.count_params()
    assert kn.verify(small, model, plan, data, tolerance=1e-5).ok
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(data), small(data))


def test_slices_of_one_channel_of_all_heads(data):
    inputs = keras.Input((LENGTH, 6))
    x = layers.EinsumDense("bqm,muh->bquh", (LENGTH, 4, 4), name="made")(inputs)
    first, second = ops.split(x[..., :2], 2, axis=-1)
    x = x + ops.concatenate([-second, first, x[..., 2:]], axis=-1)
    x = layers.EinsumDense("bquh,uhm->bqm", (LENGTH, 5))(x * first)
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)
    kept = {row.layer: row.kept for row in plan.creators}
    assert (kept["made:heads"], kept["made"]) == (2, 3)
    assert kn.verify(kn.rebuild(model, plan), model, plan, data, tolerance=1e-5).ok
