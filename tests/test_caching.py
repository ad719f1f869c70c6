"""Keys and values that attention keeps for each token: counted, and removed by a budget."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import plain, randomise

import keras_nisp as kn

X = np.random.default_rng(0).normal(size=(32, 6, 16)).astype("float32")
MHA = 4 * (8 + 6) * 4  # heads, channels of keys and values, bytes


def attending(dtype="float32"):
    x = inputs = keras.Input((6, 16))
    x += layers.MultiHeadAttention(4, 8, 6, name="attention", dtype=dtype)(x, x)
    x = layers.Dense(24, "relu", name="inner")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def cache(model):
    return kn.profile(model).total.cache


def of(layer, *sizes):
    """A model of one call on tensors with six positions, of the same or of these sizes."""
    inputs = [keras.Input((6, *size)) for size in sizes]
    outputs = layer(inputs) if isinstance(layer, layers.Layer) else layer(*inputs)
    return keras.Model(inputs, outputs)


# Counting -----------------------------------------------------------------------------


def test_heads_and_their_channels():
    model = attending()
    assert {k: c.cache for k, c in kn.profile(model).layers.items() if c.cache} == {
        "attention": MHA
    }
    plan = kn.plan_pruning(model, kn.Magnitude(), ratios={"attention:heads": 0.5})
    assert (plan.before.cache, plan.after.cache, plan.cache_reduction) == (MHA, MHA // 2, 0.5)
    assert cache(kn.rebuild(model, plan)) == MHA // 2
    plan = kn.plan_pruning(model, kn.Magnitude(), ratios={"attention:value": 0.5})
    assert plan.after.cache == 4 * (8 + 3) * 4


def test_half_precision_takes_half():
    assert cache(attending("mixed_bfloat16")) == MHA // 2


def test_heads_of_queries_are_not_kept():
    x = keras.Input((6, 16))
    attended = layers.GroupQueryAttention(8, 4, 2)(x, x)
    assert cache(keras.Model(x, attended)) == 2 * 2 * 8 * 4


def test_attention_without_weights():
    for kind in (layers.Attention, layers.AdditiveAttention):
        assert cache(of(kind(), (16,), (16,))) == 16 * 4  # values are the keys
        assert cache(of(kind(), (16,), (12,), (16,))) == (12 + 16) * 4
    heads = [(4, 8)] + 2 * [(2, 8)]
    assert cache(of(ops.dot_product_attention, *heads)) == 2 * 2 * 8 * 4


def attended(query, key, value, weigh=ops.softmax):
    weights = weigh(0.3 * ops.einsum("bqhc,bkhc->bhqk", query, key))
    return ops.einsum("bhqk,bkhc->bqhc", weights, value)


def with_sink(scores):
    """A softmax that may go to none of the positions."""
    whole = ops.softmax(ops.concatenate([scores, ops.zeros_like(scores[..., :1])], -1))
    return layers.Dropout(0.1)(whole[..., :-1])


def matrices(query, key, value):
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    return ops.matmul(layers.Activation("softmax")(scores), value)


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (attended, 4 * (8 + 5)),
        (matrices, 4 * (8 + 5)),
        (lambda *tensors: attended(*tensors, weigh=with_sink), 4 * (8 + 5)),
        (lambda *tensors: attended(*tensors, weigh=layers.Softmax()), 4 * (8 + 5)),
        (lambda *tensors: attended(*tensors, weigh=ops.tanh), 0),
        (lambda *tensors: attended(*tensors, weigh=lambda x: ops.softmax(x, axis=-2)), 0),
    ],
)
def test_attention_of_products(function, kept):
    assert cache(of(function, (4, 8), (4, 8), (4, 5))) == kept * 4


def test_what_is_shared_or_repeated_is_kept_once():
    def shared(query, key, value):
        return attended(attended(query, key, value), key, value)

    def repeated(query, key, value):
        key, value = (ops.repeat(x, 2, axis=2) for x in (key, value))
        return attended(query, key, value)

    def broadcast(query, key, value):
        key, value = (
            ops.reshape(ops.broadcast_to(x[:, :, :, None], (2, 6, 2, 2, 8)), (2, 6, 4, 8))
            for x in (key, value)
        )
        return attended(query, key, value)

    assert cache(of(shared, *[(4, 8)] * 3)) == 2 * 4 * 8 * 4
    assert cache(of(repeated, (4, 8), (2, 8), (2, 8))) == 2 * 2 * 8 * 4
    inputs = [keras.Input(batch_shape=(2, 6, heads, 8)) for heads in (4, 2, 2)]
    assert cache(keras.Model(inputs, broadcast(*inputs))) == 2 * 2 * 8 * 4


SIZE = dict(vocabulary_size=20, num_layers=2, hidden_dim=32, intermediate_dim=64)
DECODERS = {
    "GPT2Backbone": (dict(num_heads=4, max_sequence_length=8), 2 * 2 * 4 * 8 * 4),
    "LlamaBackbone": (dict(num_query_heads=4, num_key_value_heads=2), 2 * 2 * 2 * 8 * 4),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_keras_hub(name):
    models = pytest.importorskip("keras_hub").models
    arguments, kept = DECODERS[name]
    model = getattr(models, name)(**SIZE, **arguments)
    shapes = {"token_ids": (8,), "padding_mask": (8,)}
    graph = kn.as_functional(model, input_shape=shapes, verbose=0)
    plan = kn.plan_pruning(graph, kn.Magnitude(), cache_reduction=0.5, input_shape=shapes)
    assert plan.before.cache == kept
    assert 0 < plan.after.cache <= kept // 2
    small = kn.rebuild(graph, plan)
    assert kn.profile(small, shapes).total == plan.after


# The budget ---------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ["uniform", "global", "predicted", "measured"])
def test_budgets_are_met_by_what_is_kept_for_each_token(allocation):
    model = attending()
    plan = kn.plan_pruning(
        model, kn.Magnitude(), cache_reduction=0.5, allocation=allocation, calibration=X
    )
    assert plan.cache_reduction >= 0.5
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, X).ok
    assert kn.profile(small).total == plan.after
    assert {row.layer for row in plan.creators if row.removed} <= {
        "attention:heads", "attention:key", "attention:value"
    }  # fmt: skip
    assert "would save nothing that `cache_reduction` counts" in plan.explain("inner")
    assert "excluded" not in plan.explain("inner")


def test_models_without_attention():
    with pytest.raises(kn.BudgetError, match=r"attention.*give `memory_reduction` or"):
        kn.plan_pruning(plain(), kn.Magnitude(), cache_reduction=0.5)


# What is said -------------------------------------------------------------------------


def test_plan_files():
    plan = kn.plan_pruning(attending(), kn.Magnitude(), cache_reduction=0.5)
    data = plan.to_dict()
    assert kn.Plan.from_dict(data) == plan
    before = json.loads(json.dumps(data).replace(f', "cache": {MHA}', ', "cache": 0'))
    with pytest.raises(kn.PlanFileError, match="cache"):
        kn.Plan.from_dict(before)  # there is more afterwards

    plan = kn.plan_pruning(attending(), kn.Magnitude(), ratio=0.5)
    data = plan.to_dict() | {"version": 5}
    for costs in [data, *data["layers"]]:
        del costs["before"]["cache"], costs["after"]["cache"]
    del data["recipe"]["budget"]["cache_reduction"]
    earlier = kn.Plan.from_dict(data)
    assert earlier.budget == plan.budget
    assert (earlier.after.cache, earlier.cache_reduction) == (0, 0.0)
    assert earlier.after.memory == plan.after.memory


@pytest.mark.parametrize("make", [attending, plain])
def test_tables_and_reports_show_what_there_is(make, tmp_path):
    model, there = make(), make is attending
    assert ("keys and values" in str(kn.profile(model))) == there
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    plan.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert ("keys and values of a token" in page) == there
    assert (f'title="{plan.after.cache} bytes"' in page) == there


def test_merging_meets_the_budget_or_says_what_it_can_reach():
    """What attention without weights adds up is never merged; heads of a layer are."""
    inputs = keras.Input((6, 8))
    x = layers.Dense(16, activation="relu")(inputs)
    attention = layers.Attention()([layers.Dense(8, name=name)(x) for name in "qvk"])
    model = keras.Model(inputs, layers.Dense(3)(attention))
    with pytest.raises(kn.BudgetError, match=r"at most 0\.0000 can be removed\. Ask for less;"):
        kn.plan_merging(model, cache_reduction=0.25)
    x = layers.Dense(8)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.MultiHeadAttention(4, 2)(x, x)))
    plan = kn.plan_merging(model, cache_reduction=0.5)
    heads, keys, values = (row.kept for row in plan.creators if ":" in row.layer)
    assert plan.before.cache == 4 * (2 + 2) * 4
    assert plan.after.cache == heads * (keys + values) * 4 <= plan.before.cache / 2
    small = kn.rebuild(model, plan, verbose=0, force=True)
    assert kn.profile(small).total.cache == plan.after.cache
