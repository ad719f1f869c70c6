"""Whole experts of a mixture: which may go, and what the rest of them gives."""

import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import randomise

import keras_nisp as kn

EXPERTS, WIDTH, HIDDEN, LENGTH = 6, 8, 5, 6
NEVER = -1e9  # a logit by which no expert is chosen


def spread(chosen, values):
    return ops.sum(ops.one_hot(chosen, EXPERTS) * values[..., None], axis=-2)


def all_of_them(x):
    return ops.softmax(x)


def best_two(x):
    """As in Mixtral."""
    values, chosen = ops.top_k(ops.softmax(x), k=2)
    return spread(chosen, values / ops.sum(values, -1, keepdims=True))


def two_logits(x):
    """As in GPT-OSS."""
    values, chosen = ops.top_k(x, k=2)
    return spread(chosen, ops.softmax(values))


def switch(x):
    value, chosen = ops.top_k(ops.softmax(x), k=1)
    return value * ops.squeeze(ops.one_hot(chosen, EXPERTS), -2)


def best(x):
    shares = ops.softmax(x)
    return shares * ops.one_hot(ops.argmax(shares, -1), EXPERTS)


def above(x):
    shares = ops.softmax(x)
    shares = ops.where(shares >= ops.top_k(shares, k=2)[0][..., -1:], shares, 0.0)
    return shares / ops.sum(shares, -1, keepdims=True)


def biased(x):
    """As in DeepSeek: chosen by other numbers than those that weigh."""
    shares = ops.sigmoid(x)
    chosen = ops.top_k(shares + 0.1, k=2)[1]
    return spread(chosen, ops.take_along_axis(shares, chosen, axis=-1))


def turned(x):
    """Indices and what comes of them are moved about."""
    values, chosen = ops.top_k(ops.softmax(x), k=2)
    chosen = ops.cast(ops.transpose(chosen, (0, 2, 1)), "int32")
    first, second = (ops.one_hot(chosen[:, i], EXPERTS) for i in range(2))
    return first * values[..., :1] + second * values[..., 1:]


CHOOSING = [best_two, two_logits, switch, best, above, biased, turned]


def mixture(weigh) -> keras.Model:
    """A residual mixture: one kernel of all experts for each of two layers."""
    inputs = keras.Input((LENGTH, 4))
    x = layers.Dense(WIDTH, name="before")(inputs)
    up = layers.EinsumDense(
        "btd,edh->bteh", (LENGTH, EXPERTS, HIDDEN), bias_axes="eh", activation="relu", name="up"
    )
    down = layers.EinsumDense("bteh,ehd->bted", (LENGTH, EXPERTS, WIDTH), name="down")
    shares = weigh(layers.Dense(EXPERTS, name="router")(x))
    return with_head(inputs, x + ops.einsum("bte,bted->btd", shares, down(up(x))))


def with_head(inputs, x) -> keras.Model:
    x = layers.LayerNormalization(name="norm")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def functional() -> keras.Model:
    """Layers of Keras alone, the softmax inside of the router."""
    inputs = keras.Input((4,))
    x = layers.Dense(WIDTH, name="before")(inputs)
    shares = layers.Dense(EXPERTS, activation="softmax", name="router")(x)
    up = layers.EinsumDense("bd,deh->beh", (EXPERTS, HIDDEN), bias_axes="eh", activation="relu")
    y = layers.EinsumDense("beh,ehd->bed", (EXPERTS, WIDTH), name="down")(up(x))
    x = layers.Dot(1, name="mix")([shares, y])
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def router_of(model):
    return next(layer for layer in model._flatten_layers() if layer.name == "router")


def data_for(model, count=32):
    shape = (count, *model.inputs[0].shape[1:])
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def without(model, experts, x):
    """What the model gives where these are never chosen, or get no share."""
    bias = router_of(model).bias
    value = bias.numpy()
    bias.assign(np.where(np.isin(np.arange(EXPERTS), experts), NEVER, value))
    outputs = model(x)
    bias.assign(value)
    return outputs


def row_of(plan, layer):
    return next(row for row in plan.creators if row.layer == layer)


@pytest.mark.parametrize("weigh", [all_of_them, *CHOOSING])
def test_the_others_are_chosen_among(weigh):
    graph = mixture(weigh)
    plan = kn.plan_pruning(graph, kn.Random(1), ratios={"*router": 0.34})
    gone = row_of(plan, "router").removed
    assert len(gone) == 2
    small = kn.rebuild(graph, plan)
    assert kn.verify(small, graph, plan, tolerance=1e-5).ok
    shapes = {tuple(weight.shape) for weight in small.weights}
    assert {(WIDTH, 4), (4, WIDTH, HIDDEN), (4, HIDDEN), (4, HIDDEN, WIDTH)} <= shapes
    x = data_for(graph)
    np.testing.assert_allclose(small(x), without(graph, gone, x), atol=1e-5)


@pytest.mark.parametrize("weigh", [best_two, biased])
def test_experts_and_their_widths_go_at_once(weigh, tmp_path):
    graph = mixture(weigh)
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratio=0.5)
    assert {row_of(plan, name).kept for name in ("up", "router")} == {3}
    small = kn.rebuild(graph, plan)
    assert kn.verify(small, graph, plan, tolerance=1e-5).ok
    small.save(tmp_path / "small.keras")
    again, x = keras.models.load_model(tmp_path / "small.keras"), data_for(graph)
    np.testing.assert_allclose(again(x), small(x), atol=1e-6)


def test_a_softmax_inside_of_the_router():
    model = functional()
    plan = kn.plan_pruning(model, kn.Random(1), ratios={"router": 0.5})
    small, x = kn.rebuild(model, plan), data_for(model)
    assert kn.verify(small, model, plan, tolerance=1e-5).ok
    np.testing.assert_allclose(
        small(x), without(model, row_of(plan, "router").removed, x), atol=1e-5
    )
    assert plan.inexact == ("router",)


@pytest.mark.parametrize("build", [lambda: mixture(best_two), functional])
def test_widths_inside_of_experts_are_merged_and_widened(build):
    model = build()
    plan = kn.plan_merging(model, ratio=0.5)
    small = kn.rebuild(model, plan, force=True, verbose=0)
    assert kn.verify(small, model, plan, tolerance=1e-5).ok
    assert any(3 in weight.shape for weight in small.weights)  # of HIDDEN
    wide = kn.widen(model, 2)
    assert any(2 * HIDDEN in weight.shape for weight in wide.weights)
    assert router_of(wide).units == EXPERTS


def test_as_many_as_are_chosen_stay():
    graph = mixture(best_two)
    scores = kn.Magnitude()(kn.trace(graph))
    router = next(c for c in kn.trace(graph).creators if c.layer.endswith("router"))
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratio=0.9)
    kept = set(range(EXPERTS)) - set(row_of(plan, "router").removed)
    assert kept == set(np.argsort(scores[router.units])[-2:].tolist())
    assert "chooses 2" in plan.explain("router")
    with pytest.raises(kn.BudgetError, match="but 2 is what"):
        kn.plan_pruning(graph, kn.Magnitude(), widths={"*router": 1})
    assert kn.plan_pruning(mixture(switch), kn.Magnitude(), widths={"*router": 1}).creators


def test_a_plan_that_leaves_too_few_is_refused():
    graph = mixture(best_two)
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratios={"*router": 0.5})
    rows = [
        dataclasses.replace(row, removed=tuple(range(5))) if row.channels == EXPERTS else row
        for row in plan.creators
    ]
    groups = [
        dataclasses.replace(row, removed=5, removed_units=tuple(range(5))) if row.removed else row
        for row in plan.groups
    ]
    worse = dataclasses.replace(plan, creators=tuple(rows), groups=tuple(groups))
    with pytest.raises(
        kn.PlanMismatchError, match=r"choose among: .*chooses 2 of them. The plan leaves 1"
    ):
        kn.rebuild(graph, worse)


def test_all_are_chosen():
    def all_six(x):
        values, chosen = ops.top_k(x, k=EXPERTS)
        return spread(chosen, ops.softmax(values))

    plan = kn.plan_pruning(mixture(all_six), kn.Magnitude(), ratio=0.5)
    assert row_of(plan, "router").kept == EXPERTS
    assert "chooses 6 of them, which is all" in plan.explain("router")


def indices_as_output(x):
    return [layers.Dense(2)(x), ops.argmax(x, -1)]


def indices_as_numbers(x):
    return layers.Dense(2)(ops.cast(ops.top_k(x, 2)[1], "float32"))


def other_classes(x):
    return layers.Dense(2)(ops.one_hot(ops.argmax(x, -1), 8))


def looked_up(x):
    return layers.Dense(2)(layers.Embedding(EXPERTS, 3)(ops.argmax(x, -1)))


def compared(x):
    mask = ops.equal(ops.argmax(x, -1, keepdims=True), np.arange(EXPERTS))
    return layers.Dense(2)(x * ops.cast(mask, "float32"))


def side_by_side(x):
    chosen = ops.top_k(x, 2)[1]
    return layers.Dense(2)(ops.one_hot(ops.concatenate([chosen, 0 * chosen], -1), EXPERTS)[:, 0])


INDICES = {
    indices_as_output: "is what 'argmax.*' has indices of",
    indices_as_numbers: "index that enters 'dense.*', which computes with it",
    other_classes: "enters 'one_hot.*', which has other classes",
    looked_up: "index that enters 'embedding",
    compared: "index that enters 'equal",
    side_by_side: "index that enters '(multiply|concatenate)",
}


@pytest.mark.parametrize("use", INDICES, ids=lambda use: use.__name__)
def test_indices_that_are_not_followed_hold_what_they_point_at(use):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, use(layers.Dense(EXPERTS, name="experts")(inputs)))
    reasons = kn.trace(model).reasons
    experts = kn.trace(model).creators[0]
    for unit in experts.units.tolist():
        assert any(re.search(INDICES[use], why) for why in reasons[unit])


def test_experts_in_a_list_say_why_they_stay():
    class Listed(layers.Layer):
        def build(self, shape):
            self.router = layers.Dense(3, activation="softmax", name="router")
            self.experts = [layers.Dense(shape[-1], name=f"expert_{i}") for i in range(3)]

        def call(self, x):
            stacked = ops.stack([expert(x) for expert in self.experts], axis=-2)
            return x + self.weighed(self.router(x), stacked)

        def weighed(self, shares, stacked):
            return ops.sum(shares[..., None] * stacked, axis=-2)

    class ByEinsum(Listed):
        def weighed(self, shares, stacked):
            return ops.einsum("bte,bted->btd", shares, stacked)

    for kind in (Listed, ByEinsum):
        inputs = keras.Input((LENGTH, WIDTH))
        model = with_head(inputs, kind(name="mixture")(inputs))
        graph = kn.as_functional(model, verbose=0)
        reasons = kn.trace(graph).reasons
        router = next(c for c in kn.trace(graph).creators if c.layer.endswith("router"))
        for unit in router.units.tolist():
            assert any("layers do not go as a whole" in why for why in reasons[unit])


def unreached(expert=2):
    """A mixture of which one expert with large weights is never chosen."""
    graph = mixture(best_two)
    router = router_of(graph)
    router.bias.assign(np.where(np.arange(EXPERTS) == expert, -30, router.bias))
    kernel = graph.get_layer("down").kernel
    kernel.assign(kernel * np.where(np.arange(EXPERTS) == expert, 9, 1)[:, None, None])
    return graph


def test_importances_that_look_at_data_see_the_routing():
    graph = unreached()
    x = data_for(graph, 96)
    labels = np.random.default_rng(1).normal(size=(96, LENGTH, 3)).astype("float32")
    router = next(c for c in kn.trace(graph).creators if c.layer.endswith("router"))
    for importance in (
        *(kind(x) for kind in (kn.OptimalBrainSurgeon, kn.LRP, kn.LayerByLayer)),
        kn.Taylor((x, labels), "mse"),
    ):
        scores = importance(kn.trace(graph))[router.units]
        assert scores.argmin() == 2
        assert scores[2] < 1e-6 * scores.mean(), importance
    plan = kn.plan_pruning(graph, kn.OptimalBrainSurgeon(x), widths={"*router": 5})
    assert row_of(plan, "router").removed == (2,)
    np.testing.assert_allclose(kn.rebuild(graph, plan)(x), graph(x), atol=1e-5)


def test_experts_that_change_places_are_found():
    graph = mixture(best_two)
    plan = kn.plan_pruning(graph, kn.Magnitude(), ratios={"*router": 0.5})
    small = kn.rebuild(graph, plan)
    router = router_of(small)
    router.kernel.assign(tf.reverse(router.kernel, [1]))
    result = kn.verify(small, graph, plan)
    assert not result.ok
    assert result.layer.layer == "router"


@pytest.mark.parametrize("build", [lambda: mixture(best_two), functional])
def test_they_go_while_the_model_trains(build):
    model = build()
    model.compile("sgd", "mse")
    x = data_for(model)
    y = np.random.default_rng(1).normal(size=model(x).shape)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratios={"*router": 0.5}, verbose=0)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[pruner])
    assert router_of(pruner.pruned_model).units == 3
    np.testing.assert_allclose(pruner.pruned_model(x), model(x), atol=1e-5)
    pruner.release()


def test_among_the_channels_of_each_head():
    """What is chosen in each head apart; heads go, too."""
    inputs = keras.Input((5,))
    x = layers.EinsumDense("bd,dhe->bhe", (4, EXPERTS), bias_axes="he", name="router")(inputs)
    values, chosen = ops.top_k(x, k=2)
    shares = ops.sum(ops.one_hot(chosen, EXPERTS) * values[..., None], axis=-2)
    y = layers.EinsumDense("bhe,hed->bd", 3, name="out")(shares)
    model = randomise(keras.Model(inputs, y))
    plan = kn.plan_pruning(model, kn.Random(0), ratio=0.5)
    assert {row_of(plan, name).kept for name in ("router", "router:heads")} == {3, 2}
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, tolerance=1e-5).ok


def test_a_wrapped_softmax_stays():
    inputs = keras.Input((4,))
    wrapped = layers.SpectralNormalization(layers.Dense(6, activation="softmax", name="inner"))
    x = layers.Dense(WIDTH, name="last")(wrapped(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert [row.kept for row in plan.creators] == [6, 4, 3]
    assert "call that as a layer of its own" in plan.creators[0].reasons[-1]
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def of_a_group(x):
    """As where experts outside of the best group are out of the question: the rest is equal."""
    first = ops.convert_to_tensor(np.arange(EXPERTS) % 3 == 1)
    return best_two(ops.where(first, x, -np.inf))


def of_none(x):
    return ops.one_hot(ops.argmax(ops.where(x > 1e6, x, -np.inf), -1), EXPERTS)


@pytest.mark.parametrize("weigh", [of_a_group, of_none])
def test_of_equals_the_first_that_is_kept_is_chosen(weigh):
    model = mixture(weigh)
    router = router_of(model)
    plan = kn.plan_pruning(model, lambda m: -np.arange(m.count, 0, -1.0), ratio=0.5)
    assert row_of(plan, "router").removed == (0, 1, 2)
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok
    assert router.units == EXPERTS


def test_a_share_that_is_rounded_to_zero_comes_back():
    """A router that is sure of one expert goes by the others where that one is gone."""
    model = functional()
    router = router_of(model)
    router.bias.assign(1000.0 * (np.arange(EXPERTS) == 0))
    plan = kn.plan_pruning(model, lambda m: np.arange(m.count, dtype=float), ratio=0.5)
    assert row_of(plan, "router").removed == (0, 1, 2)
    assert kn.verify(kn.rebuild(model, plan), model, plan, tolerance=1e-5).ok


COMPARING = {
    "top_k": lambda chosen: ops.top_k(chosen, 1)[0],
    "argmax": lambda chosen: ops.argmax(chosen, -1, keepdims=True),
    "append": lambda chosen: ops.append(chosen, np.zeros((1, LENGTH, 1), "int32"), axis=-1),
    "max": lambda chosen: ops.max(chosen, -1, keepdims=True),
}


@pytest.mark.parametrize("name", COMPARING)
def test_experts_whose_indices_are_numbers_stay(name):
    def weigh(x):
        values, chosen = ops.top_k(ops.softmax(x), k=2)
        shares = spread(chosen, values)
        return shares + 0.1 * ops.cast(COMPARING[name](chosen)[..., :1], "float32")

    plan = kn.plan_pruning(mixture(weigh), kn.Magnitude(), ratio=0.5)
    assert row_of(plan, "router").kept == EXPERTS
    assert name in " ".join(row_of(plan, "router").reasons)
