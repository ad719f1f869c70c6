"""Widths by damage: what outputs lose, predicted and measured, and plans that are chosen by it."""

import gc
import weakref

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from nets import (
    by_einsum,
    channels_first,
    example_inputs,
    grouped,
    plain,
    randomise,
    residual,
    shared,
    transposed,
)
from random_graphs import codes
from test_latency import Device
from test_random_graphs import CHECKS, pytestmark  # noqa: F401

import keras_nisp as kn
from keras_nisp.channels.cost import CostModel
from keras_nisp.damage.network import DamagedNetwork
from keras_nisp.data.collecting import collect

SAME_OUTPUTS = pytest.mark.filterwarnings("ignore:.*gives the same outputs for all")


def damaged(model, x):
    channel_map = kn.trace(model)
    return channel_map, DamagedNetwork(channel_map, collect(x, model))


def without(channel_map, units):
    return ~channel_map.removing(np.asarray(units))


def widths(plan):
    return {creator.layer: creator.kept for creator in plan.creators}


def dense(*units, outputs=3, activation="relu", ending=None, inputs=6):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(n, activation, name=f"dense{i}") for i, n in enumerate(units)]
    head = layers.Dense(outputs, ending, name="head")
    return keras.Sequential([keras.Input((inputs,)), *hidden, head])


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# Damages -----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
def test_duplicates_are_made_up_for(window):
    """What reads them needs one of the two; nothing makes up for a channel of its own kind."""
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, activation="relu", name="a")(inputs)
    x = layers.Conv2D(4, window, name="b")(x)
    model = randomise(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    kernel, bias = (value.copy() for value in model.get_layer("a").get_weights())
    kernel[..., 3:], bias[3:] = 2 * kernel[..., :3], 2 * bias[:3]
    kernel[..., 5] = data(*kernel.shape[:-1], seed=1)
    model.get_layer("a").set_weights([kernel, bias])
    channel_map, network = damaged(model, data(64, 8, 8, 2))
    units = channel_map.creators[0].units
    present = np.ones(channel_map.count, bool)
    twice, alone = (without(channel_map, units[list(i)]) for i in ((0, 4), (5,)))
    measured = [network.measure(keep) for keep in (twice, alone)]
    predicted = network.predict(present, [twice, alone])
    assert network.measure(present) < 1e-9
    assert measured[0] < 0.01 * measured[1]
    assert predicted[0] < 0.01 * predicted[1]


def one_unit_each(channel_map, seed=0, count=24):
    """Small removals: one unit, or two of a group."""
    rng = np.random.default_rng(seed)
    units = np.concatenate([group.units for group in channel_map.groups])
    return [without(channel_map, [u]) for u in rng.permutation(units)[:count]]


def separable():
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(8, 3, activation="relu")(inputs)
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def attention(mixed=1.0):
    """Two blocks of attention; what the second adds to the stream is scaled."""
    x = inputs = keras.Input((6, 8))
    for name in ("first", "second"):
        x = layers.Add()([x, layers.MultiHeadAttention(4, 4, name=name)(x, x)])
    x = layers.Dense(6, activation="relu", name="reader")(x)
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    output = model.get_layer("second").output_dense.kernel
    output.assign(mixed * output)
    return model


def einsum_attention():
    inputs = keras.Input((7, 8))
    x = layers.Dense(6, activation="relu")(by_einsum(inputs, heads=8, size=4, width=8))
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.mark.parametrize(
    "net",
    [plain, grouped, transposed, shared, channels_first, separable, attention, einsum_attention],
)
def test_predicted_damages_order_like_measured_ones(net):
    from scipy.stats import spearmanr

    model = randomise(net())
    channel_map, network = damaged(model, example_inputs(model, 96))
    candidates = one_unit_each(channel_map)
    measured = np.array([network.measure(keep) for keep in candidates])
    predicted = network.predict(np.ones(channel_map.count, bool), candidates)
    assert spearmanr(measured, predicted).statistic > 0.8
    assert 1 / 3 < np.sum(predicted) / np.sum(measured) < 3


def test_nothing_changes():
    """Channels that are read without a kernel are there, and no candidate touches them."""
    inputs = keras.Input((6,))
    a, b = (layers.Dense(8, activation="relu")(inputs) for _ in range(2))
    x = layers.Multiply()([layers.Dot(-1)([a, b]), a])
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    channel_map, network = damaged(model, data(32, 6))
    assert network.inputs
    keep = np.ones(channel_map.count, bool)
    np.testing.assert_array_equal(network.predict(keep, [keep, keep]), [0, 0])


def test_masked_steps_do_not_count():
    """What kernels make of padding is no part of what they are fitted to."""
    x = inputs = keras.Input((None, 4))
    x = layers.Masking()(x)
    x = layers.Dense(8, activation="relu", name="a")(x)
    x = layers.Dense(6, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling1D()(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    short = data(64, 5, 4)
    padded = np.concatenate([short, np.zeros((64, 7, 4), "float32")], 1)
    predicted = []
    for samples in (short, padded):
        channel_map, network = damaged(model, samples)
        units = [creator.units[:3] for creator in channel_map.creators[:2]]
        keeps = [without(channel_map, removed) for removed in units]
        network.renew(keeps[0])
        predicted.append(network.predict(keeps[0], [keeps[0] & keeps[1]]))
    np.testing.assert_allclose(*predicted, rtol=1e-3)


# Budgets and limits ------------------------------------------------------------------

BUDGETS = {
    "flops": {"flops_reduction": 0.4},
    "params": {"params_reduction": 0.4},
    "memory": {"memory_reduction": 0.25},
    "latency": {"latency_reduction": 0.3},
    "ratio": {"ratio": 0.4},
}


@pytest.mark.parametrize("allocation", ["predicted", "measured"])
@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_are_met_and_limits_hold(kind, allocation):
    model = randomise(plain())
    before, x = model.get_weights(), example_inputs(model, 32)
    budget = BUDGETS[kind] | ({"latency": Device()} if kind == "latency" else {})
    limits = {"exclude": "c", "min_channels": 4, "round_to": 2, "allocation": allocation}
    plan = kn.plan_pruning(model, kn.Magnitude(), calibration=x, **budget, **limits)
    kept = widths(plan)
    if kind == "latency":
        assert plan.latency.reduction >= 0.3
    elif kind == "ratio":
        assert sum(group.removed for group in plan.groups) >= 0.4 * 30
    else:
        assert getattr(plan, f"{kind}_reduction") >= plan.budget.amount
    assert kept["c"] == 10
    assert kept["a"] % 2 == kept["b"] % 2 == 0
    assert min(kept["a"], kept["b"]) >= 4
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok
    assert kn.plan_pruning(model, kn.Magnitude(), calibration=x, **budget, **limits) == plan
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("amount", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("net", [plain, grouped, transposed, residual])
def test_no_group_loses_a_channel_that_the_budget_leaves(net, amount):
    """What saves more than was still to be saved is given back, in whichever group it is."""
    model = randomise(net())
    plan = kn.plan_pruning(
        model, kn.Magnitude(), params_reduction=amount, calibration=example_inputs(model, 64)
    )
    channel_map, costs = kn.trace(model), CostModel(kn.trace(model))
    target, scores = (1 - amount) * plan.before.parameters, kn.Magnitude()(channel_map)
    assert plan.after.parameters <= target
    removed = plan.removed_units(channel_map)
    tried = 0
    for group in channel_map.groups:
        gone = group.units[removed[group.units]]
        if len(gone):
            back = gone[np.argmax(scores[gone])]
            assert costs.parameters(~removed | channel_map.seen(np.array([back]))) > target
            tried += 1
    assert tried


def test_the_last_groups_are_those_that_are_not_seen():
    """All that is seen goes before the budget is met: then heads must go as well."""
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(4, 4, name="attention")(inputs, inputs)
    x = layers.Dense(3, activation="relu", name="few")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    plan = kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.8, calibration=data(32, 6, 8))
    assert plan.params_reduction >= 0.8


def test_where_nothing_is_seen():
    inputs = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(4, 4, name="attention")
    attended, _ = attention(inputs, inputs, return_attention_scores=True)
    model, x = keras.Model(inputs, layers.Add()([inputs, attended])), data(32, 6, 8)
    plan = kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.5, calibration=x)
    uniform = kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.5, allocation="uniform")
    assert widths(plan) == widths(uniform)
    assert plan.budget.allocation == "uniform"
    with pytest.raises(ValueError, match=r"inside of layers.*allocation='uniform'"):
        kn.plan_pruning(
            model, kn.Magnitude(), params_reduction=0.5, calibration=x, allocation="predicted"
        )


def test_what_cannot_be_reached():
    with pytest.raises(kn.BudgetError, match=r"at most 0\.\d+ can be removed\. Ask for less"):
        kn.plan_pruning(dense(8, 8), kn.NISP(data(16, 6)), memory_reduction=0.95)


def test_a_branch_that_nobody_needs_goes_first():
    inputs = keras.Input((6,))
    left = layers.Dense(16, "relu", name="useful")(inputs)
    right = layers.Dense(16, "relu", name="useless")(inputs)
    outputs = layers.Dense(3, name="head")(layers.Concatenate()([left, right]))
    model = randomise(keras.Model(inputs, outputs))
    kernel, bias = (value.copy() for value in model.get_layer("head").get_weights())
    kernel[16:] *= 1e-4
    model.get_layer("head").set_weights([kernel, bias])
    for allocation in ("predicted", "measured"):
        limits = {"flops_reduction": 0.35, "allocation": allocation}
        plan = kn.plan_pruning(model, kn.Random(), calibration=data(64, 6), **limits)
        assert widths(plan)["useful"] == 16


# Models ------------------------------------------------------------------------------


def with_several_outputs():
    inputs = keras.Input((6,))
    x = layers.Dense(16, "relu")(layers.Dense(12, "relu")(inputs))
    classes, marks = layers.Dense(4, "softmax")(x), layers.Dense(3, "sigmoid")(x)
    return keras.Model(inputs, [classes, marks, layers.Dense(2)(x)])


def of_tokens():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, 12)(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 3, name="attention")(x, x)])
    x = layers.Dense(16, "relu")(x)
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


MODELS = {
    "several outputs": (with_several_outputs, data(48, 6)),
    "regression": (lambda: dense(16, 12, outputs=1), data(48, 6)),
    "sigmoid": (lambda: dense(16, 12, outputs=1, ending="sigmoid"), data(48, 6)),
    "softmax": (lambda: dense(16, 12, ending="softmax"), data(48, 6)),
    "tokens": (of_tokens, np.random.default_rng(0).integers(0, 20, (48, 5))),
    "one sample": (lambda: dense(16, 12), data(1, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_kinds(name):
    build, x = MODELS[name]
    model = randomise(build())
    plan = kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.4, calibration=x)
    assert plan.budget.allocation == "predicted"
    assert plan.params_reduction >= 0.4
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def test_heads_go_where_they_matter_least():
    """Key channels, whose damage is not seen, lose the mean share in both."""
    model = attention(mixed=0.1)
    kept = widths(
        kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.4, calibration=data(64, 6, 8))
    )
    assert kept["second:heads"] == 1
    assert kept["first:heads"] > 1
    assert kept["first:key"] < 4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = randomise(plain())
    finally:
        keras.config.set_dtype_policy("float32")
    x = example_inputs(model, 32)
    plan = kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.4, calibration=x)
    assert plan.flops_reduction >= 0.4
    assert len(set(widths(plan).values())) > 1


# Data that are no use ----------------------------------------------------------------


def test_constant_outputs():
    """Nothing is damaged, whatever goes: no division by a variance of zero."""
    model = dense(16, 12)
    model.get_layer("head").set_weights([np.zeros((12, 3)), np.zeros(3)])
    with pytest.warns(UserWarning, match="same outputs for all calibration samples"):
        plan = kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.4, calibration=data(32, 6))
    assert plan.flops_reduction >= 0.4


def test_outputs_that_are_not_finite():
    """Weights and data are finite, what comes out is not."""
    model = dense(16, 12)
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([1e38 * np.ones_like(kernel), bias])
    x, before = 100 * data(32, 6), model.get_weights()
    for attempt in (
        lambda: kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.4, calibration=x),
        lambda: kn.prune(model, kn.Magnitude(), flops_reduction=0.4, calibration=x, verbose=0),
        lambda: kn.sensitivity(model, kn.Magnitude(), calibration=x),
    ):
        with pytest.raises(ValueError, match=r"finite outputs of model .* for \d+ of 16 samples"):
            attempt()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((8, 6), np.nan, "float32"), "finite"),
        (data(8, 5), "shape"),
        (data(0, 6), "calibration data"),
    ],
)
def test_bad_data(x, message):
    for call in (kn.plan_pruning, kn.plan_merging):
        importance = [kn.Magnitude()] if call is kn.plan_pruning else []
        with pytest.raises(ValueError, match=message):
            call(dense(8, 8), *importance, flops_reduction=0.4, calibration=x)


# Merging -----------------------------------------------------------------------------


def test_merges_are_allocated_by_damage():
    model, x = dense(24, 16, 12), data(64, 6)
    uniform = kn.plan_merging(model, params_reduction=0.4)
    plan = kn.plan_merging(model, params_reduction=0.4, calibration=x)
    assert plan.budget.allocation == "predicted"
    assert plan.params_reduction >= 0.4
    assert plan.merges
    assert widths(plan) != widths(uniform)
    assert "calibration=calibration" in plan.recipe.code


# Random graphs -----------------------------------------------------------------------


def check_graph(code, seed):
    import random_chain as chain
    from random_graphs import build

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = randomise(build(code), seed)
    if not np.isfinite(chain.outputs(model)).all():
        return
    limits = {"params_reduction": 0.2, "allocation": "predicted"}
    shapes, x = chain.shapes_of(model), chain.samples_for(model, 8, seed)
    arguments = {"calibration": x, "input_shape": shapes, **limits}
    try:
        plan = kn.plan_pruning(model, kn.Random(seed), **arguments)
    except ValueError as error:
        if not any(words in str(error) for words in chain.REFUSALS):
            raise
        return
    assert plan.params_reduction > 0.2 - 1e-9
    chain.rebuilt(model, plan)


HEADER = """import keras
from keras import layers, ops
"""
FOUND = {
    "a layer that is called on tensors of different ranks": """
a = keras.Input((7, 7, 3))
x = layers.Conv2D(4, 3, padding="same")(a)
dense = layers.Dense(3)
parts = [layers.Flatten()(dense(x)), layers.Flatten()(dense(layers.Reshape((49, 4))(x)))]
model = keras.Model(a, layers.Dense(3)(layers.Concatenate()(parts)))""",
    "features that are all the same constant": """
a = keras.Input((9, 9, 3))
x = layers.LayerNormalization()(layers.Conv2D(6, 3)(a))
y = (x + 1.0) - x
model = keras.Model(a, layers.Dense(3)(layers.Flatten()(y)))""",
}


@SAME_OUTPUTS
@pytest.mark.parametrize("name", FOUND)
def test_what_random_graphs_have_found(name):
    check_graph(HEADER + FOUND[name], 5)


@SAME_OUTPUTS
@settings(CHECKS, max_examples=6)
@given(codes(), st.integers(0, 9))
def test_random_graphs_are_allocated(code, seed):
    check_graph(code, seed)


@SAME_OUTPUTS
@pytest.mark.slow
@settings(CHECKS, max_examples=200)
@given(codes(), st.integers(0, 9))
def test_many_random_graphs_are_allocated(code, seed):
    check_graph(code, seed)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_batches_of_any_size_count_the_same(batch_size, monkeypatch):
    """The last batch is filled up, and what fills it does not count."""
    inputs = keras.Input((5, 6), batch_size=batch_size)
    x = layers.TimeDistributed(layers.Dense(8, activation="relu"))(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, activation="softmax")(x)))
    found = []
    for memory in (1, 1 << 29):  # one sample at a time, and as many as there may be
        monkeypatch.setattr("keras_nisp.damage.network.MOST_MEMORY", 7 * 5 * 8 * 4 * memory)
        channel_map, network = damaged(model, data(44, 5, 6))
        keep = without(channel_map, channel_map.groups[0].units[:3])
        network.renew(keep)
        found.append(network.measure(keep))
    assert found[0] > 0
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@SAME_OUTPUTS
def test_what_overflows_inside_is_named():
    """The outputs are finite all the same: what overflows is cut off."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="exponential", name="a")(inputs)
    x = layers.Dense(6, activation="sigmoid", name="b")(x)
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    kernel = np.abs(model.get_layer("b").get_weights()[0])
    model.get_layer("b").set_weights([kernel, np.zeros(6)])
    x = 1e3 * np.abs(data(64, 6))
    model.get_layer("a").set_weights([np.ones((6, 8)), np.zeros(8)])
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"finite activations.*enters\s+'b'"):
        kn.plan_pruning(model, kn.Magnitude(), flops_reduction=0.3, calibration=x)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_what_a_network_holds_is_let_go():
    model = randomise(plain())
    channel_map, network = damaged(model, example_inputs(model, 32))
    keep = np.ones(channel_map.count, bool)
    other = keep.copy()
    other[channel_map.groups[0].units[0]] = False
    gc.disable()
    try:
        assert network.predict(keep, [other])[0] > 0
        gone = weakref.ref(network.kernels[0])
        del network
        assert gone() is None
    finally:
        gc.enable()
